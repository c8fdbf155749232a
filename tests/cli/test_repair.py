"""`structalign repair` deletes what does not have the checksum that DVC noted, and nothing else."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
import yaml

from structalign.cli.repair import main, repair

CACHE = Path(".dvc/cache/files/md5")


def store(content: bytes, suffix: str = "") -> str:
    """Put content where DVC's cache has it; return its checksum."""
    checksum = hashlib.md5(content).hexdigest() + suffix
    path = cached(checksum)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return checksum


def cached(checksum: str) -> Path:
    return CACHE / checksum[:2] / checksum[2:]


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A folder of two files, a file that is cached, and one that is not; name to checksum in the cache."""
    monkeypatch.chdir(tmp_path)
    names = {"model/a": b"first", "model/b": b"second", "curve.csv": b"1,2", "summary.json": b"{}"}
    for name, content in names.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content)
    found = {name: store(content) for name, content in names.items() if name != "summary.json"}
    listed = [{"md5": found[f"model/{name}"], "relpath": name} for name in "ab"]
    found["model"] = store(json.dumps(listed).encode(), ".dir")
    outs = [{"path": name, "md5": found[name]} for name in ("model", "curve.csv")]
    outs.append({"path": "summary.json", "md5": "0" * 32})  # edited since, and in git's care
    outs.append({"path": "listed.csv", "files": [{"relpath": "listed.csv"}]})  # as for a remote with versions
    Path("listed.csv").write_text("not checked")
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"train": {"cmd": "x", "outs": outs}, "other": {}}}))
    return found


@pytest.mark.usefixtures("outputs")
def test_whole_outputs_are_kept() -> None:
    assert repair(CACHE) == []


def test_a_damaged_output_goes_and_its_whole_copy_stays(outputs: dict[str, str]) -> None:
    Path("model/b").write_bytes(b"sec")
    assert repair(CACHE) == [Path("model/b")]
    assert not Path("model/b").exists()
    assert cached(outputs["model/b"]).exists()


def test_damage_in_the_cache_goes_with_what_is_linked_to_it(outputs: dict[str, str]) -> None:
    Path("model/a").unlink()
    Path("model/a").hardlink_to(cached(outputs["model/a"]))
    cached(outputs["model/a"]).write_bytes(b"fir")
    assert repair(CACHE) == [cached(outputs["model/a"]), Path("model/a")]
    assert Path("model/b").exists()


def test_a_damaged_list_of_a_folder_goes_alone(outputs: dict[str, str]) -> None:
    cached(outputs["model"]).write_bytes(b"[{")
    assert repair(CACHE) == [cached(outputs["model"])]
    assert Path("model/a").exists()


def test_outside_a_project_it_ends_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["repair"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "ERROR" in said[0]
    assert "not inside of a DVC repository" in said[0]
