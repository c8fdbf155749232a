"""What the command line asks of a study: labels, seeds, and a name for the results."""

from __future__ import annotations

import pytest

from structalign.experiments.study import chosen, output_name, seeds_of
from structalign.util.errors import UserError


def test_a_comparison_is_named_by_its_data_and_a_hash_of_the_rest() -> None:
    assert output_name("methods", ["data=msrvtt", "K=20"]) == "methods-msrvtt-20"
    names = {output_name("methods", ["data=actnet", f"data.videos=/{folder}/videos"]) for folder in "ab"}
    assert len(names) == 2


def test_seeds_that_are_no_numbers_are_refused() -> None:
    assert seeds_of("3,1,3") == [3, 1]
    with pytest.raises(UserError, match="--seeds 1,two: must be whole numbers, such as 0,1,2"):
        seeds_of("1,two")


def test_part_of_a_study_can_run() -> None:
    assert chosen(None, ["full", "finetune"], "ablation") == ["full", "finetune"]
    assert chosen("finetune", ["full", "finetune"], "ablation") == ["finetune"]
    assert chosen("finetune,f*", ["full", "finetune", "lwf"], "ablation") == ["finetune", "full"]
    assert chosen("why?", ["why?", "whys"], "ablation") == ["why?"]
    with pytest.raises(UserError, match=r"--labels ful, x\*: ablation has full, finetune"):
        chosen("ful,finetune,x*", ["full", "finetune"], "ablation")
