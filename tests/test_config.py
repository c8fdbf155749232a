"""params.yaml: what Hydra composes, and what the schema refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.params import compose
from structalign.config import Config
from structalign.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def composed(tmp_path: Path, *overrides: str) -> Config:
    compose(list(overrides), tmp_path / "params.yaml")
    return Config.load(tmp_path / "params.yaml")


def changed(key: str, value: Any) -> dict[str, Any]:
    """The committed parameters with one value replaced."""
    values = yaml.safe_load(Path("params.yaml").read_text())
    *path, last = key.split(".")
    section = values
    for part in path:
        section = section[part]
    section[last] = value
    return values


def test_committed_params_are_what_conf_composes(tmp_path: Path) -> None:
    compose([], tmp_path / "params.yaml")
    assert (tmp_path / "params.yaml").read_text() == Path("params.yaml").read_text()


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


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["K=0"], "K = 0"),
        (["K=100"], "K = 100"),
        (["evaluate.rerank=0"], "evaluate.rerank = 0"),
        (["evaluate.index=faiss"], "evaluate: index = 'faiss' needs rerank"),
        (["K=two"], "K = 'two'"),
        (["data=cifar"], "data/cifar"),
        (["method=magic"], "method/magic"),
        (["train.learning_rate=1"], "train.learning_rate"),
        (["loss.etf_weight=-0.5"], "loss.etf_weight = -0.5"),
    ],
)
def test_bad_override_is_named_and_leaves_the_file_alone(tmp_path: Path, overrides: list[str], message: str) -> None:
    target = tmp_path / "params.yaml"
    target.write_text("before")
    with pytest.raises(UserError, match=message):
        compose(overrides, target)
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("K", 6, "K = 6 disagrees with tasks"),
        ("last", "04", "disagrees with tasks"),
        ("seed", -1, "seed = -1"),
        ("seed", "zero", "seed = 'zero'"),
        ("threads", 0, "threads = 0"),
        ("data.name", "imagenet", "data.name = 'imagenet'.*shapes, msrvtt, actnet, local"),
        ("data.protocol", "published", "data.protocol = 'published'"),
        ("data.categories", 0, "data.categories = 0"),
        ("frames.num_frames", 0, "frames.num_frames = 0"),
        ("frames.num_frames", 1.5, "frames.num_frames = 1.5"),
        ("frames.allow_missing", -1, "frames.allow_missing = -1"),
        ("frames.colour", "blue", "frames.colour: unknown key"),
        ("split.shots", 0, "split.shots = 0"),
        ("model.vision_adapter", "prompt", "model.vision_adapter = 'prompt'.*frame_fusion"),
        ("model.adapter_layers", -1, "model.adapter_layers = -1"),
        ("model.adapter_layers", "most", "model.adapter_layers = 'most'.*'all'"),
        ("model.top_k", 50, "top_k = 50 exceeds experts"),
        ("model.dropout", 1.0, "model.dropout = 1.0"),
        ("similarity.alpha", 1.1, "similarity.alpha = 1.1"),
        ("etf.num_classes", 1, "etf.num_classes = 1"),
        ("loss.crp_weight", float("inf"), "loss.crp_weight = inf"),
        ("loss.crp_weight", float("nan"), "loss.crp_weight = nan"),
        ("loss.temperature", 0, "loss.temperature = 0"),
        ("train.batch_size", 1, "train.batch_size = 1"),
        ("train.select", "best", "train.select = 'best'"),
        ("train.lr_first", 0, "train.lr_first = 0"),
        ("train.devices", 0, "train.devices = 0"),
        ("train.devices", "all", "train.devices = 'all'"),
        ("train.compile", "often", "train.compile = 'often'"),
        ("machine.workers", "many", "machine.workers = 'many'"),
    ],
)
def test_bad_value_names_key_and_value(key: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Config.parse(changed(key, value), "params.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["K", "data", "loss", "train"])
def test_missing_key_is_named(key: str) -> None:
    values = yaml.safe_load(Path("params.yaml").read_text())
    del values[key]
    with pytest.raises(UserError, match=f"{key}: missing"):
        Config.parse(values)


@pytest.mark.parametrize(("text", "message"), [("K: [", "not valid YAML"), ("just words", "keys and values")])
def test_broken_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        Config.load(path)


def test_absent_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"python -m stages\.params"):
        Config.load(tmp_path / "params.yaml")
