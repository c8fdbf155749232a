"""Annotations of the published benchmarks that are damaged, incomplete or not annotations at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stages.download
from structalign.data.clips import Clip, read_manifest
from structalign.data.datasets import msrvtt
from tests.helpers.errors import refused
from tests.helpers.raw_data import actnet_data, config_for, msrvtt_annotations, msrvtt_data, msrvtt_zip, source

pytestmark = pytest.mark.usefixtures("here", "small")


def download(data: dict[str, Any]) -> list[Clip]:
    stages.download.main(config_for(data, num_tasks=2))
    return read_manifest(f"data/raw/{data['name']}/manifest.jsonl")


# ActivityNet: a JSON object of videos with timestamps and sentences


def segment(times: str, sentences: str = '["x"]') -> str:
    return f'{{"v_0a": {{"timestamps": {times}, "sentences": {sentences}}}}}'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", r"train\.json: not UTF-8 JSON"),
        ("", r"train\.json: not UTF-8 JSON"),
        ("[" * 100_000, r"train\.json: not UTF-8 JSON"),
        ("[]", r"train\.json: must be a JSON object"),
        ("{}", r"train\.json: has no caption for video v_0a"),
        ('{"v_0a": {"sentences": ["x"]}}', r"train\.json: video v_0a: must have timestamps"),
        (segment("[]"), "v_0a: must have timestamps"),
        (segment("[[1]]"), "v_0a: must have timestamps"),
        (segment('[[1, "b"]]'), "v_0a: must have timestamps"),
        (segment("[[1, 2]]", "[3]"), "v_0a: must have timestamps"),
        (segment("[[-2, 1]]"), "v_0a: start = -2.0: must be a number of seconds"),
        (segment("[[1, NaN]]"), "v_0a: end = nan"),
        (segment("[[1, 2]]", '[" "]'), "v_0a: has a caption without a word"),
        (segment("[[1, 2]]", r'["\ud800"]'), "v_0a: .*invalid Unicode"),
    ],
)
def test_actnet_annotations_that_are_wrong(here: Path, content: str, said: str) -> None:
    data = actnet_data(here)
    (here / "train.json").write_text(content)
    with refused(said):
        download(data)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_actnet_annotations_are_utf_8(here: Path, encoding: str) -> None:
    data = actnet_data(here)
    text = (here / "train.json").read_text().replace("first", "für")
    (here / "train.json").write_bytes(json.dumps(json.loads(text), ensure_ascii=False).encode(encoding))
    if encoding == "utf-8-sig":
        assert any(clip.captions[0].startswith("für of") for clip in download(data))
    else:
        with refused(r"train\.json: not UTF-8 JSON"):
            download(data)


@pytest.mark.parametrize(
    ("videos", "said"),
    [
        (None, r"data\.videos is not set"),
        ("none", r"data\.videos = none: no such folder"),
        ("empty", "holds no video"),
    ],
)
def test_actnet_without_videos(here: Path, videos: str | None, said: str) -> None:
    (here / "empty").mkdir()
    data = actnet_data(here, videos=videos)
    with refused(said, leaves={"data/missing-videos.txt"}):
        download(data)


# MSR-VTT: one JSON file of sentences and videos, and the benchmark's CSV of test captions


def without_sentences(content: dict) -> dict:
    return {**content, "sentences": [row for row in content["sentences"] if row["video_id"] != "video0a"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_sentences, "no sentence for the video video0a"),
        (lambda _: {"sentences": [{"caption": "x"}], "videos": []}, "no annotation file"),
        (lambda _: {"sentences": 7}, "no annotation file"),
        (lambda _: {"something": []}, "no annotation file"),
    ],
)
def test_msrvtt_annotations_that_are_wrong(here: Path, change: Callable[[dict], dict], said: str) -> None:
    msrvtt_zip(here / "MSRVTT.zip", change(msrvtt_annotations()))
    data = msrvtt_data(here)
    with refused(said):
        download(data)


@pytest.mark.parametrize("blank", ["", "  ", "&nbsp;", "\u200b"])
def test_msrvtt_sentences_without_a_word_are_left_out(here: Path, blank: str) -> None:
    plain, more = msrvtt_annotations(), msrvtt_annotations()
    more["sentences"].append({**more["sentences"][0], "caption": blank})
    found = []
    for content in (plain, more):
        (here / "mine.json").write_text(json.dumps(content))
        found.append(msrvtt.read_annotations(here / "mine.json").captions)
    assert found[0] == found[1]


def test_msrvtt_ids_lead_nowhere_else(here: Path) -> None:
    msrvtt_zip(here / "MSRVTT.zip")
    hostile = msrvtt_annotations()
    hostile["videos"].append({"video_id": "../../evil", "category": 0, "split": "train"})
    hostile["sentences"].append({"video_id": "../../evil", "caption": "x"})
    (here / "mine.json").write_text(json.dumps(hostile))
    data = msrvtt_data(here, protocol="fewshot", annotations=source(here / "mine.json"))
    with refused(r"clip id '\.\./\.\./evil'"):
        download(data)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("key,video_id\n1,video0t\n", r"csv:1: lacks the column sentence"),
        ("video_id,sentence\nvideo0t,\n", r"csv:2: .*caption without a word"),
        ("video_id,sentence\nvideo0t,&nbsp;\n", r"csv:2: .*caption without a word"),
        ("video_id,sentence\nvideo0t,a\nvideo0t,b\n", r"csv:3: .*occurs twice"),
        ("video_id,sentence\nvideo0t,a\n", "no caption for the test video"),
        ("", r"test\.csv:1: lacks the column"),
        ("video_id,sentence\nvideo0t,a\n".encode("utf-16"), r"test\.csv: not a CSV in UTF-8"),
    ],
)
def test_msrvtt_test_captions_that_are_wrong(here: Path, content: str | bytes, said: str) -> None:
    msrvtt_zip(here / "MSRVTT.zip")
    data = msrvtt_data(here)
    (here / "test.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with refused(said):
        download(data)
