"""The user's own table of clips: what is refused with its line, and what is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import stages.download
from structalign.data.clips import Clip, read_manifest
from structalign.data.datasets import local
from tests.helpers.errors import refused
from tests.helpers.raw_data import HEADER, config_for, folder_of

ROOT = Path(__file__).resolve().parents[2]
ROW = "a.mp4,,,c,x,train\n"
GIVEN = {"clips.csv", "videos/a.mp4", "videos/b.mp4", "videos/sub/c.mkv"}

pytestmark = pytest.mark.usefixtures("here")


def download(content: str | bytes = HEADER + ROW, shots: int = 16, **changes: Any) -> list[Clip]:
    """Run the stage on a table in the working folder; `changes` are parameters of the data set."""
    Path("clips.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    videos = str(folder_of(Path.cwd()))
    data = {"name": "local", "protocol": "fewshot", "csv": "clips.csv", "videos": videos, **changes}
    stages.download.main(config_for(data, num_tasks=1, split={"shots": shots}))
    return read_manifest("data/raw/local/manifest.jsonl")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", r"csv:1: lacks the column video"),
        (HEADER, r"csv: holds no clip"),
        ("video,start,end,category,caption\n", r"csv:1: lacks the column split"),
        ("video;start;end;category;caption;split\n", r"csv:1: unknown column"),
        (HEADER.replace("split", "split,colour"), r"csv:1: unknown column 'colour'"),
        (HEADER.replace("end", "start"), r"csv:1: column start occurs 2 times"),
        ((HEADER + ROW).encode("utf-16"), r"csv:1: byte 0xff is not UTF-8"),
    ],
)
def test_a_table_without_the_right_columns_is_refused(content: str | bytes, said: str) -> None:
    with refused(said, leaves=GIVEN):
        download(content)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (",,,c,x,train", r"csv:2: a caption without a video"),
        (ROW + "b.mp4,,,c, ,train", r"csv:3: video 'b\.mp4' without a capt"),
        ("a.mp4,,,,x,train", r"csv:2: the category is empty"),
        ("a.mp4,,,c,x,everything", r"csv:2: split = 'everything': must be train.* or test"),
        ("a.mp4,,,c,x", r"csv:2: must have 6 fields"),
        ("a.mp4,,,c,x,y,train", r"csv:2: must have 6 fields"),
        ("a.mp4,one,,c,x,train", r"csv:2: start = 'one': must be seconds"),
        ("a.mp4,,1:30,c,x,train", r"csv:2: end = '1:30': must be seconds"),
        ("a.mp4,-1,,c,x,train", r"csv:2: start = '-1'"),
        ("a.mp4,nan,,c,x,train", r"csv:2: start = 'nan'"),
        ("a.mp4,1_0,,c,x,train", r"csv:2: start = '1_0'"),
        (f"a.mp4,,{'9' * 400},c,x,train", r"csv:2: .*end = inf"),
        (ROW + "b.mp4,,,c,&nbsp;,train", r"csv:3: video 'b\.mp4' has a caption without a word: '&nbsp;'"),
        (ROW + "b.mp4,,,c,\u200b,train", r"csv:3: video 'b\.mp4' has a caption without a word"),
        ("../clips.csv,,,c,x,train", r"csv:2: path .* is not allowed"),
        ("/etc/passwd,,,c,x,train", r"csv:2: path .* is not allowed"),
        (ROW + "a.mp4,,,d,y,train", r"csv:3: category = 'd', but 'c' .*2"),
        (ROW + "a.mp4,,,c,y,test", r"csv:3: split = 'test', but 'train' .*2"),
        (
            "a.mp4,,2,c,x,train\na.mp4,1,,c,y,test",
            r"clips\.csv:3: clips a_0-2 \(train, clips\.csv:2\) and a_1-end \(test\) show the same moments",
        ),
        ('a.mp4,,,c,"x,train\nb.mp4,,,c,y,test', r"csv:2: not a CSV"),
        ('a.mp4,,,c,"x"y,train', r"csv:2: not a CSV"),
        (f"a.mp4,,,c,{'x' * (2 << 20)},train", r"csv:2: not a CSV.*limit"),
        ("a.mp4,,,c,x\0y,train", r"csv:2: holds a zero byte"),
        ((ROW + "b.mp4,,,c,süß,train").encode("latin-1"), r"csv:3: byte 0xfc is not UTF-8"),
    ],
)
def test_a_bad_row_is_named(rows: str | bytes, said: str) -> None:
    content = HEADER.encode() + (rows if isinstance(rows, bytes) else rows.encode())
    with refused(said, leaves=GIVEN):
        download(content)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"csv": "none.csv"}, r"none\.csv: cannot be read"),
        ({"csv": None}, r"data\.csv is not set"),
        ({"videos": None}, r"data\.videos is not set"),
        ({"videos": "none"}, r"data\.videos = none: no such folder"),
    ],
)
def test_missing_files_are_named(changes: dict[str, Any], said: str) -> None:
    with refused(said, leaves=GIVEN):
        download(**changes)


def read(content: bytes) -> list[Clip]:
    Path("clips.csv").write_bytes(content)
    return local.read_csv(Path("clips.csv"))


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_quotes_commas_and_any_order_of_columns(newline: str, encoding: str) -> None:
    table = ' split , video,category,start,caption,end\ntrain,a.mp4,"a, b",,"he says ""hé, süß 🍕 日本""",\n\n'
    clips = read(table.replace("\n", newline).encode(encoding))
    assert clips == [Clip("a", "a.mp4", None, None, "a, b", "train", ('he says "hé, süß 🍕 日本"',), clips[0].origin)]


def test_a_segment_from_the_start_has_two_spellings() -> None:
    clips = read((HEADER + "a.mp4,,5,c,one,train\na.mp4,0,5,c,two,train\n").encode())
    assert [(clip.id, clip.captions) for clip in clips] == [("a_0-5", ("one", "two"))]


def test_clips_whose_names_would_be_the_same_are_told_apart() -> None:
    clips = read((HEADER + "a.mp4,0,5,c,one,train\na_0-5.mp4,,,c,two,train\n").encode())
    assert len({clip.id for clip in clips}) == 2
    assert all(clip.id.startswith("a_0-5_") for clip in clips)


def test_validation_clips_that_nothing_uses_are_named(caplog: pytest.LogCaptureFixture) -> None:
    rows = ["a.mp4,,,c,one,train", "a.mp4,,,c,two,train", "b.mp4,,,c,three,test", "sub/c.mkv,,,c,four,val"]
    download(HEADER + "\n".join(rows), shots=1)
    assert "1 validation clips are not used: split.validation = 0" in caplog.text


def test_long_captions_stay_whole_and_repeated_rows_count_once() -> None:
    clips = read((HEADER + f"a.mp4,,,c,{'long ' * 2000},train\n" + "b.mp4,,,c,x,train\n" * 3).encode())
    assert len(clips[0].captions[0]) == 9999
    assert [len(clip.captions) for clip in clips] == [1, 1]


def test_the_sample_is_a_table() -> None:
    clips = local.read_csv(ROOT / "docs/sample.csv")
    assert [(clip.category, clip.split, len(clip.captions)) for clip in clips] == [
        ("cooking", "train", 2),
        ("cooking", "test", 1),
        ("space", "train", 1),
        ("space", "test", 1),
    ]
