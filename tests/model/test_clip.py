"""CLIP: where its weights come from, how they are stored, and what is read from it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file
from torch import nn

from structalign.config.schema import ModelConfig
from structalign.model.clip import (
    ClipInfo,
    build_clip,
    end_positions,
    load_clip,
    open_clip_backbone,
    project_text,
    save_clip,
    text_states,
    word_mask,
)
from structalign.model.retriever import Retriever
from structalign.util.errors import UserError
from tests.helpers.errors import refused
from tests.helpers.split_files import Runs
from tests.helpers.video_files import cut

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
INFO = ClipInfo("small", SMALL, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
START, END = 49406, 49407


@pytest.fixture(autouse=True)
def _plain_attention() -> Iterator[None]:
    """Take nn.MultiheadAttention's shortcut out of the comparison: it rounds in another order."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


@pytest.fixture
def clip() -> CLIP:
    torch.manual_seed(0)
    return CLIP(**SMALL).eval()


def plain(clip: nn.Module) -> Retriever:
    model = ModelConfig(
        vision_adapter="none",
        adapter_layers=0,
        vision_rank=1,
        text_adapter="none",
        experts=1,
        top_k=1,
        rank=1,
        lora_alpha=1,
        dropout=0,
    )
    return Retriever(clip, INFO, model, num_tasks=1, seed=0).eval()


# Storage


def test_saved_and_loaded_clip_gives_the_same_bits(clip: CLIP, tmp_path: Path) -> None:
    save_clip(clip, INFO, tmp_path)
    loaded, info = load_clip(tmp_path)
    assert info == INFO
    pixels, tokens = (
        torch.randn(2, 3, 32, 32),
        open_clip.SimpleTokenizer(context_length=12)(["a cat", "two dogs run"]),
    )
    with torch.no_grad():
        assert torch.equal(loaded.eval().encode_image(pixels), clip.encode_image(pixels))
        assert torch.equal(loaded.encode_text(tokens), clip.encode_text(tokens))


def test_loading_leaves_no_weight_without_a_value(clip: CLIP, tmp_path: Path) -> None:
    save_clip(clip, INFO, tmp_path)
    loaded, _ = load_clip(tmp_path)
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])


def test_clip_with_a_text_tower_of_its_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    clip = CustomTextCLIP(**SMALL).eval()
    save_clip(clip, ClipInfo("custom", {**SMALL, "custom_text": True}, [0.5] * 3, [0.5] * 3), tmp_path)
    retriever = plain(load_clip(tmp_path)[0])
    tokens = open_clip.SimpleTokenizer(context_length=12)(["a cat"])
    with torch.no_grad():
        assert torch.equal(retriever.encode_text(tokens, 1)[2], clip.encode_text(tokens))


def test_weights_of_another_size_are_named(clip: CLIP) -> None:
    weights = clip.state_dict()
    weights["visual.proj"] = torch.zeros(32, 8)
    with pytest.raises(UserError, match=r"visual\.proj is \(32, 8\), expected \(32, 16\)"):
        build_clip(SMALL, weights)


def test_missing_and_unknown_weights_are_named(clip: CLIP) -> None:
    weights = clip.state_dict()
    weights["surplus"] = weights.pop("ln_final.bias")
    with pytest.raises(UserError, match=r"1 missing, such as ln_final\.bias; 1 unknown, such as surplus"):
        build_clip(SMALL, weights)


# open_clip's models


