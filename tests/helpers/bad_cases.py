"""The table of bad input: what is wrong, how it is made, and what has to come of it.

A case is prepared in an empty folder, the working folder of the stage or function that it is then handed to. It is
refused with one line that holds the given words (a regular expression), or accepted, with what is expected of it.
`tests/test_bad_input.py` tries them all; docs/bad-input.md shows what they said.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import open_clip.factory
import torch
import yaml
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import save_file

import stages.download
import stages.frames
import stages.split
from structalign.cli.params import compose
from structalign.config.schema import Config
from structalign.data.archive import MAX_BYTES, read_member
from structalign.data.archive import members as list_members
from structalign.data.clips import Clip, read_manifest, write_manifest
from structalign.data.decode import sample_indices
from structalign.data.download import fetch
from structalign.data.frames import FrameStore
from structalign.data.split import few_shot_split, read_missing, read_published, read_task
from structalign.losses.etf import simplex_etf
from structalign.model.clip import ClipInfo, load_clip, open_clip_backbone, save_clip
from structalign.retrieval.gallery import TaskGallery, load_galleries, save_index
from structalign.training.learner import Learner
from structalign.training.resume import fingerprint
from structalign.util.checkpoint import Checkpoint
from tests.helpers.params import ROOT
from tests.helpers.params import config as default_config
from tests.helpers.params import params as default_params
from tests.helpers.raw_data import (
    HEADER,
    actnet_data,
    config_for,
    folder_of,
    msrvtt_annotations,
    msrvtt_data,
    msrvtt_zip,
    source,
)
from tests.helpers.remote import CONTENT, SHA256, Server, zip_of
from tests.helpers.split_files import Runs, clips_of, dump, published
from tests.helpers.video_files import (
    counted,
    cut,
    moving,
    numbers,
    patch,
    rotate,
    write_empty_mp4,
    write_sound,
    write_video,
)

Act = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes
    ----------
    area, wrong : str
        What kind of input, and what is wrong with it; unique together.
    prepare : callable
        Makes the input in a folder and returns the call that meets it.
    refused : str
        What the error line holds; empty where the input is accepted.
    accepted : str
        What becomes of accepted input, in words; `check` tells whether it did.
    """

    area: str
    wrong: str
    prepare: Callable[[Path], Act]
    refused: str = ""
    accepted: str = ""
    check: Callable[[Any], bool] = bool


# Parameters


def params(key: str, value: Any) -> Callable[[Path], Act]:
    def prepare(here: Path) -> Act:
        values = default_params()
        *path, last = key.split(".")
        section = values
        for part in path:
            section = section[part]
        if value is ABSENT:
            del section[last]
        else:
            section[last] = value
        return params_text(yaml.safe_dump(values))(here)

    return prepare


