"""No stage of the pipeline: what `structalign compare --quick` runs in place of train, evaluate and report.

The same stages, called one after another in one process, so that no time goes into starting programs, hashing and
copying. Their results are those of `dvc repro`.
"""

from __future__ import annotations

from stages import evaluate, report, train
from stages.run import run
from structalign.config.schema import Config


def main(config: Config) -> None:
    """Train on each task and evaluate after it; then write the report."""
    for task in range(1, config.K + 1):
        train.main(config, task)
        evaluate.main(config, task)
    report.main(config)


if __name__ == "__main__":
    run(main)
