"""Raw data sets become clips: MSR-VTT, ActivityNet and the user's own, whole, damaged and incomplete."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import stages.download
import stages.split
from structalign.config import Config
from structalign.data import actnet, local, msrvtt
from structalign.data.manifest import Clip, read_manifest, video_root
from structalign.data.sources import list_videos
from structalign.data.split import read_task
from structalign.errors import UserError
from structalign.files import atomic_write_json

ROOT = Path(__file__).resolve().parent.parent


def config_for(data: dict[str, Any], num_tasks: int = 2, **sections: dict[str, Any]) -> Config:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    names = [f"{task:02d}" for task in range(num_tasks + 1)]
    values |= {"K": num_tasks, "data": data, "last": names[-1]}
    values["tasks"] = {names[task]: {"id": task, "previous": names[task - 1]} for task in range(1, num_tasks + 1)}
    for name, changes in sections.items():
        values[name] |= changes
    return Config.parse(values)


def source(path: Path) -> dict[str, str | None]:
    return {"source": str(path), "sha256": None}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, as stages have it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# A benchmark of 4 categories in miniature: 2 videos for training and 1 for test in each.


def mini_split(num_tasks: int, names: list[Any], prefix: str = "video") -> dict:
    per_task = len(names) // num_tasks
    split: dict = {"train": {}, "val": {}}
    for index, category in enumerate(names):
        task = index // per_task + 1
        split["train"].setdefault(task, {})[category] = [f"{prefix}{index}a", f"{prefix}{index}b"]
        split["val"].setdefault(task, {})[category] = [f"{prefix}{index}t"]
    return split


def write_splits(folder: Path, names: list[Any], prefix: str = "video") -> dict[int, dict]:
    for num_tasks in (2, 4):
        (folder / f"{num_tasks}.pkl").write_bytes(pickle.dumps(mini_split(num_tasks, names, prefix)))
    return {num_tasks: source(folder / f"{num_tasks}.pkl") for num_tasks in (2, 4)}


# MSR-VTT

VIDEOS = [f"video{index}{letter}" for index in range(4) for letter in "abt"]
EXTRA = ["video90", "video91"]


def msrvtt_annotations() -> dict:
    sentences = [
        {"video_id": video, "caption": f" {video} sentence {number} "}
        for video in VIDEOS + EXTRA
        for number in range(3)
    ]
    videos = [
        {"video_id": video, "category": int(video[5]) % 4, "split": "test" if video.endswith("t") else "train"}
        for video in VIDEOS
    ]
    videos += [
        {"video_id": video, "category": 0, "split": split}
        for video, split in zip(EXTRA, ("validate", "test"), strict=True)
    ]
    return {"info": {}, "sentences": [*sentences, {"video_id": "video0a", "caption": " "}], "videos": videos}


def msrvtt_zip(path: Path, annotations: dict | None = None, leave_out: tuple[str, ...] = ()) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MSRVTT/annotation/other.json", "[1, 2]")
        archive.writestr("MSRVTT/annotation/MSR_VTT.json", json.dumps(annotations or msrvtt_annotations()))
        archive.writestr("MSRVTT/README.txt", "hello")
        for video in VIDEOS + EXTRA:
            if video not in leave_out:
                archive.writestr(f"MSRVTT/high-quality/{video}.mp4", f"second copy of {video}")
                archive.writestr(f"MSRVTT/videos/all/{video}.mp4", f"bytes of {video}")
        link = zipfile.ZipInfo("MSRVTT/structured-symlinks/video0a.mp4")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "../videos/all/video0a.mp4")
    return path


def msrvtt_data(folder: Path, **changes: Any) -> dict[str, Any]:
    captions = folder / "test.csv"
    rows = [f'ret{index},msr{index},video{index}t,"the test caption, of {index}"' for index in range(4)]
    captions.write_text("\n".join(["key,vid_key,video_id,sentence", *rows]) + "\n")
    return {
        "name": "msrvtt",
        "protocol": "published",
        "archive": source(folder / "MSRVTT.zip" if "archive" not in changes else changes.pop("archive")),
        "annotations": None,
        "splits": write_splits(folder, [0, 1, 2, 3]),
        "test_captions": source(captions),
        **changes,
    }


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"msrvtt": (8, 4), "actnet": (8, 4)}
    monkeypatch.setattr("structalign.data.splitfile.PUBLISHED_SIZES", sizes)


@pytest.mark.usefixtures("small")
def test_msrvtt_published_through_both_stages(here: Path) -> None:
    msrvtt_zip(here / "MSRVTT.zip")
    config = config_for(msrvtt_data(here))
    stages.download.main(config)
    clips = {clip.id: clip for clip in read_manifest("data/raw/msrvtt/manifest.jsonl")}
    assert set(clips) == set(VIDEOS)
    assert clips["video1a"].captions == tuple(f"video1a sentence {number}" for number in range(3))
    assert clips["video1t"].captions == ("the test caption, of 1",)
    assert (clips["video1t"].category, clips["video1t"].split) == ("people", "test")
    for clip in clips.values():
        assert (video_root(config) / clip.video).read_text() == f"bytes of {clip.id}"
    assert len(list_videos(video_root(config))) == len(VIDEOS), "only annotated videos are unpacked"
    atomic_write_json("data/frames/missing.json", [])
    for num_tasks in (2, 4):
        stages.split.main(config_for(msrvtt_data(here), num_tasks))
        tasks = [read_task(path) for path in sorted(Path("data/split").iterdir())]
        assert [task.task for task in tasks] == list(range(1, num_tasks + 1))
        names = [category.name for task in tasks for category in task.categories]
        assert names == ["music", "people", "gaming", "sports/actions"]
        assert {sample.clip for task in tasks for sample in task.train} == {
            name for name in VIDEOS if name[-1] != "t"
        }


@pytest.mark.usefixtures("small")
def test_published_needs_a_published_number_of_tasks(here: Path) -> None:
    config = config_for(msrvtt_data(here), num_tasks=3)
    with pytest.raises(UserError, match=r"K = 3: .*K = 2 or 4.*fewshot"):
        stages.download.main(config)


@pytest.mark.usefixtures("small")
def test_msrvtt_fewshot_takes_all_annotated_videos(here: Path) -> None:
    msrvtt_zip(here / "MSRVTT.zip")
    clips = {
        clip.id: clip for clip in msrvtt.prepare(config_for(msrvtt_data(here, protocol="fewshot")), here / "raw")
    }
    assert set(clips) == set(VIDEOS + EXTRA)
    assert clips["video90"].split == "train", "the validation part is there to train on"
    assert clips["video91"].captions == ("video91 sentence 0",)
    assert clips["video2t"].captions == ("the test caption, of 2",)


@pytest.mark.usefixtures("small")
def test_msrvtt_from_a_folder_and_a_separate_annotation_file(here: Path) -> None:
    msrvtt_zip(here / "MSRVTT.zip")
    zipfile.ZipFile(here / "MSRVTT.zip").extractall(here / "unpacked")
    (here / "mine.json").write_text(json.dumps(msrvtt_annotations()))
    data = msrvtt_data(here, archive=here / "unpacked", annotations=source(here / "mine.json"))
    clips = msrvtt.prepare(config_for(data), here / "raw")
    assert len(clips) == len(VIDEOS)
    assert (here / "raw/videos/video0a.mp4").read_text() == "bytes of video0a"
    assert not (here / "raw/videos/video0a.mp4").is_symlink()


@pytest.mark.usefixtures("small")
def test_msrvtt_annotations_of_the_other_form(here: Path) -> None:
    rows = [{"image_id": row["video_id"], "caption": row["caption"]} for row in msrvtt_annotations()["sentences"]]
    msrvtt_zip(here / "MSRVTT.zip", {"annotations": rows})
    clips = msrvtt.prepare(config_for(msrvtt_data(here)), here / "raw")
    assert len(clips[0].captions) == 3
    with pytest.raises(UserError, match=r"data\.annotations"):
        msrvtt.prepare(config_for(msrvtt_data(here, protocol="fewshot")), here / "raw2")


@pytest.mark.usefixtures("small")
def test_msrvtt_absent_videos_count_against_what_is_allowed(here: Path) -> None:
    msrvtt_zip(here / "MSRVTT.zip", leave_out=("video1t", "video2a"))
    with pytest.raises(UserError, match=r"2 of 12 videos are missing: video1t, video2a|video2a, video1t"):
        stages.download.main(config_for(msrvtt_data(here), frames={"allow_missing": 1}))
    assert not Path("data/raw/msrvtt").exists()
    assert set(Path("data/missing-videos.txt").read_text().split()) == {"video1t", "video2a"}
    stages.download.main(config_for(msrvtt_data(here), frames={"allow_missing": 2}))
    assert len(read_manifest("data/raw/msrvtt/manifest.jsonl")) == len(VIDEOS)


def without_sentences(content: dict) -> dict:
    return {**content, "sentences": [row for row in content["sentences"] if row["video_id"] != "video0a"]}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (without_sentences, "no sentence for the video video0a"),
        (lambda content: {"sentences": [{"caption": "x"}], "videos": []}, "no annotation file"),
        (lambda content: {"sentences": 7}, "no annotation file"),
        (lambda content: {"something": []}, "no annotation file"),
    ],
)
def test_msrvtt_annotations_that_do_not_fit(here: Path, change: Callable[[dict], dict], named: str) -> None:
    msrvtt_zip(here / "MSRVTT.zip", change(msrvtt_annotations()))
    with pytest.raises(UserError, match=named):
        msrvtt.prepare(config_for(msrvtt_data(here)), here / "raw")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("csv", "named"),
    [
        ("key,video_id\n1,video0t\n", r"test\.csv:1: lacks the column sentence"),
        ("video_id,sentence\nvideo0t,\n", r"test\.csv:2: video video0t has an empty caption"),
        ("video_id,sentence\nvideo0t,a\nvideo0t,b\n", r"test\.csv:3: video video0t occurs twice"),
        ("video_id,sentence\nvideo0t,a\n", "no caption for the test video video1t"),
        ("", r"test\.csv:1: lacks the column"),
    ],
)
def test_msrvtt_test_captions_that_do_not_fit(here: Path, csv: str, named: str) -> None:
    msrvtt_zip(here / "MSRVTT.zip")
    data = msrvtt_data(here)
    (here / "test.csv").write_text(csv)
    with pytest.raises(UserError, match=named):
        msrvtt.prepare(config_for(data), here / "raw")


@pytest.mark.usefixtures("small")
def test_msrvtt_hostile_ids_and_archives(here: Path) -> None:
    msrvtt_zip(here / "MSRVTT.zip")
    hostile = msrvtt_annotations()
    hostile["videos"].append({"video_id": "../../evil", "category": 0, "split": "train"})
    hostile["sentences"].append({"video_id": "../../evil", "caption": "x"})
    (here / "mine.json").write_text(json.dumps(hostile))
    with pytest.raises(UserError, match="evil"):
        msrvtt.prepare(
            config_for(msrvtt_data(here, protocol="fewshot", annotations=source(here / "mine.json"))), here / "raw"
        )
    with zipfile.ZipFile(here / "MSRVTT.zip", "a") as archive:
        archive.writestr("../../evil.mp4", "x")
    with pytest.raises(UserError, match=r"evil\.mp4"):
        stages.download.main(config_for(msrvtt_data(here)))
    assert not Path("data/raw/msrvtt").exists()


def test_msrvtt_real_split_with_invented_videos(here: Path, shared: Path) -> None:
    """The published split and captions end to end; only the videos and training sentences are invented."""
    ctvr = shared / "ctvr"
    split = pickle.loads((ctvr / "MSRVTT_10_dataset.pkl").read_bytes())
    ids = [video for side in split.values() for task in side.values() for group in task.values() for video in group]
    (here / "videos").mkdir()
    for video in ids:
        (here / "videos" / f"{video}.mp4").write_bytes(b"")
    content = {"sentences": [{"video_id": video, "caption": "x"} for video in ids], "videos": []}
    (here / "mine.json").write_text(json.dumps(content))
    values = yaml.safe_load((ROOT / "conf/data/msrvtt.yaml").read_text())["data"]
    values["archive"]["source"] = str(here / "videos")
    values["annotations"] = source(here / "mine.json")
    for num_tasks in (10, 20):
        values["splits"][num_tasks]["source"] = str(ctvr / f"MSRVTT_{num_tasks}_dataset.pkl")
    values["test_captions"]["source"] = str(ctvr / "MSRVTT_CL_validation.csv")
    stages.download.main(config_for(values, num_tasks=10))
    atomic_write_json("data/frames/missing.json", [])
    for num_tasks in (10, 20):
        stages.split.main(config_for(values, num_tasks))
        tasks = [read_task(path) for path in sorted(Path("data/split").iterdir())]
        assert sum(len(task.train) for task in tasks) == 320
        assert sum(len(task.test) for task in tasks) == 2990
        assert tasks[0].categories[0].name == "music"


# ActivityNet


def actnet_data(folder: Path, **changes: Any) -> dict[str, Any]:
    videos = folder / "videos"
    (videos / "part").mkdir(parents=True)
    for index in range(4):
        (videos / f"v_{index}a.mp4").write_text("a")
        (videos / "part" / f"v_{index}b.mkv").write_text("b")
        (videos / f"{index}t.webm").write_text("t")
    (videos / "notes.txt").write_text("not a video")
    for side, letters in (("train", "ab"), ("test", "t")):
        content = {
            f"v_{index}{letter}": {
                "duration": 60,
                "timestamps": [[index, index + 10.5], [20, 30]],
                "sentences": [f"  first of {index}{letter} \n", "second"],
            }
            for index in range(4)
            for letter in letters
        }
        (folder / f"{side}.json").write_text(json.dumps(content))
    return {
        "name": "actnet",
        "protocol": "published",
        "videos": str(videos),
        "splits": write_splits(folder, ["Tango", "Polo", "Sumo", "BMX"], "v_"),
        "train_captions": source(folder / "train.json"),
        "test_captions": source(folder / "test.json"),
        **changes,
    }


@pytest.mark.usefixtures("small")
def test_actnet_takes_the_first_segment_and_leaves_videos_where_they_are(here: Path) -> None:
    config = config_for(actnet_data(here))
    stages.download.main(config)
    clips = {clip.id: clip for clip in read_manifest("data/raw/actnet/manifest.jsonl")}
    assert clips["v_2b"] == Clip("v_2b", "part/v_2b.mkv", 2.0, 12.5, "Sumo", "train", ("first of 2b",))
    assert clips["v_3t"] == Clip("v_3t", "3t.webm", 3.0, 13.5, "BMX", "test", ("first of 3t",))
    assert all((video_root(config) / clip.video).is_file() for clip in clips.values())
    assert not list_files_of_kind(Path("data"), (".mp4", ".mkv", ".webm"))
    atomic_write_json("data/frames/missing.json", [])
    stages.split.main(config)
    assert len(read_task("data/split/task-02.json").train) == 4


def list_files_of_kind(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix in suffixes]


@pytest.mark.usefixtures("small")
def test_actnet_changed_videos_change_the_output(here: Path) -> None:
    config = config_for(actnet_data(here))
    outputs = []
    for content in ("a", "a", "A"):
        (here / "videos/v_0a.mp4").write_text(content)
        stages.download.main(config)
        outputs.append(Path("data/raw/actnet/videos.json").read_text())
    assert outputs[0] == outputs[1] != outputs[2]


@pytest.mark.usefixtures("small")
def test_actnet_missing_videos_are_all_listed(here: Path) -> None:
    data = actnet_data(here)
    for path in list_files_of_kind(here / "videos", (".mp4", ".mkv", ".webm"))[1:]:
        path.unlink()
    with pytest.raises(UserError, match=r"11 of 12 videos are missing: (v_\w+, ){9}v_\w+ and 1 more"):
        stages.download.main(config_for(data))
    assert len(Path("data/missing-videos.txt").read_text().split()) == 11
    assert not Path("data/raw/actnet").exists()
    stages.download.main(config_for(data, frames={"allow_missing": 11}))
    assert len(read_manifest("data/raw/actnet/manifest.jsonl")) == 12


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", r"train\.json: not UTF-8 JSON"),
        ("[" * 100_000, r"train\.json: not UTF-8 JSON"),
        ("[]", r"train\.json: must be a JSON object"),
        ("{}", r"train\.json: has no caption for video v_0a"),
        ('{"v_0a": {"sentences": ["x"]}}', r"train\.json: video v_0a: must have timestamps"),
        ('{"v_0a": {"timestamps": [], "sentences": ["x"]}}', "v_0a: must have timestamps"),
        ('{"v_0a": {"timestamps": [[1]], "sentences": ["x"]}}', "v_0a: must have timestamps"),
        ('{"v_0a": {"timestamps": [[1, "b"]], "sentences": ["x"]}}', "v_0a: must have timestamps"),
        ('{"v_0a": {"timestamps": [[1, 2]], "sentences": [3]}}', "v_0a: must have timestamps"),
        ('{"v_0a": {"timestamps": [[2, 1]], "sentences": ["x"]}}', "v_0a: start = 2.0 must be less than"),
        ('{"v_0a": {"timestamps": [[1, NaN]], "sentences": ["x"]}}', "v_0a: end = nan"),
        ('{"v_0a": {"timestamps": [[1, 2]], "sentences": [" "]}}', "v_0a: has an empty caption"),
    ],
)
def test_actnet_annotations_that_do_not_fit(here: Path, content: str, named: str) -> None:
    data = actnet_data(here)
    (here / "train.json").write_text(content)
    with pytest.raises(UserError, match=named):
        actnet.prepare(config_for(data), here)


@pytest.mark.parametrize(
    ("videos", "named"),
    [(None, r"data\.videos is not set"), ("none", r"data\.videos = none: no such folder"), (".", "holds no video")],
)
def test_a_folder_of_videos_is_needed(here: Path, videos: str | None, named: str) -> None:
    Path("clips.csv").write_text("")
    ours = {"name": "local", "protocol": "fewshot", "csv": "clips.csv", "videos": videos}
    with pytest.raises(UserError, match=r"clips\.csv:1" if videos == "." else named):
        local.prepare(config_for(ours), here)
    (here / "data").mkdir()
    data = actnet_data(here / "data", videos=str(here / "empty") if videos == "." else videos)
    (here / "empty").mkdir()
    with pytest.raises(UserError, match=named):
        actnet.prepare(config_for(data), here)


def test_actnet_real_annotations(shared: Path, here: Path) -> None:
    """Every clip of the published split has its annotation; the videos are invented."""
    ctvr = shared / "ctvr"
    (here / "videos").mkdir()
    for side in ("train", "val"):
        for video in json.loads((ctvr / f"ACTNET_{side}_queries.json").read_text()):
            (here / "videos" / f"{video}.mp4").write_bytes(b"")
    values = yaml.safe_load((ROOT / "conf/data/actnet.yaml").read_text())["data"]
    values["videos"] = str(here / "videos")
    for num_tasks in (10, 20):
        values["splits"][num_tasks]["source"] = str(ctvr / f"ACTNET_{num_tasks}_dataset.pkl")
    values["train_captions"]["source"] = str(ctvr / "ACTNET_train_queries.json")
    values["test_captions"]["source"] = str(ctvr / "ACTNET_val_queries.json")
    clips = {clip.id: clip for clip in actnet.prepare(config_for(values, num_tasks=10), here)}
    assert len(clips) == 8110
    girl = clips["v_QOlSCBRmfWY"]
    assert (girl.start, girl.end, girl.split) == (17.37, 60.81, "train")
    assert girl.captions == ("The girl dances around the room while the camera captures her movements.",)


# The user's own

HEADER = "video,start,end,category,caption,split\n"


def folder_of(here: Path, *names: str) -> Path:
    folder = here / "videos"
    for name in names or ("a.mp4", "b.mp4", "sub/c.mkv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"video")
    return folder


def read(here: Path, content: str | bytes, *names: str) -> list[Clip]:
    path = here / "clips.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return local.read_csv(path, folder_of(here, *names))


def test_local_through_both_stages(here: Path, capsys: pytest.CaptureFixture) -> None:
    rows = ["a.mp4,,,sport,she runs,train", "a.mp4,,,sport,a run,train", "b.mp4,1,2.5,sport,he jumps,test"]
    (here / "clips.csv").write_text(HEADER + "\n".join(rows))
    data = {"name": "local", "protocol": "fewshot", "csv": "clips.csv", "videos": str(folder_of(here))}
    config = config_for(data, num_tasks=1, split={"shots": 1})
    stages.download.main(config)
    assert read_manifest("data/raw/local/manifest.jsonl") == [
        Clip("a", "a.mp4", None, None, "sport", "train", ("she runs", "a run")),
        Clip("b_1-2.5", "b.mp4", 1.0, 2.5, "sport", "test", ("he jumps",)),
    ]
    atomic_write_json("data/frames/missing.json", [])
    stages.split.main(config)
    assert [sample.clip for sample in read_task("data/split/task-01.json").test] == ["b_1-2.5"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_local_quotes_marks_and_line_ends(here: Path, encoding: str, newline: str) -> None:
    text = ' split , video,category,start,caption,end\ntrain,a.mp4,"a, b",,"he says ""hé, süß 🍕""",\n\n'
    clips = read(here, text.replace("\n", newline).encode(encoding))
    assert clips == [Clip("a", "a.mp4", None, None, "a, b", "train", ('he says "hé, süß 🍕"',))]


