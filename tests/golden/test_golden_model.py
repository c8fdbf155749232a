"""The whole adapted model against numbers of the authors' code, through the converter of released weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from structalign.released import Released, convert, read_released
from structalign.util.errors import UserError

pytestmark = pytest.mark.slow

RELEASED = Path(__file__).with_name("released-small.npz")


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    arrays = np.load(RELEASED)
    return {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "meta"}


@pytest.fixture(scope="module")
def settings() -> dict[str, float]:
    meta = json.loads(str(np.load(RELEASED)["meta"]))
    heads = {"text_heads": meta["text"]["heads"], "vision_heads": meta["vision"]["heads"]}
    return {
        **heads,
        "adapter_layers": meta["vision"]["adapter_layers"],
        "top_k": meta["topk"],
        "lora_alpha": meta["alpha"],
    }


@pytest.fixture(scope="module")
def weights(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("weights/"): value for name, value in golden.items() if name.startswith("weights/")}


@pytest.fixture(scope="module")
def released(weights: dict[str, Tensor], settings: dict[str, float]) -> Released:
    return convert(weights, **settings)


@pytest.mark.parametrize("task", [1, 2, 3])
def test_words_and_global_text_as_each_task_reads_them(
    released: Released, golden: dict[str, Tensor], task: int
) -> None:
    with torch.no_grad():
        words, mask, global_ = released.retriever().eval().encode_text(golden["model/input_ids"], task)
    expected = golden[f"model/words_task{task}"]  # word features first, then padding
    for row, (features, marked) in enumerate(zip(words, mask, strict=True)):
        own = features[marked]
        torch.testing.assert_close(own, expected[row, : len(own)], atol=1e-4, rtol=0)
        assert not expected[row, len(own) :].any()
    torch.testing.assert_close(global_, golden[f"model/global_text_task{task}"], atol=1e-4, rtol=0)


def test_tasks_read_the_same_text_differently(released: Released, golden: dict[str, Tensor]) -> None:
    with torch.no_grad():
        retriever = released.retriever().eval()
        texts = [retriever.encode_text(golden["model/input_ids"], task)[2] for task in (1, 2, 3)]
    assert (texts[0] - texts[1]).abs().max() > 1e-2
    assert (texts[1] - texts[2]).abs().max() > 1e-2


def test_frames_and_global_video(released: Released, golden: dict[str, Tensor]) -> None:
    with torch.no_grad():
        frames, global_ = released.retriever().eval().encode_video(golden["model/pixels"])
    torch.testing.assert_close(frames, golden["model/frames_features"], atol=1e-4, rtol=0)
    torch.testing.assert_close(global_, golden["model/global_video"], atol=1e-4, rtol=0)


def test_checkpoint_file_with_projections(
    tmp_path: Path, weights: dict[str, Tensor], settings: dict[str, float], golden: dict[str, Tensor]
) -> None:
    state = {f"clipmodel.{name}": value for name, value in weights.items()}
    state |= {"etf_proj1.weight": torch.eye(16), "etf_proj2.weight": 2 * torch.eye(16)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "model.pth")
    released = read_released(tmp_path / "model.pth", **settings)
    assert torch.equal(released.projections["text_proj"], torch.eye(16))
    assert torch.equal(released.projections["video_proj"], 2 * torch.eye(16))
    with torch.no_grad():
        _, global_ = released.retriever().eval().encode_video(golden["model/pixels"])
    torch.testing.assert_close(global_, golden["model/global_video"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_bare_weights_in_other_formats(
    tmp_path: Path, weights: dict[str, Tensor], settings: dict[str, float], golden: dict[str, Tensor], ending: str
) -> None:
    path = tmp_path / f"model.{ending}"
    if ending == "npz":
        np.savez(path, **{name: value.numpy() for name, value in weights.items()})
    else:
        save_file({f"clipmodel.{name}": value for name, value in weights.items()}, path)
    with torch.no_grad():
        _, global_ = read_released(path, **settings).retriever().eval().encode_video(golden["model/pixels"])
    torch.testing.assert_close(global_, golden["model/global_video"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("ending", ["pth", "safetensors", "npz"])
def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"model.{ending}"
    with pytest.raises(UserError, match=r"no such file"):
        read_released(path)
    path.write_bytes(b"hello" * 100)
    with pytest.raises(UserError, match=r"model\..*: not a released checkpoint"):
        read_released(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"top_k": 9}, "top_k = 9 exceeds experts = 5"),
        ({"adapter_layers": 13}, "adapter_layers = 13: the released weights have 12 vision blocks"),
        ({"dropout": 1.5}, "dropout"),
    ],
)
def test_settings_that_do_not_go_with_the_weights(
    weights: dict[str, Tensor], settings: dict[str, float], change: dict[str, float], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        convert(weights, **{**settings, **change})


def test_missing_weight_is_named(weights: dict[str, Tensor], settings: dict[str, float]) -> None:
    partial = {name: value for name, value in weights.items() if name != "visual_projection.weight"}
    with pytest.raises(UserError, match=r"visual_projection\.weight"):
        convert(partial, **settings)


def test_pickled_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="not a released checkpoint"):
        read_released(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()
