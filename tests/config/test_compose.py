"""Overrides: what is wrong with them is one line that has the right form."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from structalign.config.compose import compose
from structalign.util.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "params.yaml"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.videos=/data/Vidéos", """'data.videos="/data/Vidéos"'"""),
        ("data.videos=/data/lr=1", """'data.videos="/data/lr=1"'"""),
        ("data.videos=~/x", """'data.videos="~/x"'"""),
        ("/data/lr=1", "joined by dots: data.lr=1"),
        ("~/x", "written key=value"),
        ("K", "written key=value"),
        ("+train.foo=1", "none can be added"),
        ("train.epohcs=3", "train.epohcs: no such key; did you mean train.epochs?"),
        ("epochs=3", "epochs: no such key; did you mean train.epochs?"),
        ("methd=lwf", "methd: no such key; did you mean method?"),
        (
            "method=structalgn",
            "method=structalgn: no such choice; did you mean structalign? (there are clip_vip, dual_prompts, ",
        ),
    ],
)
def test_the_line_has_the_right_form(target: Path, override: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        compose(["data=local", override], target)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert list(target.parent.iterdir()) == [target.parent / "conf"]


def test_what_the_line_proposes_works(target: Path) -> None:
    for path in ("/data/Vidéos", "/data/lr=1", "~/x", 'a "b" c'):
        compose(["data=local", f'''data.videos="{path.replace('"', chr(92) + '"')}"'''], target)
        assert yaml.safe_load(target.read_text())["data"]["videos"] == path


def test_one_split_file_can_be_named(target: Path) -> None:
    compose(["data=msrvtt", "data.splits.10.source=/x.pkl", "data.archive.source=[a.zip,b.zip]"], target)
    data = yaml.safe_load(target.read_text())["data"]
    assert data["splits"]["10"]["source"] == "/x.pkl"
    assert data["splits"]["10"]["sha256"].startswith("ea3408d8"), "its checksum still counts"
    assert data["archive"]["source"] == ["a.zip", "b.zip"]