BAD_TABLES = [
    ("", r"csv:1: lacks the column video"),
    (HEADER, r"csv: holds no clip"),
    ("video,start,end,category,caption\n", r"csv:1: lacks the column split"),
    ("video;start;end;category;caption;split\n", r"csv:1: unknown column"),
    (HEADER.replace("split", "split,colour"), r"csv:1: unknown column 'colour'"),
    (HEADER.replace("end", "start"), r"csv:1: column start occurs 2 times"),
    (HEADER + ",,,c,x,train\n", r"csv:2: a caption without a video"),
    (HEADER + "a.mp4,,,c,x,train\nb.mp4,,,c, ,train\n", r"csv:3: video b\.mp4 without a caption"),
    (HEADER + "a.mp4,,,,x,train\n", r"csv:2: the category is empty"),
    (HEADER + "a.mp4,,,c,x,val\n", r"csv:2: split = 'val': must be train or test"),
    (HEADER + "a.mp4,,,c,x\n", r"csv:2: must have 6 fields"),
    (HEADER + "a.mp4,,,c,x,y,train\n", r"csv:2: must have 6 fields"),
    (HEADER + "a.mp4,one,,c,x,train\n", r"csv:2: start = 'one': must be seconds"),
    (HEADER + "a.mp4,,1:30,c,x,train\n", r"csv:2: end = '1:30': must be seconds"),
    (HEADER + "a.mp4,-1,,c,x,train\n", r"csv:2: start = '-1'"),
    (HEADER + "a.mp4,nan,,c,x,train\n", r"csv:2: start = 'nan'"),
    (HEADER + "a.mp4,1_0,,c,x,train\n", r"csv:2: start = '1_0'"),
    (HEADER + f"a.mp4,,{'9' * 400},c,x,train\n", r"csv:2: .*end = inf"),
    (HEADER + "a.mp4,2,2,c,x,train\n", r"csv:2: .*start = 2.0 must be less than end = 2.0"),
    (HEADER + "none.mp4,,,c,x,train\n", r"csv:2: video none\.mp4 is not in "),
    (HEADER + "sub,,,c,x,train\n", r"csv:2: video sub is not in "),
    (HEADER + "../clips.csv,,,c,x,train\n", r"csv:2: path .* is not allowed"),
    (HEADER + "/etc/passwd,,,c,x,train\n", r"csv:2: path .* is not allowed"),
    (HEADER + "a.mp4,,,c,x,train\na.mp4,,,d,y,train\n", r"csv:3: category = 'd', but 'c' .*csv:2"),
    (HEADER + "a.mp4,,,c,x,train\na.mp4,,,c,y,test\n", r"csv:3: split = 'test', but 'train' .*csv:2"),
    (HEADER + "a.mp4,,1,c,x,train\na.mp4,1,,c,y,test\n", r"csv:3: video a\.mp4 is in test, and in train at .*csv:2"),
    (HEADER + 'a.mp4,,,c,"x,train\nb.mp4,,,c,y,test\n', r"csv:2: not a CSV"),
    (HEADER + 'a.mp4,,,c,"x"y,train\n', r"csv:2: not a CSV"),
    (HEADER + f"a.mp4,,,c,{'x' * (2 << 20)},train\n", r"csv:2: not a CSV.*limit"),
    ((HEADER + "a.mp4,,,c,ok,train\nb.mp4,,,c,süß,train\n").encode("latin-1"), r"csv:3: byte 0xfc is not UTF-8"),
    ((HEADER + "a.mp4,,,c,x,train\n").encode("utf-16"), r"csv:1: byte 0xff is not UTF-8"),
    (HEADER + "a.mp4,,,c,x\0y,train\n", r"csv:2: holds a zero byte"),
]


