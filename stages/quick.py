"""No stage of the pipeline: what `structalign compare --quick` runs in place of train, evaluate and report.

The same stages, called one after another in one process, so that no time goes into starting programs, hashing and
copying, and without figures. The numbers are those of `dvc repro`.
"""

from __future__ import annotations

from stages import evaluate, train
from stages.run import run
from structalign import paths
from structalign.config.schema import Config
from structalign.report.run import read_run
from structalign.report.tables import outcome, write_tables
from structalign.util.log import log


def main(config: Config) -> None:
    """Train on each task and evaluate after it; then write the tables."""
    for task in range(1, config.K + 1):
        train.main(config, task)
        evaluate.main(config, task)
    whole = read_run(paths.record(config.K))
    log.info(outcome(whole, write_tables(whole)))


if __name__ == "__main__":
    run(main)