@pytest.fixture
def small_in_open_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make the small architecture known to open_clip, so that no test builds or fetches a real one."""
    import open_clip.factory

    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    open_clip.factory._MODEL_CONFIGS["small"] = SMALL
    return "small"


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_weights_from_a_local_file(small_in_open_clip: str, clip: CLIP, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"weights.{ending}"
    save = torch.save if ending == "pt" else save_file
    save(clip.state_dict(), path)
    loaded, info = open_clip_backbone(small_in_open_clip, None, str(path))
    assert all(torch.equal(value, clip.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert (info.image_size, info.context_length) == (32, 12)
    assert info.mean == list(open_clip.OPENAI_DATASET_MEAN)
    save_clip(loaded, info, tmp_path)
    build_clip(load_clip(tmp_path)[1].model, clip.state_dict())


def test_failed_fetch_is_one_line_and_logs_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unplugged(*_: object, **__: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr("open_clip.factory.download_pretrained", unplugged)
    with pytest.raises(UserError, match=r"backbone\.pretrained = 'openai'.* no route to host"):
        open_clip_backbone("ViT-B-32-quickgelu", "openai", None)
    assert not caplog.records
    logging.getLogger().error("heard again")
    assert [record.message for record in caplog.records] == ["heard again"]


# Features


def test_words_are_between_start_and_end() -> None:
    tokens = torch.tensor([[START, 7, 8, END, 0], [START, END, 0, 0, 0], [START, 5, 6, 7, END]])
    assert end_positions(tokens).tolist() == [3, 1, 4]
    assert word_mask(tokens).tolist() == [
        [False, True, True, False, False],
        [False, False, False, False, False],
        [False, True, True, True, False],
    ]


def test_states_are_those_behind_clips_own_text_feature(clip: CLIP) -> None:
    """The end token's state leads to `encode_text`; the word states are those of the same pass."""
    seen = []
    hook = clip.ln_final.register_forward_hook(lambda *arguments: seen.append(arguments[-1]))
    tokens = open_clip.SimpleTokenizer(context_length=12)(["a red circle", "", "one two three four"])
    with torch.no_grad():
        expected = clip.encode_text(tokens)
        states = text_states(clip, tokens)
    hook.remove()
    assert torch.equal(states, seen[0])
    assert torch.equal(project_text(clip, states[torch.arange(3), end_positions(tokens)]), expected)


@pytest.mark.parametrize("filler", [0, 17])
def test_padding_changes_nothing(clip: CLIP, filler: int) -> None:
    retriever = plain(clip)
    short = retriever.tokenize(["a red circle", "a blue square"])
    assert short.shape[1] < 12
    full = torch.nn.functional.pad(short, (0, 12 - short.shape[1]), value=filler)
    with torch.no_grad():
        words, mask, global_ = retriever.encode_text(short, 1)
        same_words, same_mask, same_global = retriever.encode_text(full, 1)
    assert mask.sum() == same_mask.sum() == 6
    torch.testing.assert_close(words[mask], same_words[same_mask], atol=1e-5, rtol=0)  # float32 rounding
    torch.testing.assert_close(global_, same_global, atol=1e-5, rtol=0)


def test_tokens_are_as_long_as_the_longest_text_needs(clip: CLIP) -> None:
    retriever = plain(clip)
    assert retriever.tokenize(["a cat", "a red circle"]).tolist() == [
        [START, 320, 2368, END, 0],
        [START, 320, 736, 7117, END],
    ]
    assert retriever.tokenize([""]).tolist() == [[START, END]]
    cut = retriever.tokenize(["word " * 50])
    assert cut.shape == (1, 12)
    assert cut[0, -1] == END
    assert retriever.word_pieces("A red circle") == [("a", [0]), ("red", [1]), ("circle", [2])]
    pieces = retriever.word_pieces("a 🍕 語")
    assert [piece for piece, _ in pieces] == ["a", "🍕", "語"], "no character is cut in two"
    assert [places for _, places in pieces] == [[0], [1], [2, 3]]


def test_captions_that_are_cut_are_counted(clip: CLIP) -> None:
    retriever = plain(clip)
    assert retriever.count_cut(["word " * 10, "word " * 11, "a cat"]) == 1, "12 tokens, with those at both ends"


def test_frame_features_are_clips_image_features(clip: CLIP) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 3, 32, 32), dtype=np.uint8))
    mean, std = torch.tensor(INFO.mean).view(3, 1, 1), torch.tensor(INFO.std).view(3, 1, 1)
    with torch.no_grad():
        frames, global_ = plain(clip).encode_video(pixels)
        expected = clip.encode_image(((pixels.flatten(0, 1).float() / 255) - mean) / std)
    assert torch.equal(frames.flatten(0, 1), expected)
    torch.testing.assert_close(global_, expected.view(2, 3, 16).mean(dim=1))


# Bad weights, and a damaged copy


def nan_weights(path: Path) -> None:
    torch.manual_seed(0)
    state = CLIP(**SMALL).state_dict()
    state["visual.proj"][3, 4] = torch.nan
    save_file(state, path)


def truncated_weights(path: Path) -> None:
    save_file(CLIP(**SMALL).state_dict(), path)
    cut(path, 0.7)


UNREADABLE = r"backbone\.weights = 'bad\.\w+': cannot load small"