@pytest.mark.parametrize(("content", "named"), BAD_TABLES)
def test_local_bad_tables_name_file_and_line(here: Path, content: str | bytes, named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        read(here, content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_local_long_captions_and_repeated_ones(here: Path) -> None:
    clips = read(here, HEADER + f"a.mp4,,,c,{'long ' * 2000},train\n" + "b.mp4,,,c,x,train\n" * 3)
    assert [len(clip.captions) for clip in clips] == [1, 1]
    assert len(clips[0].captions[0]) == 9999


def test_local_no_table(here: Path) -> None:
    with pytest.raises(UserError, match=r"none\.csv: cannot be read"):
        local.read_csv(here / "none.csv", here)
    data = {"name": "local", "protocol": "fewshot", "csv": None, "videos": str(folder_of(here))}
    with pytest.raises(UserError, match=r"data\.csv is not set"):
        local.prepare(config_for(data), here)


def test_local_names_stay_apart(here: Path) -> None:
    names = ["a b.mp4", "a_b.mp4", "a/b.mp4", "a_b.mkv", "-x.mp4", "über.mp4", "A_B.mov", "x" * 150 + ".mp4"]
    rows = [f"{name},{start},,c,x,train" for name in names for start in ("", "1", "1.5", "1.500001")]
    clips = read(here, HEADER + "\n".join(rows), *names)
    assert len({clip.id.lower() for clip in clips}) == len(clips) == 4 * len(names)
    again = read(here, HEADER + "\n".join(reversed(rows)), *names)
    assert {(clip.id, clip.video, clip.start) for clip in clips} == {
        (clip.id, clip.video, clip.start) for clip in again
    }


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: (HEADER + text).encode("utf-8", "replace")))
def test_local_any_bytes_give_clips_or_one_clear_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    here = tmp_path_factory.getbasetemp()
    try:
        clips = read(here, content)
    except UserError as error:
        complaint = str(error)
    else:
        assert clips
        return
    assert complaint.startswith(str(here / "clips.csv"))
