"""The manifest: what is written is what is read, and nothing harmful or contradictory gets through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from structalign.data.clips import Clip, is_readable, read_manifest, write_manifest
from structalign.util.errors import UserError
from tests.helpers.errors import refused

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
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(is_readable), min_size=1, max_size=3
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


def test_invalid_clips_cannot_be_made() -> None:
    """What a manifest may not hold cannot be made in memory either."""
    for changes in (
        {"id": "a/b"},
        {"video": "../a.mp4"},
        {"captions": ("a man", "&nbsp;\u200b")},
        {"captions": ()},
        {"captions": ("\ud800",)},
    ):
        with pytest.raises(UserError):
            clip(**changes)


def test_contradictions_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    for clips in ([], [clip(), clip()], [clip(), clip(id="b", start=2.0, split="test")]):
        with pytest.raises(UserError):
            write_manifest(clips, path)
    assert list(tmp_path.iterdir()) == []


BAD_VALUES = [
    *(
        ("id", value)
        for value in ("", "../../etc/passwd", "a/b", "a\\b", ".hidden", "-rf", "a\n", "a" * 121, "naïve", 7)
    ),
    *(("video", value) for value in ("/etc/passwd", "../secret.mp4", "a/../../secret.mp4", "C:\\a.mp4", "C:a.mp4")),
    *(("video", value) for value in ("a\0.mp4", "")),
    *(("start", value) for value in (-1.0, float("nan"), "3")),
    ("end", float("inf")),
    ("category", "  "),
    ("split", "everything"),
    *(("captions", value) for value in ([], ["a", " \n"], "one")),
    ("colour", "red"),
]
SAID = {"id": "id", "video": "path", "start": "start", "end": "end", "captions": "caption"}


def write_with_second_line(line: str) -> None:
    """Write a manifest of three lines."""
    first, last = json.dumps(GOOD), json.dumps({**GOOD, "id": "last"})
    Path("manifest.jsonl").write_text(f"{first}\n{line}\n{last}\n")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("key", "value"), BAD_VALUES)
def test_a_bad_value_is_named_with_its_line(key: str, value: object) -> None:
    write_with_second_line(json.dumps({**GOOD, "id": "z", key: value}))
    with refused(rf"manifest\.jsonl:2: .*({SAID.get(key, key)})"):
        read_manifest("manifest.jsonl")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "JSON"),
        ("[]", "dict|object"),
        ("", "JSON"),
        (json.dumps({key: value for key, value in GOOD.items() if key != "video"}), "video"),
        (json.dumps(GOOD), "twice"),
        (json.dumps({**GOOD, "split": "test"}), "train and in test"),
        (json.dumps({**GOOD, "id": "z", "split": "test"}), "show the same moments of video"),
    ],
)
def test_a_bad_line_is_named(line: str, said: str) -> None:
    write_with_second_line(line)
    with refused(rf"manifest\.jsonl:2: .*({said})"):
        read_manifest("manifest.jsonl")


@pytest.mark.parametrize(
    ("content", "said"), [(None, "no such file"), (b"", "no clip"), ('{"id": "süß"}'.encode("latin-1"), "UTF-8")]
)
def test_a_missing_or_unreadable_manifest_is_refused(here: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (here / "manifest.jsonl").write_bytes(content)
    with refused(said):
        read_manifest("manifest.jsonl")


@pytest.mark.parametrize(
    ("segment", "fits"), [((3.0, 9.0), True), ((0.0, 0.5), True), ((2.9, None), False), ((None, None), False)]
)
def test_train_and_test_may_be_different_moments_of_a_video(
    tmp_path: Path, segment: tuple[float | None, float | None], fits: bool
) -> None:
    other = clip(id="b", split="test", start=segment[0], end=segment[1])
    if fits:
        write_manifest([clip(), other], tmp_path / "manifest.jsonl")
    else:
        with pytest.raises(UserError, match=r"v_-x1 \(train\) and b \(test\) show the same moments of video"):
            write_manifest([clip(), other], tmp_path / "manifest.jsonl")


def test_the_users_line_is_kept(tmp_path: Path) -> None:
    clips = [clip(origin="mine.csv:7"), clip(id="b", video="b.mp4")]
    write_manifest(clips, tmp_path / "manifest.jsonl")
    assert read_manifest(tmp_path / "manifest.jsonl") == clips
    assert (tmp_path / "manifest.jsonl").read_text().count("origin") == 1
