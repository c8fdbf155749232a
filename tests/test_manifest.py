"""The manifest: what is written is what is read, and nothing harmful or contradictory gets through."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from structalign.data.manifest import Clip, raw_folder, read_manifest, video_root, write_manifest
from structalign.errors import UserError

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


BAD = [
    ({"id": ""}, "id"),
    ({"id": "../../etc/passwd"}, "id"),
    ({"id": "a/b"}, "id"),
    ({"id": "a\\b"}, "id"),
    ({"id": ".hidden"}, "id"),
    ({"id": "-rf"}, "id"),
    ({"id": "a\n"}, "id"),
    ({"id": "a" * 121}, "id"),
    ({"id": "naïve"}, "id"),
    ({"video": "/etc/passwd"}, "path"),
    ({"video": "../secret.mp4"}, "path"),
    ({"video": "a/../../secret.mp4"}, "path"),
    ({"video": "C:\\secret.mp4"}, "path"),
    ({"video": "C:secret.mp4"}, "path"),
    ({"video": "a\0.mp4"}, "path"),
    ({"video": ""}, "path"),
    ({"start": -1.0}, "start"),
    ({"start": float("nan")}, "start"),
    ({"end": float("inf")}, "end"),
    ({"start": 3.0}, "less than"),
    ({"start": None, "end": 0.0}, "less than"),
    ({"category": "  "}, "category"),
    ({"split": "val"}, "train'? or '?test"),
    ({"captions": ()}, "caption"),
    ({"captions": ("a", " \n")}, "caption"),
    ({"captions": ("\ud800",)}, "surrogate"),
]


@pytest.mark.parametrize(("changes", "named"), BAD)
def test_bad_clip_is_refused(changes: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        clip(**changes)


@pytest.mark.parametrize(("changes", "named"), [case for case in BAD if "\\ud800" not in repr(case)])
def test_bad_line_is_named(tmp_path: Path, changes: dict, named: str) -> None:
    path = tmp_path / "manifest.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, "id": "other", **changes}) + "\n")
    with pytest.raises(UserError, match=rf"manifest\.jsonl:2: .*{named}"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "JSON"),
        ("[]", "dict|object"),
        ("", "JSON"),
        (json.dumps({**GOOD, "id": 7}), "id"),
        (json.dumps({**GOOD, "id": "z", "start": "3"}), "start"),
        (json.dumps({**GOOD, "id": "z", "captions": "one"}), "captions"),
        (json.dumps({**GOOD, "id": "z", "colour": "red"}), "colour"),
        (json.dumps({key: value for key, value in GOOD.items() if key != "video"}), "video"),
        (json.dumps(GOOD), "twice"),
        (json.dumps({**GOOD, "split": "test"}), "train and in test"),
        (json.dumps({**GOOD, "id": "z", "split": "test"}), "video .* train and in test"),
    ],
)
def test_bad_second_line_is_named(tmp_path: Path, line: str, named: str) -> None:
    path = tmp_path / "manifest.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{line}\n{json.dumps({**GOOD, 'id': 'last'})}\n")
    with pytest.raises(UserError, match=rf"manifest\.jsonl:2: .*({named})"):
        read_manifest(path)


def test_no_manifest_and_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    with pytest.raises(UserError, match="no such file"):
        read_manifest(path)
    path.write_text("")
    with pytest.raises(UserError, match="no clip"):
        read_manifest(path)
    path.write_bytes(json.dumps(GOOD, ensure_ascii=False).encode("latin-1", "replace"))
    with pytest.raises(UserError, match="UTF-8"):
        read_manifest(path)


def test_contradictions_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    for clips in ([], [clip(), clip()], [clip(), clip(id="b", split="test")]):
        with pytest.raises(UserError):
            write_manifest(clips, path)
    assert list(tmp_path.iterdir()) == []


def test_where_videos_are() -> None:
    ours = SimpleNamespace(data=SimpleNamespace(name="msrvtt"))
    theirs = SimpleNamespace(data=SimpleNamespace(name="local", videos="/srv/videos"))
    assert video_root(ours) == raw_folder(ours) == Path("data/raw/msrvtt")
    assert video_root(theirs) == Path("/srv/videos")