@pytest.mark.usefixtures("small_in_open_clip")
@pytest.mark.parametrize(
    ("endings", "write", "said"),
    [
        ("pt safetensors", lambda path: path.write_bytes(b"hello" * 100), UNREADABLE),
        ("pt safetensors", Path.touch, UNREADABLE),
        ("pt safetensors", lambda path: torch.save([1, 2], path), UNREADABLE),
        ("pt safetensors", lambda path: torch.save({"state_dict": Runs(os.mkdir, "ran")}, path), UNREADABLE),
        ("pt", lambda path: torch.save({"a": torch.zeros(3)}, path), UNREADABLE),
        ("safetensors", lambda path: save_file({"a": torch.zeros(3)}, path), UNREADABLE),
        ("safetensors", truncated_weights, UNREADABLE),
        ("safetensors", nan_weights, r"visual\.proj holds NaN or infinity"),
    ],
    ids=["garbage", "empty", "a list", "pickled code", "another model's", "another's", "truncated", "NaN"],
)
def test_a_file_without_usable_weights(here: Path, endings: str, write: Callable[[Path], object], said: str) -> None:
    for ending in endings.split():
        write(here / f"bad.{ending}")
        with refused(said):
            open_clip_backbone("small", None, f"bad.{ending}")
    assert not (here / "ran").exists()


@pytest.mark.parametrize(
    ("name", "tag", "path", "said"),
    [
        ("ViT-B-32-quickgelu", None, "openai", "no such file; a tag goes into backbone.pretrained"),
        ("ViT-B-32-quickgelu", None, "gone.pt", r"backbone\.weights = 'gone.pt': no such file$"),
        ("ViT-Z-99", "openai", None, "no such model"),
        ("ViT-B-32", None, None, "both null"),
        ("ViT-B-32", "nonsense", None, "open_clip's tags for ViT-B-32: openai"),
        ("ViT-B-32", "here.pt", None, "tags for ViT-B-32: openai.*; a file goes into backbone.weights"),
        ("ViT-B-32", "openai", None, "set backbone.architecture=ViT-B-32-quickgelu"),
        ("ViT-B-16-SigLIP", "webli", None, "plain CLIP"),
        ("roberta-ViT-B-32", "laion2b_s12b_b32k", None, "Hugging Face"),
        ("coca_ViT-B-32", "laion2b_s13b_b90k", None, "captioner"),
        ("RN50-quickgelu", "openai", None, "no ViT"),
        ("MobileCLIP-S1", "datacompdr", None, "not causal"),
    ],
)
def test_models_that_cannot_serve(here: Path, name: str, tag: str | None, path: str | None, said: str) -> None:
    (here / "here.pt").touch()
    with refused(said):
        open_clip_backbone(name, tag, path)


def describe(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        facts = json.loads((folder / "clip.json").read_text())
        change(facts)
        (folder / "clip.json").write_text(json.dumps(facts))

    return rewrite


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: cut(folder / "clip.safetensors", 0.5), r"clip\.safetensors: damaged"),
        (lambda folder: (folder / "clip.safetensors").unlink(), r"clip\.safetensors: no such"),
        (describe(lambda facts: facts.pop("mean")), r"clip\.json: not a CLIP description"),
        (describe(lambda facts: facts["model"].pop("embed_dim")), "not an open_clip model config"),
        (describe(lambda facts: facts["model"]["vision_cfg"].update(x=1)), "not an open_clip model"),
        (describe(lambda facts: facts["model"]["vision_cfg"].update(width=64)), "weights do not fit"),
    ],
)
def test_a_damaged_copy_is_named(clip: CLIP, here: Path, damage: Callable[[Path], object], said: str) -> None:
    save_clip(clip, INFO, here)
    damage(here)
    with refused(said):
        load_clip(Path("."))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=200), min_size=1, max_size=4))
def test_any_caption_becomes_words_between_start_and_end(captions: list[str]) -> None:
    retriever = small_retriever()
    tokens = retriever.tokenize(captions)  # [T,L]
    assert tokens.shape[0] == len(captions)
    assert 2 <= tokens.shape[1] <= INFO.context_length
    assert (tokens[:, 0] == START).all()
    for row, mask in zip(tokens, retriever.word_mask(tokens), strict=True):
        words = row[mask]
        assert row[len(words) + 1] == END
        assert ((words != START) & (words != END)).all()


@cache
def small_retriever() -> Retriever:
    return plain(CLIP(**SMALL))
