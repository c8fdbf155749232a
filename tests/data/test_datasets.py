"""Raw data sets become clips: MSR-VTT, ActivityNet and the user's own, whole, damaged and incomplete."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

import stages.download
import stages.split
from structalign.data.archive import read_member
from structalign.data.clips import Clip, read_manifest
from structalign.data.datasets import actnet, local, msrvtt
from structalign.data.datasets.common import list_files, video_root
from structalign.data.tasks import read_task
from structalign.util.errors import UserError
from structalign.util.files import atomic_write_json
from structalign.util.log import configure
from tests.helpers.params import ROOT
from tests.helpers.raw_data import (
    EXTRA,
    HEADER,
    VIDEOS,
    actnet_data,
    config_for,
    folder_of,
    msrvtt_annotations,
    msrvtt_data,
    msrvtt_zip,
    source,
)
from tests.helpers.remote import Server

# MSR-VTT


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
        assert read_member(video_root(config), clip.video) == f"bytes of {clip.id}".encode()
    assert list_files(Path("data/raw/msrvtt")) == ["manifest.jsonl", "splits/02.pkl", "splits/04.pkl", "videos.json"]
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
    config = config_for(data)
    clips = msrvtt.prepare(config, here / "raw")
    assert len(clips) == len(VIDEOS)
    for clip in clips:
        assert (video_root(config) / clip.video).read_text() == f"bytes of {clip.id}"


@pytest.mark.usefixtures("small")
def test_msrvtt_other_videos_under_the_same_names_change_the_output(here: Path) -> None:
    config = config_for(msrvtt_data(here))
    outputs = []
    for ending in ("", "", "!"):
        msrvtt_zip(here / "MSRVTT.zip", ending=ending)
        stages.download.main(config)
        outputs.append(Path("data/raw/msrvtt/videos.json").read_text())
    assert outputs[0] == outputs[1] != outputs[2]


FAULTS = {
    "no categories": lambda content: {**content, "videos": []},
    "no sentence": lambda content: {
        **content,
        "sentences": [row for row in content["sentences"] if row["video_id"] != "video1a"],
    },
    "not JSON": lambda content: None,
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("fault", [None, 404, *FAULTS])
def test_msrvtt_the_archives_annotations_serve_if_a_url_fails(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, fault: str | int | None
) -> None:
    server = Server()
    configure()
    msrvtt_zip(here / "MSRVTT.zip")
    full = {
        **msrvtt_annotations(),
        "sentences": [{**row, "caption": f"fetched {row['caption']}"} for row in msrvtt_annotations()["sentences"]],
    }
    content = FAULTS[fault](full) if fault in FAULTS else full
    server.content = b"<html>" if content is None else json.dumps(content).encode()
    server.statuses = [404] if fault == 404 else []
    data = msrvtt_data(here, annotations={"source": f"{server.url}/MSRVTT_data.json", "sha256": None})
    clips = {clip.id: clip for clip in msrvtt.prepare(config_for(data), here / "raw")}
    server.close()
    fetched = clips["video1a"].captions[0].startswith("fetched")
    assert fetched == (fault is None)
    said = [line for line in capsys.readouterr().err.splitlines() if "the annotation file of" in line]
    assert len(said) == (fault is not None)
    kept = list(Path("data/downloads").glob("*.json"))
    assert len(kept) == (fault is None), "what was no annotation file must not be taken for one the next time"


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
    with pytest.raises(UserError, match=r"2 of 12 videos are missing: video2a, video1t"):
        stages.download.main(config_for(msrvtt_data(here), frames={"allow_missing": 1}))
    assert not Path("data/raw/msrvtt").exists()
    assert set(Path("data/missing-videos.txt").read_text().split()) == {"video1t", "video2a"}
    stages.download.main(config_for(msrvtt_data(here), frames={"allow_missing": 2}))
    assert len(read_manifest("data/raw/msrvtt/manifest.jsonl")) == len(VIDEOS)


@pytest.mark.slow
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
        values["splits"][str(num_tasks)]["source"] = str(ctvr / f"MSRVTT_{num_tasks}_dataset.pkl")
    values["test_captions"]["source"] = str(ctvr / "MSRVTT_CL_validation.csv")
    stages.download.main(config_for(values, num_tasks=10))
    atomic_write_json("data/frames/missing.json", [])
    for num_tasks in (10, 20):
        stages.split.main(config_for(values, num_tasks))
        tasks = [read_task(path) for path in sorted(Path("data/split").iterdir())]
        assert sum(len(task.train) for task in tasks) == 320
        assert sum(len(task.test) for task in tasks) == 2990
        assert tasks[0].categories[0].name == "music"


def test_every_default_url_is_a_file_of_the_benchmarks_repository() -> None:
    listed = (ROOT / "tests/data/ctvr_tree.txt").read_text()
    commit = re.search("commit ([0-9a-f]{40})", listed)[1]
    files = set(re.findall("^file (.+)$", listed, re.MULTILINE))
    urls = [
        url
        for path in sorted((ROOT / "conf/data").glob("*.yaml"))
        for url in re.findall(r"https://raw\.githubusercontent\.com/\S+", path.read_text())
    ]
    assert len(urls) == 8
    for url in urls:
        owner, name, at, path = url.removeprefix("https://raw.githubusercontent.com/").split("/", 3)
        assert (owner, name, at) == ("JasonCodeMaker", "CTVR", commit)
        assert path in files


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    for name in ("videos/a.mp4", "elsewhere/b.mp4", "elsewhere/deep/c.mkv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"video")
    (tmp_path / "videos/train").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "videos/val").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/up").symlink_to(tmp_path / "videos")
    (tmp_path / "videos/here").symlink_to(tmp_path / "videos")
    found = list_files(tmp_path / "videos")
    assert {"a.mp4", "train/b.mp4", "train/deep/c.mkv", "val/b.mp4", "val/deep/c.mkv"} == {
        name for name in found if "up" not in name
    }
    assert len(found) < 20


@pytest.mark.usefixtures("small")
def test_msrvtt_validation_videos_are_none_of_the_published_ones(here: Path) -> None:
    annotations = msrvtt_annotations()
    for video, category in (("video7", 0), ("video8", 1), ("video9", 2), ("video10", 3), ("video11", 3)):
        annotations["videos"].append({"video_id": video, "category": category, "split": "train"})
        annotations["sentences"].append({"video_id": video, "caption": f"{video} sentence"})
    videos = here / "MSRVTT"
    videos.mkdir()
    for row in annotations["videos"]:
        (videos / f"{row['video_id']}.mp4").write_bytes(b"video")
    (videos / "annotations.json").write_text(json.dumps(annotations))
    config = config_for(msrvtt_data(here, archive=videos), split={"validation": 1})
    stages.download.main(config)
    drawn = {clip.id: clip for clip in read_manifest("data/raw/msrvtt/manifest.jsonl") if clip.split == "val"}
    assert len(drawn) == 4
    assert not set(drawn) & set(VIDEOS)
    atomic_write_json("data/frames/missing.json", [])
    stages.split.main(config)
    tasks = [read_task(path) for path in sorted(Path("data/split").iterdir())]
    assert sorted(sample.clip for task in tasks for sample in task.validation) == sorted(drawn)
    for task in tasks:
        names = {category.id: category.name for category in task.categories}
        assert all(names[sample.category] == drawn[sample.clip].category for sample in task.validation)
    stages.download.main(config_for(msrvtt_data(here, archive=videos), split={"validation": 1}, seed=7))
    assert drawn == {clip.id: clip for clip in read_manifest("data/raw/msrvtt/manifest.jsonl") if clip.split == "val"}
    with pytest.raises(UserError, match=r"split\.validation = 3: category 'gaming' has 1 videos beyond"):
        stages.download.main(config_for(msrvtt_data(here, archive=videos), split={"validation": 3}))


# ActivityNet


@pytest.mark.usefixtures("small")
def test_actnet_validation_videos_are_none_of_the_published_ones(here: Path) -> None:
    data = actnet_data(here)
    with pytest.raises(UserError, match=r"split\.validation needs data\.validation_captions"):
        stages.download.main(config_for(data, split={"validation": 1}))
    labels = ["Tango", "Polo", "Sumo", "BMX", "BMX", "Chess"]
    content = json.loads((here / "train.json").read_text())
    content |= {
        f"v_{index}x": {"timestamps": [[index, index + 5]], "sentences": [f"spare {index}"]} for index in range(6)
    }
    (here / "spare.json").write_text(json.dumps(content))
    database = {f"{index}x": {"annotations": [{"label": label}]} for index, label in enumerate(labels)}
    (here / "labels.json").write_text(json.dumps({"database": {**database, "unlabelled": {"annotations": []}}}))
    for index in range(6):
        (here / "videos" / f"v_{index}x.mp4").write_text("x")
    data |= {"validation_captions": source(here / "spare.json"), "labels": source(here / "labels.json")}
    stages.download.main(config_for(data, split={"validation": 1}))
    clips = [clip for clip in read_manifest("data/raw/actnet/manifest.jsonl") if clip.split == "val"]
    assert sorted(clip.category for clip in clips) == ["BMX", "Polo", "Sumo", "Tango"]
    for clip in clips:
        index = int(clip.id[2])
        assert (clip.category, clip.start, clip.captions) == (labels[index], float(index), (f"spare {index}",))
    (here / "labels.json").write_text(json.dumps({"database": {"1x": database["1x"]}}))
    with pytest.raises(UserError, match="category 'BMX' has 0 videos beyond the published split"):
        stages.download.main(config_for(data, split={"validation": 1}))


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


@pytest.mark.slow
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
        values["splits"][str(num_tasks)]["source"] = str(ctvr / f"ACTNET_{num_tasks}_dataset.pkl")
    values["train_captions"]["source"] = str(ctvr / "ACTNET_train_queries.json")
    values["test_captions"]["source"] = str(ctvr / "ACTNET_val_queries.json")
    clips = {clip.id: clip for clip in actnet.prepare(config_for(values, num_tasks=10), here)}
    assert len(clips) == 8110
    girl = clips["v_QOlSCBRmfWY"]
    assert (girl.start, girl.end, girl.split) == (17.37, 60.81, "train")
    assert girl.captions == ("The girl dances around the room while the camera captures her movements.",)


# The user's own


def read(here: Path, content: str | bytes) -> list[Clip]:
    path = here / "clips.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return local.read_csv(path)


def test_local_through_both_stages(here: Path, capsys: pytest.CaptureFixture) -> None:
    rows = ["a.mp4,,,sport,she runs,train", "a.mp4,,,sport,a run,train", "b.mp4,1,2.5,sport,he jumps,test"]
    (here / "clips.csv").write_text(HEADER + "\n".join(rows))
    data = {"name": "local", "protocol": "fewshot", "csv": "clips.csv", "videos": str(folder_of(here))}
    config = config_for(data, num_tasks=1, split={"shots": 1})
    stages.download.main(config)
    assert read_manifest("data/raw/local/manifest.jsonl") == [
        Clip("a", "a.mp4", None, None, "sport", "train", ("she runs", "a run"), "clips.csv:2"),
        Clip("b_1-2.5", "b.mp4", 1.0, 2.5, "sport", "test", ("he jumps",), "clips.csv:4"),
    ]
    atomic_write_json("data/frames/missing.json", [])
    stages.split.main(config)
    assert [sample.clip for sample in read_task("data/split/task-01.json").test] == ["b_1-2.5"]


def test_local_what_is_missing_or_empty_counts_against_what_is_allowed(here: Path) -> None:
    rows = [
        "a.mp4,,,c,x,train",
        "b.mp4,5,5,c,x,test",
        "c,,,c,x,test",
        "c,1,2,c,x,test",
        "a.mp4,4,2,c,y,train",
        "b.mp4,,,c,z,test",
    ]
    (here / "clips.csv").write_text(HEADER + "\n".join(rows))
    data = {"name": "local", "protocol": "fewshot", "csv": "clips.csv"}
    data["videos"] = str(folder_of(here, "a.mp4", "b.mp4", "c.webm"))
    with pytest.raises(UserError) as error:
        stages.download.main(config_for(data, 1, split={"shots": 2}, frames={"allow_missing": 3}))
    assert (
        "2 of 6 videos are missing: c (clips.csv:4; did you mean c.webm?), c (clips.csv:5; did you mean c.webm?); "
        in str(error.value)
    )
    assert "2 of 6 segments have no length: clips.csv:3 (5 to 5 s), clips.csv:6 (4 to 2 s)" in str(error.value)
    assert "frames.allow_missing=4 (now 3)" in str(error.value)
    stages.download.main(config_for(data, 1, split={"shots": 2}, frames={"allow_missing": 4}))
    assert len(read_manifest("data/raw/local/manifest.jsonl")) == 6


def test_local_names_stay_apart(here: Path) -> None:
    names = ["a b.mp4", "a_b.mp4", "a/b.mp4", "a_b.mkv", "-x.mp4", "über.mp4", "A_B.mov", "x" * 150 + ".mp4"]
    rows = [f"{name},{start},,c,x,train" for name in names for start in ("", "1", "1.5", "1.500001")]
    clips = read(here, HEADER + "\n".join(rows))
    assert len({clip.id.lower() for clip in clips}) == len(clips) == 4 * len(names)
    again = read(here, HEADER + "\n".join(reversed(rows)))
    assert {(clip.id, clip.video, clip.start) for clip in clips} == {
        (clip.id, clip.video, clip.start) for clip in again
    }


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: (HEADER + text).encode("utf-8", "replace")))
@example((HEADER + '"a\nb.mp4",,,c,,train').encode())
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
    assert "\n" not in complaint
