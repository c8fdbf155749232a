"""Nothing half-written is ever taken for whole, no stage runs twice at once, and errors are one line."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from stages.run import single_instance
from structalign.retrieval.gallery import TaskGallery, data_fingerprint, load_galleries, save_index, store_galleries
from structalign.training.resume import KEPT_DAYS, ResumeFile, resume_folder
from structalign.util.checkpoint import Checkpoint
from structalign.util.command import describe_error
from structalign.util.errors import UserError
from structalign.util.files import atomic_write, atomic_write_json, atomic_write_text, fresh_dir, read_json, user_path
from tests.helpers.errors import refused
from tests.helpers.split_files import Runs
from tests.helpers.video_files import cut

ROOT = Path(__file__).resolve().parents[2]


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "file", "old")
    with pytest.raises(OSError, match="full"), atomic_write(tmp_path / "file") as stream:
        stream.write(b"half")
        raise OSError(errno.ENOSPC, "disk full")
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_fresh_dir_replaces_on_success_and_vanishes_on_failure(tmp_path: Path) -> None:
    with fresh_dir(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    with pytest.raises(RuntimeError), fresh_dir(tmp_path / "out") as folder:
        (folder / "b").write_text("2")
        raise RuntimeError
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_fresh_dir_clears_what_a_killed_stage_left(tmp_path: Path) -> None:
    (tmp_path / ".out.abc").mkdir()
    (tmp_path / ".out.abc" / "half").write_text("x")
    with fresh_dir(tmp_path / "out"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_json_refuses_numbers_that_json_lacks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        atomic_write_json(tmp_path / "file.json", {"r1": float("nan")})
    assert not list(tmp_path.iterdir())


def test_damaged_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text('{"half": ')
    with pytest.raises(UserError, match=r"file\.json"):
        read_json(tmp_path / "file.json")


def test_a_stage_that_still_runs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    held = """
import sys
from stages.run import single_instance
with single_instance("train-01"):
    print("held", flush=True)
    sys.stdin.read()
"""
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", held]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {other.pid}"), single_instance("train-01"):
            pass
        with single_instance("train-02"):
            pass
        other.communicate("")
    with single_instance("train-01"):
        pass


def test_errors_are_described_in_one_line() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "data/frames/shard-0000.zip")
    assert describe_error(full).startswith("disk full while writing data/frames/shard-0000.zip")
    assert "\n" not in describe_error(UserError("first\nsecond"))
    assert "batch_size" in describe_error(MemoryError())


def checkpoint() -> Checkpoint:
    weights = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(1)}
    return Checkpoint(2, "structalign", ["cats", "dogs"], weights, {"means": torch.eye(2)})


def test_checkpoint_comes_back_bit_for_bit_and_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        checkpoint().save(tmp_path / name)
    back = Checkpoint.load(tmp_path / "one")
    assert back.categories == ["cats", "dogs"]
    assert torch.equal(back.weights["a.weight"], checkpoint().weights["a.weight"])
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_full_disk_is_reported_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither safetensors nor torch raises OSError by itself."""

    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("structalign.util.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        checkpoint().save(tmp_path)
    assert describe_error(caught.value).startswith(f"disk full while writing {tmp_path / 'adapters.safetensors'}")

    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("structalign.training.resume.atomic_write", lambda _: contextlib.nullcontext(Full()))
    with pytest.raises(OSError, match="No space left") as caught:
        ResumeFile("name").save({"weights": [torch.zeros(10_000)]})
    assert describe_error(caught.value).startswith("disk full while writing")


def gallery(task: int) -> TaskGallery:
    frames = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(task))
    return TaskGallery(task, [f"{task}a", f"{task}b"], [0, 1], ["x", "y", "z"], [0, 1, 1], frames)


def test_galleries_travel_unchanged(tmp_path: Path) -> None:
    before, first, second = (tmp_path / f"after-0{task}" for task in range(3))
    store_galleries(first, before, {"test": gallery(1), "validation": gallery(1)})
    store_galleries(second, first, {"test": gallery(2)})
    loaded = load_galleries(second)
    assert [item.task for item in loaded] == [1, 2]
    for item in loaded:
        facts, expected = vars(item), vars(gallery(item.task))
        assert torch.equal(facts.pop("frames"), expected.pop("frames"))
        assert facts == expected
    for stem in ("task-01", "validation-01"):
        assert (first / f"{stem}.safetensors").read_bytes() == (second / f"{stem}.safetensors").read_bytes()


def test_fingerprint_tells_other_queries_apart() -> None:
    changed = gallery(1)
    changed.queries = ["x", "y", "another"]
    assert data_fingerprint([gallery(1)]) == data_fingerprint([gallery(1)])
    assert data_fingerprint([gallery(1)]) != data_fingerprint([changed])


def test_temporary_copies_of_dvc_share_the_projects_resume_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / ".dvc/tmp/exps/tmpabc"
    copy.mkdir(parents=True)
    for here in (copy, tmp_path):
        monkeypatch.chdir(here)
        assert resume_folder() == tmp_path / ".cache/resume"
        assert user_path("videos").resolve() == tmp_path / "videos"
        assert user_path("/videos") == Path("/videos")
        assert user_path("~/videos") == Path.home() / "videos"


def test_old_resume_files_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    states = [ResumeFile(name) for name in ("old", "young", "new")]
    assert states[2].load() is None
    for state, days in zip(states, (KEPT_DAYS + 1, KEPT_DAYS - 1, 0), strict=True):
        state.save({"epoch": 1})
        begin = time.time() - days * 86400
        os.utime(state.path, (begin, begin))
    assert states[2].load() == {"epoch": 1}
    assert [state.path.exists() for state in states] == [False, True, True]


# Damaged checkpoints and galleries


def halve(name: str) -> Callable[[Path], object]:
    return lambda folder: cut(folder / name, 0.5)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        *((halve(name), name) for name in ("adapters.safetensors", "memory.safetensors", "state.json")),
        (lambda folder: (folder / "memory.safetensors").unlink(), "no such file"),
        (lambda folder: (folder / "state.json").unlink(), "no such checkpoint"),
        (
            lambda folder: torch.save({"a": Runs(os.mkdir, "ran")}, folder / "memory.safetensors"),
            r"memory\.safetensors: damaged",
        ),
        (lambda folder: (folder / "state.json").write_text('{"x": 1}'), "unexpected"),
    ],
)
def test_a_damaged_checkpoint_is_named(here: Path, damage: Callable[[Path], object], said: str) -> None:
    checkpoint().save(here)
    damage(here)
    with refused(said):
        Checkpoint.load(Path("."))
    assert not (here / "ran").exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        *((halve(name), name) for name in ("task-01.safetensors", "task-01.json", "tasks.json")),
        (
            lambda folder: save_file({"frames": torch.zeros(1, 3, 4)}, folder / "task-01.safetensors"),
            "names 2 videos, its features hold 1",
        ),
    ],
)
def test_a_damaged_gallery_is_named(here: Path, damage: Callable[[Path], object], said: str) -> None:
    gallery(1).save(here)
    save_index(here, 1)
    damage(here)
    with refused(said):
        load_galleries(Path("."))
    with refused("no such gallery"):
        load_galleries(Path("none"))
