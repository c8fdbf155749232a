"""params.yaml: what Hydra composes, and what the schema refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from structalign.cli.params import compose
from structalign.config.schema import Config
from structalign.util.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def composed(tmp_path: Path, *overrides: str) -> Config:
    compose(list(overrides), tmp_path / "params.yaml")
    return Config.load(tmp_path / "params.yaml")


@pytest.mark.parametrize("method", sorted(path.stem for path in (ROOT / "conf/method").glob("*.yaml")))
def test_every_method_composes_under_its_own_name(tmp_path: Path, method: str) -> None:
    assert composed(tmp_path, f"method={method}").method.name == method


@pytest.mark.parametrize("data", sorted(path.stem for path in (ROOT / "conf/data").glob("*.yaml")))
def test_every_data_set_composes_under_its_own_name(tmp_path: Path, data: str) -> None:
    assert composed(tmp_path, f"data={data}").data.name == data


def test_released_variant_sets_every_choice_of_the_released_code(tmp_path: Path) -> None:
    config = composed(tmp_path, "variant=released")
    assert config.etf.construction == "random"
    assert not config.etf.train_projections
    assert config.loss.crp_teacher == "initial"
    assert config.loss.same_video == "negative"
    assert config.train.schedule == "released"
    assert config.train.select == "best_on_test"


def test_k_makes_the_tasks(tmp_path: Path) -> None:
    config = composed(tmp_path, "K=4")
    assert list(config.tasks) == ["01", "02", "03", "04"]
    assert [entry.previous for entry in config.tasks.values()] == ["00", "01", "02", "03"]
    assert config.last == "04"


def test_a_bad_override_leaves_the_file_alone(tmp_path: Path) -> None:
    target = tmp_path / "params.yaml"
    target.write_text("before")
    with pytest.raises(UserError, match="K = 0"):
        compose(["K=0"], target)
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
