"""What the command line asks of a study: labels, seeds, and a name for the results."""

from __future__ import annotations

from pathlib import Path

import pytest

from structalign.experiments.source import CodeSnapshot
from structalign.experiments.study import chosen, make_run, output_name, seeds_of, value_of
from structalign.util.errors import UserError


def test_a_comparison_is_named_by_its_data_and_a_hash_of_the_rest() -> None:
    assert output_name("methods", ["data=msrvtt", "K=20"]) == "methods-msrvtt-20"
    names = {output_name("methods", ["data=actnet", f"data.videos=/{folder}/videos"]) for folder in "ab"}
    assert len(names) == 2


def test_an_edited_file_that_overrides_name_makes_another_run(tmp_path: Path) -> None:
    table, tuned, weights = tmp_path / "my clips.csv", tmp_path / "conf/tuned/mine.yaml", tmp_path / "clip.pt"
    tuned.parent.mkdir(parents=True)

    def names() -> list[str]:
        source = CodeSnapshot(tmp_path, "0" * 40, b"", "0" * 64, ())
        overrides = (["data=local", f'data.csv="{table}"'], ["tuned=mine"], [f"backbone.weights={weights}"], ["K=2"])
        return [make_run(["study"], "label", 0, some, source).name for some in overrides]

    table.write_text("one caption")
    tuned.write_text("train: {lr_first: 1.0e-3}")
    weights.write_bytes(b"1")
    first = names()
    assert names() == first
    table.write_text("a better caption")
    tuned.write_text("train: {lr_first: 2.0e-3}")
    weights.write_bytes(b"2")
    assert [one == other for one, other in zip(first, names(), strict=True)] == [False, False, False, True]


def test_seeds_that_are_no_numbers_are_refused() -> None:
    assert seeds_of("3,1,3") == [3, 1]
    with pytest.raises(UserError, match="--seeds 1,two: must be whole numbers, such as 0,1,2"):
        seeds_of("1,two")


def test_a_parameter_that_is_not_there_is_refused() -> None:
    parameters = {"K": 5, "loss": {"etf_weight": 0.1}}
    assert value_of(parameters, "loss.etf_weight") == 0.1
    for key in ("J", "K.x", "loss.x", "loss.etf_weight.x"):
        with pytest.raises(UserError, match=f"^{key}: no such parameter"):
            value_of(parameters, key)


def test_part_of_a_study_can_run() -> None:
    assert chosen(None, ["full", "finetune"], "ablation") == ["full", "finetune"]
    assert chosen("finetune", ["full", "finetune"], "ablation") == ["finetune"]
    assert chosen("finetune,f*", ["full", "finetune", "lwf"], "ablation") == ["finetune", "full"]
    assert chosen("full, lwf", ["full", "finetune", "lwf"], "ablation") == ["full", "lwf"]
    assert chosen("tail, both", ["tail", "tail, both"], "ablation") == ["tail, both"]
    assert chosen("why?", ["why?", "whys"], "ablation") == ["why?"]
    with pytest.raises(UserError, match=r"--labels ful, x\*: ablation has full, finetune"):
        chosen("ful,finetune,x*", ["full", "finetune"], "ablation")
