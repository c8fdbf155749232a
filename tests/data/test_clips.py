"""The manifest: what is written is what is read, and nothing harmful or contradictory gets through."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from structalign.data.clips import Clip, read_manifest, write_manifest
from structalign.util.errors import UserError

GOOD = {
    "id": "v_-x1",
    "video": "videos/a b.mp4",
    "start": 0.5,
    "end": 3.0,
    "category": "cooking",
    "split": "train",
    "captions": ("a man cooks", "jemand kocht süß 🍕"),
}


def clip(**changes: object) -> Clip:
    return Clip(**{**GOOD, **changes})


captions = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=1, max_size=3
)


@given(captions, st.none() | st.floats(0, 1e6), st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,119}", fullmatch=True))
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], start: float | None, name: str
) -> None:
    path = tmp_path_factory.mktemp("manifest") / "manifest.jsonl"
    clips = [clip(captions=tuple(texts), start=start, end=None), clip(id=f"x{name}"[:120], video="b.mp4")]
    write_manifest(clips, path)
    first = path.read_bytes()
    assert read_manifest(path) == clips
    write_manifest(read_manifest(path), path)
    assert path.read_bytes() == first


def test_a_clip_that_exists_is_a_valid_one() -> None:
    """What a manifest may not hold (tests/bad_cases.py) cannot be made in memory either."""
    for changes in (
        {"id": "a/b"},
        {"video": "../a.mp4"},
        {"start": 3.0},
        {"captions": ()},
        {"captions": ("\ud800",)},
    ):
        with pytest.raises(UserError):
            clip(**changes)


def test_contradictions_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    for clips in ([], [clip(), clip()], [clip(), clip(id="b", split="test")]):
        with pytest.raises(UserError):
            write_manifest(clips, path)
    assert list(tmp_path.iterdir()) == []
