"""Raw data sets in miniature: sources, annotations and the parameters that name them."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

from structalign.config.schema import Config
from tests.helpers.params import params


def config_for(data: dict[str, Any], num_tasks: int = 2, seed: int = 0, **sections: dict[str, Any]) -> Config:
    values = params()
    names = [f"{task:02d}" for task in range(num_tasks + 1)]
    values["split"]["validation"] = 0  # unlike the built-in data, most have none of their own
    if data["protocol"] == "published":
        values["split"]["order"] = "given"
    values |= {"K": num_tasks, "seed": seed, "data": data, "last": names[-1]}
    values["tasks"] = {names[task]: {"id": task, "previous": names[task - 1]} for task in range(1, num_tasks + 1)}
    for name, changes in sections.items():
        values[name] |= changes
    return Config.parse(values)


def source(path: Path) -> dict[str, str | None]:
    return {"source": str(path), "sha256": None}


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


def msrvtt_zip(
    path: Path, annotations: dict | None = None, leave_out: tuple[str, ...] = (), ending: str = ""
) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MSRVTT/annotation/other.json", "[1, 2]")
        archive.writestr("MSRVTT/annotation/MSR_VTT.json", json.dumps(annotations or msrvtt_annotations()))
        archive.writestr("MSRVTT/README.txt", "hello")
        for video in VIDEOS + EXTRA:
            if video not in leave_out:
                archive.writestr(f"MSRVTT/high-quality/{video}.mp4", f"second copy of {video}")
                archive.writestr(f"MSRVTT/videos/all/{video}.mp4", f"bytes of {video}{ending}")
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
        "validation_seed": 0,
        "archive": source(folder / "MSRVTT.zip" if "archive" not in changes else changes.pop("archive")),
        "annotations": None,
        "splits": write_splits(folder, [0, 1, 2, 3]),
        "test_captions": source(captions),
        **changes,
    }


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
        "validation_seed": 0,
        "videos": str(videos),
        "splits": write_splits(folder, ["Tango", "Polo", "Sumo", "BMX"], "v_"),
        "train_captions": source(folder / "train.json"),
        "test_captions": source(folder / "test.json"),
        "validation_captions": None,
        "labels": None,
        **changes,
    }


HEADER = "video,start,end,category,caption,split\n"


def folder_of(here: Path, *names: str) -> Path:
    folder = here / "videos"
    for name in names or ("a.mp4", "b.mp4", "sub/c.mkv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"video")
    return folder
