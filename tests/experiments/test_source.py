"""Taking the code of a work tree as it is, and naming runs by all that decides their results."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from structalign.experiments import source
from structalign.experiments.source import CodeSnapshot
from structalign.experiments.study import composed, make_run, read_study, runs_of, shared_parameters
from structalign.util.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=tests", "-c", "user.email=tests@example.org", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for name in ("structalign/model.py", "stages/train.py", "conf/study/small.yaml", "dvc.yaml", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name}\n")
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n")
    (folder / ".gitignore").write_text("*.pyc\n")
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "start")
    return folder


def test_a_clean_tree_is_its_commit(project: Path) -> None:
    source = CodeSnapshot.of(project)
    assert source.commit == git(project, "rev-parse", "HEAD").strip()
    assert source.patch == b""


def test_a_clone_has_what_was_changed_added_and_deleted(project: Path, tmp_path: Path) -> None:
    (project / "structalign/model.py").write_text("changed\n")
    (project / "structalign/picture.bin").write_bytes(bytes(range(256)))
    (project / "structalign/model.pyc").write_text("ignored\n")
    (project / "stages/train.py").unlink()
    status = git(project, "status", "--porcelain")
    source = CodeSnapshot.of(project)
    assert git(project, "status", "--porcelain") == status
    assert sorted(source.changed_files) == ["stages/train.py", "structalign/model.py", "structalign/picture.bin"]
    (project / "structalign/model.py").write_text("changed again, after the study began\n")
    source.clone(tmp_path / "clone", tmp_path / "cache")
    assert (tmp_path / "clone/structalign/model.py").read_text() == "changed\n"
    assert (tmp_path / "clone/structalign/picture.bin").read_bytes() == bytes(range(256))
    assert not (tmp_path / "clone/stages/train.py").exists()
    assert not (tmp_path / "clone/structalign/model.pyc").exists()


def test_tuned_values_go_into_clones_without_being_committed(project: Path, tmp_path: Path) -> None:
    (project / "conf/tuned").mkdir()
    (project / "conf/tuned/größer.yaml").write_text("train: {}\n")
    source = CodeSnapshot.of(project)
    assert source.changed_files == ("conf/tuned/größer.yaml",)
    source.clone(tmp_path / "clone", tmp_path / "cache")
    assert (tmp_path / "clone/conf/tuned/größer.yaml").read_text() == "train: {}\n"


def test_a_clone_takes_over_local_settings_but_for_the_cache(project: Path, tmp_path: Path) -> None:
    (project / ".dvc/config.local").write_text(
        "['remote \"lab\"']\n    url = ssh://Lab/Data\n[cache]\n    dir = here\n"
    )
    CodeSnapshot.of(project).clone(tmp_path / "clone", tmp_path / "cache")
    local = (tmp_path / "clone/.dvc/config.local").read_text()
    assert "['remote \"lab\"']\nurl = ssh://Lab/Data\n" in local
    assert f"dir = {tmp_path / 'cache'}\n" in local
    assert "here" not in local


@pytest.mark.parametrize(
    ("path", "other"),
    [
        ("structalign/model.py", True),
        ("structalign/new.py", True),
        ("conf/new.yaml", True),
        ("dvc.yaml", True),
        ("conf/study/small.yaml", False),
        ("notes.txt", False),
    ],
)
def test_code_decides_the_name_of_a_run_and_notes_do_not(project: Path, path: str, other: bool) -> None:
    before = make_run(["s", "a"], "a", 0, [], CodeSnapshot.of(project)).name
    (project / path).write_text("x = 1\n")
    assert (make_run(["s", "a"], "a", 0, [], CodeSnapshot.of(project)).name != before) == other


def test_a_commit_of_the_same_code_renames_no_run(project: Path) -> None:
    (project / "structalign/model.py").write_text("x = 1\n")
    (project / "conf/tuned").mkdir()
    (project / "conf/tuned/lwf.yaml").write_text("train: {}\n")
    (project / "notes.txt").write_text("more\n")
    before = make_run(["s", "a"], "a", 0, ["tuned=lwf"], CodeSnapshot.of(project)).name
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "more")
    (project / "conf/tuned/finetune.yaml").write_text("train: {}\n")
    assert make_run(["s", "a"], "a", 0, ["tuned=lwf"], CodeSnapshot.of(project)).name == before


def test_overrides_decide_the_name_of_a_run() -> None:
    source = CodeSnapshot(Path(), "0" * 40, b"", "abcdef0123", ())
    labels = {"vr_lwf": ["method=vr_lwf"], "vr lwf": ["method=vr_lwf", "K=2"]}
    commons = (
        ["data=creatures"],
        ["data=creatures", "K=4"],
        ["data=actnet", "data.videos=/a"],
        ["data=actnet", "K=4"],
    )
    names = [run.name for common in commons for run in runs_of("methods", labels, common, (0, 1), source)]
    assert len(set(names)) == len(names) == 16
    assert names[4].startswith("methods-vr-lwf-creatures-4-seed0-abcdef0-")
    assert [run.name for run in runs_of("methods", labels, commons[1], (0, 1), source)] == names[4:8]


def test_runs_of_a_study_have_one_thread_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    source = CodeSnapshot(Path(), "0" * 40, b"", "abcdef0123", ())
    made = [make_run(["s", "a"], "a", 0, overrides, source) for overrides in ([], ["data=msrvtt"], ["threads=4"])]
    assert [parameters["threads"] for parameters in composed(made).values()] == [1, 1, 4]


def test_a_folder_without_commits_is_refused_in_one_line(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    with pytest.raises(UserError, match=r"^git rev-parse --verify in .*: fatal: Needed a single revision$"):
        CodeSnapshot.of(tmp_path)


def test_git_that_says_a_line_for_every_file_is_quoted_by_its_last(project: Path) -> None:
    with pytest.raises(UserError) as caught:
        source.git("checkout", "HEAD", "--", "first.py", "second.py", folder=project)
    assert "second.py" in str(caught.value)
    assert "first.py" not in str(caught.value)


def test_a_clone_that_cannot_be_made_is_one_line(project: Path, tmp_path: Path) -> None:
    (tmp_path / "clone").write_text("a file")
    with pytest.raises(UserError, match=r"^git clone --quiet in .*clone.*$"):
        CodeSnapshot.of(project).clone(tmp_path / "clone", tmp_path / "cache")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no runs"),
        ("[a, b]", "no runs"),
        ("a: loss.etf_weight=0", "a: must be a list of overrides"),
        ("a: [1]", "a: must be a list of overrides"),
        ("a: [", "not YAML"),
    ],
)
def test_a_study_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("conf/study").mkdir(parents=True)
    Path("conf/study/bad.yaml").write_text(text)
    with pytest.raises(UserError, match=f"^conf/study/bad.yaml: {message}"):
        read_study("bad")
    with pytest.raises(UserError, match=r"no such study; there are bad$"):
        read_study("other")


def test_what_runs_share_is_read_from_the_chain() -> None:
    shared = shared_parameters(ROOT / "dvc.yaml")
    assert {"seed", "split", "frames", "backbone"} <= shared
    assert not {"method", "loss", "train", "evaluate"} & shared