def params_text(text: str | bytes) -> Callable[[Path], Act]:
    def prepare(here: Path) -> Act:
        (here / "params.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return lambda: Config.load("params.yaml")

    return prepare


def override(*overrides: str) -> Callable[[Path], Act]:
    def prepare(here: Path) -> Act:
        (here / "conf").symlink_to(ROOT / "conf")
        return lambda: compose(list(overrides), here / "params.yaml")

    return prepare


ABSENT = object()

PARAMS = [
    ("K = 6 with the tasks of 5", params("K", 6), "K = 6 disagrees with tasks"),
    ("K a word", params("K", "five"), "K = 'five'"),
    ("last of another K", params("last", "04"), "disagrees with tasks"),
    ("negative seed", params("seed", -1), "seed = -1"),
    ("seed a word", params("seed", "zero"), "seed = 'zero'"),
    ("no thread", params("threads", 0), "threads = 0"),
    ("unknown data set", params("data.name", "imagenet"), "data.name = 'imagenet'.*shapes, msrvtt, actnet, local"),
    ("protocol that shapes lack", params("data.protocol", "published"), "data.protocol = 'published'"),
    ("no category", params("data.categories", 0), "data.categories = 0"),
    ("no frame", params("frames.num_frames", 0), "frames.num_frames = 0"),
    ("half a frame", params("frames.num_frames", 1.5), "frames.num_frames = 1.5"),
    ("fewer than none missing", params("frames.allow_missing", -1), "frames.allow_missing = -1"),
    ("unknown key", params("frames.colour", "blue"), "frames.colour: unknown key"),
    ("no shot", params("split.shots", 0), "split.shots = 0"),
    ("unknown adapter", params("model.vision_adapter", "prompt"), "model.vision_adapter = 'prompt'.*frame_fusion"),
    ("fewer than no adapter layers", params("model.adapter_layers", -1), r"model\.adapter_layers = -1"),
    ("adapter layers a word", params("model.adapter_layers", "most"), r"model\.adapter_layers = 'most'.*'all'"),
    ("more experts asked than there are", params("model.top_k", 50), "top_k = 50 exceeds experts"),
    ("dropout of everything", params("model.dropout", 1.0), "model.dropout = 1.0"),
    ("share above 1", params("similarity.alpha", 1.1), "similarity.alpha = 1.1"),
    ("a simplex of one class", params("etf.num_classes", 1), "etf.num_classes = 1"),
    ("infinite weight", params("loss.crp_weight", float("inf")), "loss.crp_weight = inf"),
    ("weight NaN", params("loss.crp_weight", float("nan")), "loss.crp_weight = nan"),
    ("temperature 0", params("loss.temperature", 0), "loss.temperature = 0"),
    ("batches of one", params("train.batch_size", 1), "train.batch_size = 1"),
    ("unknown selection", params("train.select", "best"), "train.select = 'best'"),
    ("rate 0", params("train.lr_first", 0), "train.lr_first = 0"),
    ("no device", params("train.devices", 0), "train.devices = 0"),
    ("devices a word", params("train.devices", "all"), "train.devices = 'all'"),
    ("compile now and then", params("train.compile", "often"), "train.compile = 'often'"),
    ("workers a word", params("machine.workers", "many"), "machine.workers = 'many'"),
    ("a section that is a number", params("loss", 3), "loss = 3"),
    *((f"{key} absent", params(key, ABSENT), f"{key}: missing") for key in ("K", "data", "loss", "train")),
    ("broken YAML", params_text("K: ["), "not valid YAML"),
    ("words alone", params_text("just words"), "keys and values"),
    ("empty file", params_text(""), "keys and values"),
    ("not UTF-8", params_text("about: süß".encode("latin-1")), "not valid YAML"),
    ("a Python object", params_text("K: !!python/object/apply:os.mkdir [ran]"), "not valid YAML"),
    ("no file", lambda here: lambda: Config.load("params.yaml"), r"structalign params"),
    ("-S K=0", override("K=0"), "K = 0"),
    ("-S K=100", override("K=100"), "K = 100"),
    ("-S evaluate.rerank=0", override("evaluate.rerank=0"), r"evaluate\.rerank = 0"),
    ("-S evaluate.index=faiss", override("evaluate.index=faiss"), "evaluate: index = 'faiss' needs rerank"),
    ("-S K=two", override("K=two"), "K = 'two'"),
    ("-S data=cifar", override("data=cifar"), "data/cifar"),
    ("-S method=magic", override("method=magic"), "method/magic"),
    ("-S train.learning_rate=1", override("train.learning_rate=1"), r"train\.learning_rate"),
    ("-S loss.etf_weight=-0.5", override("loss.etf_weight=-0.5"), r"loss\.etf_weight = -0\.5"),
    (
        "a frame of 600 classes in 512 dimensions",
        lambda here: lambda: simplex_etf(600, 512),
        "600 equiangular prototypes need at least 599 dimensions, and features have 512",
    ),
]


# The user's own table


def table(content: str | bytes) -> Callable[[Path], Act]:
    def prepare(here: Path) -> Act:
        (here / "clips.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
        data = {"name": "local", "protocol": "fewshot", "csv": "clips.csv", "videos": str(folder_of(here))}
        return downloaded(data, num_tasks=1)

    return prepare


def downloaded(data: dict[str, Any], num_tasks: int = 2) -> Act:
    def act() -> list[Clip]:
        stages.download.main(config_for(data, num_tasks))
        return read_manifest(f"data/raw/{data['name']}/manifest.jsonl")

    return act


def local(**changes: Any) -> Callable[[Path], Act]:
    def prepare(here: Path) -> Act:
        (here / "clips.csv").write_text(HEADER + "a.mp4,,,c,x,train\n")
        data = {"name": "local", "protocol": "fewshot", "csv": "clips.csv", "videos": str(folder_of(here))}
        return downloaded({**data, **changes}, num_tasks=1)

    return prepare


CSV = [
    ("empty", table(""), r"csv:1: lacks the column video"),
    ("columns alone", table(HEADER), r"csv: holds no clip"),
    ("a column missing", table("video,start,end,category,caption\n"), r"csv:1: lacks the column split"),
    ("semicolons", table("video;start;end;category;caption;split\n"), r"csv:1: unknown column"),
    ("unknown column", table(HEADER.replace("split", "split,colour")), r"csv:1: unknown column 'colour'"),
    ("a column twice", table(HEADER.replace("end", "start")), r"csv:1: column start occurs 2 times"),
    ("no video", table(HEADER + ",,,c,x,train\n"), r"csv:2: a caption without a video"),
    ("no caption", table(HEADER + "a.mp4,,,c,x,train\nb.mp4,,,c, ,train\n"), r"csv:3: video b\.mp4 without a capt"),
    ("no category", table(HEADER + "a.mp4,,,,x,train\n"), r"csv:2: the category is empty"),
    ("unknown side", table(HEADER + "a.mp4,,,c,x,val\n"), r"csv:2: split = 'val': must be train or test"),
    ("too few fields", table(HEADER + "a.mp4,,,c,x\n"), r"csv:2: must have 6 fields"),
    ("comma without quotes", table(HEADER + "a.mp4,,,c,x,y,train\n"), r"csv:2: must have 6 fields"),
    ("start a word", table(HEADER + "a.mp4,one,,c,x,train\n"), r"csv:2: start = 'one': must be seconds"),
    ("minutes", table(HEADER + "a.mp4,,1:30,c,x,train\n"), r"csv:2: end = '1:30': must be seconds"),
    ("negative start", table(HEADER + "a.mp4,-1,,c,x,train\n"), r"csv:2: start = '-1'"),
    ("start NaN", table(HEADER + "a.mp4,nan,,c,x,train\n"), r"csv:2: start = 'nan'"),
    ("start as Python writes it", table(HEADER + "a.mp4,1_0,,c,x,train\n"), r"csv:2: start = '1_0'"),
    ("infinite end", table(HEADER + f"a.mp4,,{'9' * 400},c,x,train\n"), r"csv:2: .*end = inf"),
    (
        "start at the end",
        table(HEADER + "a.mp4,2,2,c,x,train\n"),
        r"csv:2: .*start = 2.0 must be less than end = 2.0",
    ),
    ("start after the end", table(HEADER + "a.mp4,3,2,c,x,train\n"), r"csv:2: .*start = 3.0 must be less than"),
    ("a video that is not there", table(HEADER + "none.mp4,,,c,x,train\n"), r"csv:2: video none\.mp4 is not in "),
    ("a folder as video", table(HEADER + "sub,,,c,x,train\n"), r"csv:2: video sub is not in "),
    ("../ in a path", table(HEADER + "../clips.csv,,,c,x,train\n"), r"csv:2: path .* is not allowed"),
    ("absolute path", table(HEADER + "/etc/passwd,,,c,x,train\n"), r"csv:2: path .* is not allowed"),
    (
        "two categories",
        table(HEADER + "a.mp4,,,c,x,train\na.mp4,,,d,y,train\n"),
        r"csv:3: category = 'd', but 'c' .*2",
    ),
    ("two sides", table(HEADER + "a.mp4,,,c,x,train\na.mp4,,,c,y,test\n"), r"csv:3: split = 'test', but 'train' .*2"),
    (
        "parts of a video on two sides",
        table(HEADER + "a.mp4,,1,c,x,train\na.mp4,1,,c,y,test\n"),
        r"csv:3: video a\.mp4 is in test, and in train at .*csv:2",
    ),
    ("open quote", table(HEADER + 'a.mp4,,,c,"x,train\nb.mp4,,,c,y,test\n'), r"csv:2: not a CSV"),
    ("text after a quote", table(HEADER + 'a.mp4,,,c,"x"y,train\n'), r"csv:2: not a CSV"),
    ("a caption of 2 MB", table(HEADER + f"a.mp4,,,c,{'x' * (2 << 20)},train\n"), r"csv:2: not a CSV.*limit"),
    (
        "Latin-1",
        table((HEADER + "a.mp4,,,c,ok,train\nb.mp4,,,c,süß,train\n").encode("latin-1")),
        r"csv:3: byte 0xfc is not UTF-8",
    ),
    ("UTF-16", table((HEADER + "a.mp4,,,c,x,train\n").encode("utf-16")), r"csv:1: byte 0xff is not UTF-8"),
    ("zero byte", table(HEADER + "a.mp4,,,c,x\0y,train\n"), r"csv:2: holds a zero byte"),
    ("no table", local(csv="none.csv"), r"none\.csv: cannot be read"),
    ("no table named", local(csv=None), r"data\.csv is not set"),
    ("no folder named", local(videos=None), r"data\.videos is not set"),
    ("no such folder", local(videos="none"), r"data\.videos = none: no such folder"),
]

QUOTED = ' split , video,category,start,caption,end\ntrain,a.mp4,"a, b",,"he says ""hé, süß 🍕 日本""",\n\n'


def is_quoted(clips: list[Clip]) -> bool:
    return clips == [Clip("a", "a.mp4", None, None, "a, b", "train", ('he says "hé, süß 🍕 日本"',))]


CSV_ACCEPTED = [
    *(
        (
            f"quotes, commas, non-ASCII; {name}, {encoding}",
            table(QUOTED.replace("\n", newline).encode(encoding)),
            "read as written, columns in any order",
            is_quoted,
        )
        for name, newline in (("LF", "\n"), ("CRLF", "\r\n"), ("CR", "\r"))
        for encoding in ("utf-8", "utf-8-sig")
    ),
    (
        "a caption of 10,000 characters",
        table(HEADER + f"a.mp4,,,c,{'long ' * 2000},train\n"),
        "kept whole; CLIP's tokenizer cuts it",
        lambda clips: len(clips[0].captions[0]) == 9999,
    ),
    (
        "a row three times",
        table(HEADER + "a.mp4,,,c,x,train\n" + "b.mp4,,,c,x,train\n" * 3),
        "counted once, with a warning",
        lambda clips: [len(clip.captions) for clip in clips] == [1, 1],
    ),
]


# Published annotations


def actnet(content: str | bytes) -> Callable[[Path], Act]:
    def prepare(here: Path) -> Act:
        data = actnet_data(here)
        (here / "train.json").write_bytes(content if isinstance(content, bytes) else content.encode())
        return downloaded(data)

    return prepare


def actnet_videos(videos: str | None) -> Callable[[Path], Act]:
    def prepare(here: Path) -> Act:
        (here / "empty").mkdir()
        return downloaded(actnet_data(here, videos=videos))

    return prepare


def actnet_encoded(encoding: str) -> Callable[[Path], Act]:
    def prepare(here: Path) -> Act:
        data = actnet_data(here)
        text = (here / "train.json").read_text().replace("first", "für 日本" if "latin" not in encoding else "für")
        (here / "train.json").write_bytes(json.dumps(json.loads(text), ensure_ascii=False).encode(encoding))
        return downloaded(data)

    return prepare


def msrvtt_sentences(change: Callable[[dict], dict]) -> Callable[[Path], Act]:
    def prepare(here: Path) -> Act:
        msrvtt_zip(here / "MSRVTT.zip", change(msrvtt_annotations()))
        return downloaded(msrvtt_data(here))

    return prepare


def msrvtt_captions(content: str | bytes) -> Callable[[Path], Act]:
    def prepare(here: Path) -> Act:
        msrvtt_zip(here / "MSRVTT.zip")
        data = msrvtt_data(here)
        (here / "test.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
        return downloaded(data)

    return prepare


def msrvtt_hostile_id(here: Path) -> Act:
    msrvtt_zip(here / "MSRVTT.zip")
    hostile = msrvtt_annotations()
    hostile["videos"].append({"video_id": "../../evil", "category": 0, "split": "train"})
    hostile["sentences"].append({"video_id": "../../evil", "caption": "x"})
    (here / "mine.json").write_text(json.dumps(hostile))
    return downloaded(msrvtt_data(here, protocol="fewshot", annotations=source(here / "mine.json")))


def without_sentences(content: dict) -> dict:
    return {**content, "sentences": [row for row in content["sentences"] if row["video_id"] != "video0a"]}


def segment(times: str, sentences: str = '["x"]') -> Callable[[Path], Act]:
    return actnet(f'{{"v_0a": {{"timestamps": {times}, "sentences": {sentences}}}}}')


JSON = [
    ("half an object", actnet("{"), r"train\.json: not UTF-8 JSON"),
    ("empty", actnet(""), r"train\.json: not UTF-8 JSON"),
    ("nested 100,000 deep", actnet("[" * 100_000), r"train\.json: not UTF-8 JSON"),
    ("UTF-16", actnet_encoded("utf-16"), r"train\.json: not UTF-8 JSON"),
    ("Latin-1", actnet_encoded("latin-1"), r"train\.json: not UTF-8 JSON"),
    ("a list", actnet("[]"), r"train\.json: must be a JSON object"),
    ("a video missing", actnet("{}"), r"train\.json: has no caption for video v_0a"),
    ("no times", actnet('{"v_0a": {"sentences": ["x"]}}'), r"train\.json: video v_0a: must have timestamps"),
    ("an empty list of times", segment("[]"), "v_0a: must have timestamps"),
    ("a start without an end", segment("[[1]]"), "v_0a: must have timestamps"),
    ("end a word", segment('[[1, "b"]]'), "v_0a: must have timestamps"),
    ("caption a number", segment("[[1, 2]]", "[3]"), "v_0a: must have timestamps"),
    ("start after the end", segment("[[2, 1]]"), "v_0a: start = 2.0 must be less than"),
    ("negative start", segment("[[-2, 1]]"), "v_0a: start = -2.0: must be a number of seconds"),
    ("end NaN", segment("[[1, NaN]]"), "v_0a: end = nan"),
    ("blank caption", segment("[[1, 2]]", '[" "]'), "v_0a: has an empty caption"),
    ("half a character", segment("[[1, 2]]", r'["\ud800"]'), "v_0a: .*half a character"),
    ("videos: not set", actnet_videos(None), r"data\.videos is not set"),
    ("videos: no such folder", actnet_videos("none"), r"data\.videos = none: no such folder"),
    ("videos: an empty folder", actnet_videos("empty"), "holds no video"),
    ("MSR-VTT: a video without sentence", msrvtt_sentences(without_sentences), "no sentence for the video video0a"),
    (
        "MSR-VTT: sentences without ids",
        msrvtt_sentences(lambda _: {"sentences": [{"caption": "x"}], "videos": []}),
        "no annotation file",
    ),
    ("MSR-VTT: sentences a number", msrvtt_sentences(lambda _: {"sentences": 7}), "no annotation file"),
    ("MSR-VTT: other keys", msrvtt_sentences(lambda _: {"something": []}), "no annotation file"),
    ("MSR-VTT: id with ../", msrvtt_hostile_id, r"clip id '\.\./\.\./evil'"),
    (
        "test captions: column missing",
        msrvtt_captions("key,video_id\n1,video0t\n"),
        r"csv:1: lacks the column sentence",
    ),
    ("test captions: empty caption", msrvtt_captions("video_id,sentence\nvideo0t,\n"), r"csv:2: .*empty caption"),
    ("test captions: twice", msrvtt_captions("video_id,sentence\nvideo0t,a\nvideo0t,b\n"), r"csv:3: .*occurs twice"),
    (
        "test captions: one missing",
        msrvtt_captions("video_id,sentence\nvideo0t,a\n"),
        "no caption for the test video",
    ),
    ("test captions: empty file", msrvtt_captions(""), r"test\.csv:1: lacks the column"),
    (
        "test captions: UTF-16",
        msrvtt_captions("video_id,sentence\nvideo0t,a\n".encode("utf-16")),
        r"test\.csv: not a CSV in UTF-8",
    ),
]

JSON_ACCEPTED = [
    (
        "byte order mark, non-ASCII captions",
        actnet_encoded("utf-8-sig"),
        "read as written",
        lambda clips: any(clip.captions[0].startswith("für 日本 of") for clip in clips),
    ),
]


# The manifest

GOOD = {
    "id": "v_-x1",
    "video": "videos/a b.mp4",
    "start": 0.5,
    "end": 3.0,
    "category": "cooking",
    "split": "train",
    "captions": ["a man cooks", "jemand kocht süß 🍕"],
}


def manifest(second: dict | str) -> Callable[[Path], Act]:
    """A manifest of three lines, the second of which is bad."""
    line = second if isinstance(second, str) else json.dumps({**GOOD, "id": "z", **second})

    def prepare(here: Path) -> Act:
        text = f"{json.dumps(GOOD)}\n{line}\n{json.dumps({**GOOD, 'id': 'last'})}\n"
        (here / "manifest.jsonl").write_text(text)
        return lambda: read_manifest("manifest.jsonl")

    return prepare


def manifest_bytes(content: bytes) -> Callable[[Path], Act]:
    def prepare(here: Path) -> Act:
        (here / "manifest.jsonl").write_bytes(content)
        return lambda: read_manifest("manifest.jsonl")

    return prepare


MANIFEST = [
    *(
        (f"{key} = {str(value)[:20]!r}", manifest({key: value}), rf"manifest\.jsonl:2: .*({said})")
        for key, value, said in (
            ("id", "", "clip id"),
            ("id", "../../etc/passwd", "clip id"),
            ("id", "a/b", "clip id"),
            ("id", "a\\b", "clip id"),
            ("id", ".hidden", "clip id"),
            ("id", "-rf", "clip id"),
            ("id", "a\n", "clip id"),
            ("id", "a" * 121, "clip id"),
            ("id", "naïve", "clip id"),
            ("id", 7, "id: "),
            ("video", "/etc/passwd", "path"),
            ("video", "../secret.mp4", "path"),
            ("video", "a/../../secret.mp4", "path"),
            ("video", "C:\\secret.mp4", "path"),
            ("video", "C:secret.mp4", "path"),
            ("video", "a\0.mp4", "path"),
            ("video", "", "path"),
            ("start", -1.0, "start"),
            ("start", float("nan"), "start"),
            ("start", "3", "start"),
            ("end", float("inf"), "end"),
            ("start", 3.0, "less than"),
            ("end", 0.0, "less than"),
            ("category", "  ", "category"),
            ("split", "val", "train'? or '?test"),
            ("captions", [], "caption"),
            ("captions", ["a", " \n"], "caption"),
            ("captions", "one", "captions"),
            ("colour", "red", "colour"),
        )
    ),
    ("half an object", manifest("{"), r"manifest\.jsonl:2: .*JSON"),
    ("a list", manifest("[]"), r"manifest\.jsonl:2: .*(dict|object)"),
    ("an empty line", manifest(""), r"manifest\.jsonl:2: .*JSON"),
    ("video absent", manifest(json.dumps({k: v for k, v in GOOD.items() if k != "video"})), r"jsonl:2: .*video"),
    ("an id twice", manifest(json.dumps(GOOD)), r"manifest\.jsonl:2: .*twice"),
    (
        "an id on two sides",
        manifest(json.dumps({**GOOD, "split": "test"})),
        r"manifest\.jsonl:2: .*train and in test",
    ),
    ("a video on two sides", manifest({"split": "test"}), r"manifest\.jsonl:2: video .* train and in test"),
    ("no file", lambda here: lambda: read_manifest("manifest.jsonl"), "no such file"),
    ("empty file", manifest_bytes(b""), "no clip"),
    ("not UTF-8", manifest_bytes(json.dumps(GOOD, ensure_ascii=False).encode("latin-1", "replace")), "UTF-8"),
]


# Splits


def pickled(content: object) -> Callable[[Path], Act]:
    def prepare(here: Path) -> Act:
        path = here / "split.pkl"
        path.write_bytes(content) if isinstance(content, bytes) else dump(content, path)
        return lambda: read_published("split.pkl")

    return prepare


def changed(change: Callable[[dict], object]) -> Callable[[Path], Act]:
    def prepare(here: Path) -> Act:
        split = published()
        change(split)
        return pickled(split)(here)

    return prepare


def huge_split(here: Path) -> Act:
    with (here / "split.pkl").open("wb") as stream:
        stream.truncate(1 << 30)
    return lambda: read_published("split.pkl")


def drawn(num_tasks: int, shots: int, change: Callable[[Clip], Clip] = lambda clip: clip) -> Callable[[Path], Act]:
    """A few-shot draw from ten categories of five training clips."""

    def prepare(here: Path) -> Act:
        clips = [change(clip) for clip in clips_of(10)]
        return lambda: few_shot_split(clips, num_tasks, shots, seed=0, order="given")

    return prepare


def one_video(*ids: str) -> Callable[[Clip], Clip]:
    return lambda clip: replace(clip, video="one.mp4") if clip.id in ids else clip


def text_file(name: str, content: str | None, read: Callable[[str], Any]) -> Callable[[Path], Act]:
    def prepare(here: Path) -> Act:
        if content is not None:
            (here / name).write_text(content)
        return lambda: read(name)

    return prepare


MISSING = json.dumps([{"clip": "other", "video": "a.mp4", "reason": "truncated"}])

SPLITS = [
    (
        "pickled code",
        changed(lambda s: s["val"][2]["c3"].append(Runs(os.mkdir, "ran"))),
        "only dict, list, str and int",
    ),
    *(
        (
            f"a {type(value).__name__} among ids",
            changed(lambda s, v=value: s["train"][1]["c0"].append(v)),
            r"split\.pkl: ",
        )
        for value in (1.5, None, b"x", (1, "a"), {1}, True, 3)
    ),
    *(
        (f"pickle: {name}", pickled(content), r"split\.pkl: ")
        for name, content in (
            ("persistent id", b"Pevil\n."),
            ("extension code", b"\x80\x02\x82\x01."),
            ("instance", b"(cos\nsystem\n(S'true'\nio."),
            ("short instance", b"(S'true'\nios\nsystem\n."),
            ("build", b"\x80\x02}}b."),
            ("newobj", b"\x80\x02cos\nsystem\n)\x81."),
            ("os.system disguised as defaultdict", b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R."),
            ("list called", b"\x80\x04\x8c\x08builtins\x8c\x04list\x93\x8c\x04true\x85R."),
            ("far memo slot", b"\x80\x02}r\xff\xff\xff\x7f."),
            ("empty", b""),
            ("another format", b"PK\x03\x04 and more"),
            ("truncated", pickle.dumps(published())[:-20]),
            ("stack underflow", b"\x80\x02s."),
            ("a number", pickle.dumps(7)),
        )
    ),
    ("of 1 GB", huge_split, "more than a split file may have"),
    ("no file", lambda here: lambda: read_published("split.pkl"), "cannot be read"),
    ("a video twice", changed(lambda s: s["train"][1]["c0"].append("train-0-0")), "is already in"),
    ("a video in two tasks", changed(lambda s: s["train"][2]["c2"].append("train-0-0")), "is already in"),
    ("a video in train and test", changed(lambda s: s["val"][2]["c2"].append("train-0-0")), "is already in"),
    ("tasks from 0", changed(lambda s: s.update(train={k - 1: v for k, v in s["train"].items()})), "tasks 1, 2"),
    ("a task missing in val", changed(lambda s: s["val"].pop(2)), "same categories"),
    ("a category missing in val", changed(lambda s: s["val"][2].pop("c2")), "same categories"),
    ("an empty category", changed(lambda s: s["train"][1]["c0"].clear()), "to a list of video ids"),
    ("an empty task", changed(lambda s: s["train"][1].clear()), "must be a dict of categories"),
    ("no val", changed(lambda s: s.pop("val")), "keys train and val"),
    ("tasks as a list", changed(lambda s: s.update(train=list(s["train"].values()))), "tasks 1, 2"),
    (
        "draw: K = 3 of 10 categories",
        drawn(3, 2),
        r"K = 3: does not divide the 10 categories evenly; choose .*1, 2, 5",
    ),
    ("draw: K = 0", drawn(0, 2), "K = 0: must be from 1 to 10"),
    ("draw: K = -1", drawn(-1, 2), "K = -1: must be from 1 to 10"),
    ("draw: K = 11", drawn(11, 2), "K = 11: must be from 1 to 10"),
    ("draw: too few shots", drawn(5, 6), r"'cat \d' has 5 training videos with frames, but split.shots = 6"),
    ("draw: no shots", drawn(5, 0), r"split.shots = 0"),
    (
        "draw: a video in two tasks",
        drawn(5, 5, one_video("train-0-0", "train-3-0")),
        r"one\.mp4 is in task 1 and in task 2",
    ),
    (
        "draw: a video in train and test",
        drawn(1, 5, one_video("train-0-0", "test-0-0")),
        r"one\.mp4 is in train and in test",
    ),
    ("task file: none", text_file("task-01.json", None, read_task), "no such file"),
    *(
        (f"task file: {content!r}", text_file("task-01.json", content, read_task), r"task-01\.json: not a task")
        for content in ("", "{", "[]", '{"task": 1}', '{"task": "one"}')
    ),
    *(
        (
            f"missing.json: {content!r}",
            text_file("missing.json", content, lambda name: read_missing(name, clips_of(1))),
            s,
        )
        for content, s in (
            ("", r"missing\.json"),
            ("{}x", r"missing\.json"),
            ('["a"]', r"missing\.json"),
            ('[{"video": "a"}]', r"missing\.json"),
            ("3", r"missing\.json"),
            (MISSING, "other is not in the manifest"),
        )
    ),
]


# Videos


def video(
    write: Callable[[Path], Any], start: float | None = None, end: float | None = None
) -> Callable[[Path], Act]:
    """The stage `frames` on one video."""

    def prepare(here: Path) -> Act:
        values = default_params()
        values["machine"]["workers"] = 1
        config = Config.parse(values)
        raw = here / "data/raw" / config.data.name
        raw.mkdir(parents=True)
        written = write(raw)
        name = next(path for path in sorted(raw.iterdir()) if written is None or path == written).name
        write_manifest([Clip("clip", name, start, end, "c", "train", ("x",))], raw / "manifest.jsonl")

        def act() -> np.ndarray:
            stages.frames.main(config)
            return FrameStore(Path("data/frames")).read("clip")

        return act

    return prepare


def streamed(name: str, codec: str, options: dict[str, str]) -> Callable[[Path], Path]:
    """A video whose index is such that decoding can begin, cut at 60%."""

    def write(raw: Path) -> Path:
        with av.open(str(raw / name), "w", options=options) as container:
            stream = container.add_stream(codec, rate=10, options={"g": "10"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for picture in moving(60):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            container.mux(stream.encode())
        return cut(raw / name, 0.6)

    return write


def two_sizes(raw: Path) -> Path:
    parts = [write_video(raw / f"{size}.h264", counted(12, size, 64)).read_bytes() for size in (48, 96)]
    (raw / "a.h264").write_bytes(b"".join(parts))
    return raw / "a.h264"


def picture(kind: str) -> Callable[[Path], None]:
    return lambda raw: Image.new("RGB", (64, 48), "red").save(raw / "a.mp4", kind)


def shows(*expected: int) -> Callable[[Any], bool]:
    return lambda frames: numbers(frames) == list(expected)


def resembles(*expected: int) -> Callable[[Any], bool]:
    return lambda frames: np.abs(np.subtract(numbers(frames), expected)).max() <= 1


MIDDLES = tuple(sample_indices(0, 24, 4))

VIDEOS = [
    ("zero bytes", video(lambda raw: (raw / "a.mp4").touch()), "a.mp4: not a video: the file is empty"),
    (
        "text",
        video(lambda raw: (raw / "a.mp4").write_text("not a video\n" * 100) and None),
        "a.mp4: not a video: Inv",
    ),
    ("sound only", video(lambda raw: write_sound(raw / "a.m4a")), "no video stream"),
    ("no stream at all", video(lambda raw: write_empty_mp4(raw / "a.mp4")), "a.mp4: no video stream"),
    (
        "an unknown codec",
        video(
            lambda raw: patch(write_video(raw / "a.mkv", counted(6), "mpeg4"), b"V_MPEG4/ISO/ASP", b"V_MYSTERY/OF/AL")
        ),
        "a.mkv: no decoder for its video stream",
    ),
    ("a JPEG picture", video(picture("JPEG")), "not a video: a picture"),
    ("a PNG picture", video(picture("PNG")), "not a video: a picture"),
    ("truncated MP4", video(streamed("a.mp4", "libx264", {"movflags": "faststart"})), "truncated"),
    ("truncated Matroska", video(streamed("a.mkv", "libx264", {})), "truncated"),
    ("truncated WebM", video(streamed("a.webm", "libvpx-vp9", {})), "truncated"),
    ("cut before its index", video(lambda raw: cut(write_video(raw / "a.mp4", counted(24)), 0.5)), "not a video"),
    (
        "clip after the end",
        video(lambda raw: write_video(raw / "a.mp4", counted(24)), 1.5, 2),
        r"the clip starts at 1\.5 s, but the video is 1\.00 s long",
    ),
    ("frames of two sizes", video(two_sizes), "size of the frames changes"),
    (
        "a playlist of the machine's files",
        video(lambda raw: (raw / "a.m3u8").write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n") and None),
        "not a video",
    ),
]

VIDEOS_ACCEPTED = [
    ("one frame", video(lambda raw: write_video(raw / "a.mp4", counted(1))), "repeated", shows(0, 0, 0, 0)),
    ("two frames", video(lambda raw: write_video(raw / "a.mp4", counted(2))), "repeated", shows(0, 0, 1, 1)),
    (
        "10-bit",
        video(lambda raw: write_video(raw / "a.mp4", counted(24), pixels="yuv420p10le", options={"crf": "4"})),
        "decoded",
        resembles(*MIDDLES),
    ),
    (
        "a title that is not UTF-8",
        video(
            lambda raw: patch(
                write_video(raw / "a.mkv", counted(24), title="caf#"), b"caf#", "café".encode("latin-1")
            )
        ),
        "decoded",
        shows(*MIDDLES),
    ),
    (
        "odd size, 27 x 35",
        video(lambda raw: write_video(raw / "a.mp4", counted(24, 27, 35), pixels="yuv444p")),
        "decoded at its size",
        lambda frames: frames.shape == (4, 27, 35, 3) and numbers(frames) == list(MIDDLES),
    ),
    (
        "rotated",
        video(lambda raw: rotate(write_video(raw / "a.mp4", counted(24)))),
        "turned upright",
        lambda frames: frames.shape == (4, 64, 48, 3),
    ),
    (
        "variable rate",
        video(
            lambda raw: write_video(raw / "a.mp4", counted(10), times=[0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1, 2, 3]),
            0,
            3,
        ),
        "the frames on show at the middles of equal intervals",
        shows(3, 7, 7, 8),
    ),
    (
        "AV1",
        video(lambda raw: write_video(raw / "a.mp4", counted(24), "libsvtav1", options={"preset": "12"})),
        "decoded",
        shows(*MIDDLES),
    ),
    (
        "end after the end",
        video(lambda raw: write_video(raw / "a.mp4", counted(24)), 0, 90),
        "the end is the video's",
        shows(*MIDDLES),
    ),
    (
        "sound longer than the picture",
        video(lambda raw: write_video(raw / "a.mkv", counted(24), sound=5)),
        "changes nothing",
        shows(*MIDDLES),
    ),
]


# Weights

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
INFO = ClipInfo("small", SMALL, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])


def small_clip() -> CLIP:
    torch.manual_seed(0)
    return CLIP(**SMALL)


def weights(name: str, write: Callable[[Path], object]) -> Callable[[Path], Act]:
    def prepare(here: Path) -> Act:
        write(here / name)
        open_clip.factory._MODEL_CONFIGS["small"] = SMALL  # so that no case builds or fetches a real one
        return lambda: open_clip_backbone("small", None, name)

    return prepare


def nan_weights(path: Path) -> None:
    state = small_clip().state_dict()
    state["visual.proj"][3, 4] = torch.nan
    save_file(state, path)


def truncated_weights(path: Path) -> None:
    save_file(small_clip().state_dict(), path)
    cut(path, 0.7)


def backbone(name: str, tag: str | None, path: str | None = None) -> Callable[[Path], Act]:
    return lambda here: lambda: open_clip_backbone(name, tag, path)


UNREADABLE = r"backbone\.weights = 'bad\.\w+': cannot load small"

WEIGHTS = [
    *(
        (f"{name} as .{ending}", weights(f"bad.{ending}", write), UNREADABLE)
        for name, write in (
            ("garbage", lambda path: path.write_bytes(b"hello" * 100)),
            ("an empty file", lambda path: path.touch()),
            ("a list", lambda path: torch.save([1, 2], path)),
            ("pickled code", lambda path: torch.save({"state_dict": Runs(os.mkdir, "ran")}, path)),
        )
        for ending in ("pt", "safetensors")
    ),
    ("another model's, .pt", weights("bad.pt", lambda path: torch.save({"a": torch.zeros(3)}, path)), UNREADABLE),
    (
        "another model's, .safetensors",
        weights("bad.safetensors", lambda path: save_file({"a": torch.zeros(3)}, path)),
        UNREADABLE,
    ),
    ("truncated", weights("bad.safetensors", truncated_weights), UNREADABLE),
    ("NaN in a weight", weights("bad.safetensors", nan_weights), r"visual\.proj holds NaN or infinity"),
    ("no such file", backbone("ViT-B-32-quickgelu", None, "openai"), r"backbone\.weights = 'openai': no such file"),
    ("no such model", backbone("ViT-Z-99", "openai"), "no such model"),
    ("neither tag nor file", backbone("ViT-B-32", None), "both null"),
    ("no such tag", backbone("ViT-B-32", "nonsense"), "open_clip's tags for ViT-B-32: openai"),
    ("another activation", backbone("ViT-B-32", "openai"), "set backbone.architecture=ViT-B-32-quickgelu"),
    ("no plain CLIP", backbone("ViT-B-16-SigLIP", "webli"), "plain CLIP"),
    ("text tower from elsewhere", backbone("roberta-ViT-B-32", "laion2b_s12b_b32k"), "Hugging Face"),
    ("a captioner", backbone("coca_ViT-B-32", "laion2b_s13b_b90k"), "captioner"),
    ("no ViT", backbone("RN50-quickgelu", "openai"), "no ViT"),
    ("text attention not causal", backbone("MobileCLIP-S1", "datacompdr"), "not causal"),
]


# Checkpoints and galleries


def stored_clip(change: Callable[[Path], object]) -> Callable[[Path], Act]:
    def prepare(here: Path) -> Act:
        save_clip(small_clip(), INFO, here)
        change(here)
        return lambda: load_clip(Path("."))

    return prepare


def described(change: Callable[[dict], object]) -> Callable[[Path], Act]:
    def rewrite(here: Path) -> None:
        facts = json.loads((here / "clip.json").read_text())
        change(facts)
        (here / "clip.json").write_text(json.dumps(facts))

    return stored_clip(rewrite)


def checkpoint(change: Callable[[Path], object]) -> Callable[[Path], Act]:
    def prepare(here: Path) -> Act:
        tensors = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(1)}
        Checkpoint(2, "structalign", ["cats", "dogs"], tensors, {"means": torch.eye(2)}).save(here)
        change(here)
        return lambda: Checkpoint.load(Path("."))

    return prepare


def taken_up(**changes: Any) -> Callable[[Path], Act]:
    """The training of task 2 from a checkpoint that does not fit."""

    def prepare(here: Path) -> Act:
        (here / "models/clip").mkdir(parents=True)
        save_clip(small_clip(), INFO, here / "models/clip")
        config = default_config()
        facts = {"task": 1, "method": "structalign", "weights": {"scale": torch.ones(3)}}
        return lambda: Learner(config, 20, Checkpoint(**{**facts, **changes}))

    return prepare


def gallery(change: Callable[[Path], object]) -> Callable[[Path], Act]:
    def prepare(here: Path) -> Act:
        folder = here / "gallery"
        folder.mkdir()
        frames = torch.zeros(2, 3, 4)
        TaskGallery(1, ["a", "b"], [0, 1], ["x", "y", "z"], [0, 1, 1], frames).save(folder)
        save_index(folder, 1)
        change(folder)
        return lambda: load_galleries(Path("gallery"))

    return prepare


def halved(name: str) -> Callable[[Path], object]:
    return lambda folder: cut(folder / name, 0.5)


def packed(change: Callable[[Path], object]) -> Callable[[Path], Act]:
    """A store of frames that is damaged after it was made."""

    def prepare(here: Path) -> Act:
        video(lambda raw: write_video(raw / "a.mp4", moving(12)))(here)()
        change(here / "data/frames")
        return lambda: FrameStore(Path("data/frames")).read("clip")

    return prepare


def fingerprinted(here: Path) -> Act:
    """The stage `train` looks at all shards before it reads any frame."""
    packed(halved("shard-0000.zip"))(here)
    (here / "data/split").mkdir()
    (here / "data/split/task-01.json").write_text("{}")
    return lambda: fingerprint(default_config(), 1)


def flipped(folder: Path) -> None:
    shard = folder / "shard-0000.zip"
    content = bytearray(shard.read_bytes())
    content[400] ^= 1
    shard.write_bytes(content)


STORED = [
    *(
        (f"checkpoint: {name} truncated", checkpoint(halved(name)), name.split(".")[0])
        for name in ("adapters.safetensors", "memory.safetensors", "state.json")
    ),
    ("checkpoint: not there", lambda here: lambda: Checkpoint.load(Path("none")), "no such checkpoint"),
    ("checkpoint: a file missing", checkpoint(lambda here: (here / "memory.safetensors").unlink()), "no such file"),
    (
        "checkpoint: a pickle named safetensors",
        checkpoint(lambda here: torch.save({"a": Runs(os.mkdir, "ran")}, here / "memory.safetensors")),
        r"memory\.safetensors: damaged",
    ),
    ("checkpoint: unknown keys", checkpoint(lambda here: (here / "state.json").write_text('{"x": 1}')), "unexpected"),
    ("checkpoint: of another method", taken_up(method="lwf"), "written by method 'lwf'"),
    ("checkpoint: of another size", taken_up(), "checkpoint of another model"),
    *(
        (f"gallery: {name} truncated", gallery(halved(name)), name.split(".")[0])
        for name in ("task-01.safetensors", "task-01.json", "tasks.json")
    ),
    (
        "gallery: fewer features than videos",
        gallery(lambda folder: save_file({"frames": torch.zeros(1, 3, 4)}, folder / "task-01.safetensors")),
        "names 2 videos, its features hold 1",
    ),
    ("gallery: not there", lambda here: lambda: load_galleries(Path("none")), "no such gallery"),
    ("CLIP: truncated", stored_clip(halved("clip.safetensors")), r"clip\.safetensors: damaged"),
    (
        "CLIP: no weights",
        stored_clip(lambda here: (here / "clip.safetensors").unlink()),
        r"clip\.safetensors: no such",
    ),
    ("CLIP: no mean", described(lambda facts: facts.pop("mean")), r"clip\.json: not a CLIP description"),
    ("CLIP: no size", described(lambda facts: facts["model"].pop("embed_dim")), "not an open_clip model config"),
    (
        "CLIP: unknown key",
        described(lambda facts: facts["model"]["vision_cfg"].update(x=1)),
        "not an open_clip model",
    ),
    (
        "CLIP: other size",
        described(lambda facts: facts["model"]["vision_cfg"].update(width=64)),
        "weights do not fit",
    ),
    ("frames: shard truncated", packed(halved("shard-0000.zip")), r"shard-0000\.zip: damaged at clip clip"),
    ("frames: shard truncated, before training", fingerprinted, r"shard-0000\.zip: damaged .*structalign repair"),
    ("frames: shard gone", packed(lambda folder: (folder / "shard-0000.zip").unlink()), r"shard-0000\.zip: damaged"),
    ("frames: a bit flipped", packed(flipped), r"shard-0000\.zip: damaged at clip clip .*CRC"),
    *(
        (
            f"frames: index {content!r}",
            packed(lambda folder, c=content: (folder / "index.json").write_text(c)),
            "damaged",
        )
        for content in ("", "{}", "[]", '{"clips": 3', '{"clips": 3}', '{"clips": {"clip": {"shard": 1}}}')
    ),
]


# Archives


def unpacked(max_bytes: int = MAX_BYTES) -> None:
    for name in list_members(Path("archive"), max_bytes):
        read_member(Path("archive"), name)


def zipped(members: dict[str, bytes], max_bytes: int = MAX_BYTES, **more: Any) -> Callable[[Path], Act]:
    def prepare(here: Path) -> Act:
        zip_of(here / "archive", members, **more)
        return lambda: unpacked(max_bytes)

    return prepare


def zip_changed(change: Callable[[bytes], bytes], members: dict[str, bytes] | None = None) -> Callable[[Path], Act]:
    def prepare(here: Path) -> Act:
        path = zip_of(here / "archive", members or {"a.bin": NOISE[:100_000], "b.bin": NOISE[:100_000]})
        path.write_bytes(change(path.read_bytes()))
        return unpacked

    return prepare


def encrypted(content: bytes) -> bytes:
    place = content.index(b"PK\x01\x02") + 8
    return content[:place] + bytes([content[place] | 1]) + content[place + 1 :]


EVIL = ("../evil.txt", "a/../../evil.txt", "/tmp/evil-structalign.txt", "..\\evil.txt", "C:/evil.txt")
NOISE = np.random.default_rng(0).bytes(3 << 20)

ARCHIVES = [
    *((f"member {name}", zipped({"good.txt": b"good", name: b"evil"}), "evil") for name in EVIL),
    ("too large", zipped({"noise": NOISE}, 1 << 20), "would unpack to 3,145,728 bytes"),
    ("cut", zip_changed(lambda content: content[:150_000]), "damaged"),
    ("a byte flipped", zip_changed(lambda c: c[:50_000] + bytes([c[50_000] ^ 255]) + c[50_001:]), "damaged"),
    ("empty", zip_changed(lambda content: b""), "damaged"),
    ("a web page", zip_changed(lambda content: b"<html>Not found</html>"), "damaged, or no zip"),
    (
        "a size that lies",
        zip_changed(lambda c: c.replace((8 << 20).to_bytes(4, "little"), b"\xe8\x03\0\0"), {"zeros": bytes(8 << 20)}),
        "damaged",
    ),
    (
        "a name twice",
        zip_changed(lambda content: content.replace(b"b.txt", b"a.txt"), {"a.txt": b"a", "b.txt": b"b"}),
        "twice",
    ),
    ("encrypted", zip_changed(encrypted, {"a.txt": b"a"}), "encrypted"),
]


# Downloads


def download(sha256: str | None = SHA256, path: str = "{url}/file.bin", **server: Any) -> Callable[[Path], Act]:
    max_bytes = server.pop("max_bytes", 64 << 30)

    def prepare(here: Path) -> Act:
        running = Server()
        vars(running).update(server)

        def act() -> bytes:
            try:
                return fetch(path.format(url=running.url), "file.bin", sha256, max_bytes).read_bytes()
            finally:
                running.close()

        return act

    return prepare


def local_source(sha256: str) -> Callable[[Path], Act]:
    def prepare(here: Path) -> Act:
        (here / "mine.bin").write_bytes(CONTENT)
        return lambda: fetch("mine.bin", "target", sha256)

    return prepare


DOWNLOADS = [
    ("another checksum", download("0" * 64), f"checksum mismatch: SHA-256 is {SHA256}, expected {'0' * 64}"),
    ("another checksum, local file", local_source("1" * 64), f"mine.bin: checksum mismatch.*{SHA256}"),
    ("always truncated", download(ranges=False, cuts=[700_000] * 20), "cannot be fetched"),
    ("not found", download(statuses=[404]), "404"),
    ("too large", download(max_bytes=1_000_000), "1,000,000 are allowed"),
    ("too large, length unsaid", download(max_bytes=1_000_000, lengths=False), "1,000,000 are allowed"),
    ("ftp", download(path="ftp://example.org/x"), "http or https"),
    ("file://", download(path="file:///etc/passwd"), "http or https"),
    ("local file missing", download(path="none.bin"), "no such file"),
]

DOWNLOADS_ACCEPTED = [
    (
        "truncated twice",
        download(cuts=[2_000_000, 600_000]),
        "continued where it broke off",
        lambda content: content == CONTENT,
    ),
]


def _cases() -> Iterator[Case]:
    refused = {
        "params": PARAMS,
        "CSV": CSV,
        "annotations": JSON,
        "manifest": MANIFEST,
        "split": SPLITS,
        "video": VIDEOS,
        "weights": WEIGHTS,
        "stored": STORED,
        "archive": ARCHIVES,
        "download": DOWNLOADS,
    }
    accepted = {
        "CSV": CSV_ACCEPTED,
        "annotations": JSON_ACCEPTED,
        "video": VIDEOS_ACCEPTED,
        "download": DOWNLOADS_ACCEPTED,
    }
    for area, rows in refused.items():
        yield from (Case(area, wrong, prepare, said) for wrong, prepare, said in rows)
        for wrong, prepare, becomes, check in accepted.get(area, ()):
            yield Case(area, wrong, prepare, accepted=becomes, check=check)


CASES = list(_cases())
