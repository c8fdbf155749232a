"""params.yaml: what Hydra composes, and what the schema refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from structalign.config.compose import compose
from structalign.config.schema import Config, ModelConfig
from structalign.methods.base.discover import method_class, method_names
from structalign.util.errors import UserError
from tests.helpers.errors import refused
from tests.helpers.params import ROOT, params


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


def test_tuned_values_of_other_data_are_refused(tmp_path: Path) -> None:
    assert composed(tmp_path, "tuned=structalign").tuned_on == "creatures"
    with pytest.raises(UserError, match=r"tuned_on = 'creatures': .* than 'msrvtt'; `structalign tune --data"):
        composed(tmp_path, "tuned=structalign", "data=msrvtt")
    assert composed(tmp_path, "tuned=structalign", "data=msrvtt", "tuned_on=null").tuned_on is None


def test_a_device_without_a_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.devices = 8: exceeds train\.batch_size = 4"):
        composed(tmp_path, "train.devices=8", "train.batch_size=4")


def test_released_variant_sets_every_choice_of_the_released_code(tmp_path: Path) -> None:
    choices = {
        "variant": "released",
        "etf": {"construction": "random", "train_projections": False},
        "loss": {"crp_teacher": "initial", "same_video": "negative", "pseudo_balanced": True},
        "train": {"schedule": "released", "select": "best_on_test"},
    }
    assert yaml.safe_load((ROOT / "conf/variant/released.yaml").read_text()) == choices
    config = composed(tmp_path, "variant=released").model_dump()
    assert config["variant"] == choices.pop("variant")
    for section, values in choices.items():
        assert values.items() <= config[section].items()


def test_the_figures_variant_has_experts_beside_the_text_mlp_and_lora_on_qkv(tmp_path: Path) -> None:
    model = composed(tmp_path, "variant=figure").model
    assert (model.text_adapter, model.vision_adapter, model.adapter_layers) == ("mlp_moe", "lora", "all")


def test_the_light_variant_has_small_adapters_in_few_blocks(tmp_path: Path) -> None:
    config = composed(tmp_path, "variant=light", "data=msrvtt")
    model = config.model
    assert (model.vision_adapter, model.adapter_layers, model.vision_rank) == ("lora", 4, 8)
    assert (model.text_adapter, model.experts, model.rank, config.frames.num_frames) == ("lora_moe", 4, 8, 6)


def test_k_makes_the_tasks(tmp_path: Path) -> None:
    config = composed(tmp_path, "K=4")
    assert list(config.tasks) == ["01", "02", "03", "04"]
    assert [entry.previous for entry in config.tasks.values()] == ["00", "01", "02", "03"]
    assert config.last == "04"


ABSENT = object()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("K", 6, "K = 6 disagrees with tasks"),
        ("K", "five", "K = 'five'"),
        ("last", "04", "disagrees with tasks"),
        ("seed", -1, "seed = -1"),
        ("seed", "zero", "seed = 'zero'"),
        ("threads", 0, "threads = 0"),
        ("data.name", "imagenet", "data.name = 'imagenet'.*actnet, creatures, local, msrvtt"),
        ("data.name", "shapes", "data.name = 'shapes'.*actnet, creatures, local, msrvtt"),
        ("backbone.steps", 300, "backbone.steps: unknown key"),
        ("split.validation", -1, "split.validation = -1"),
        ("data.protocol", "published", "data.protocol = 'published'"),
        ("data.categories", 0, "data.categories = 0"),
        ("frames.num_frames", 0, "frames.num_frames = 0"),
        ("frames.num_frames", 1.5, "frames.num_frames = 1.5"),
        ("frames.allow_missing", -1, "frames.allow_missing = -1"),
        ("frames.colour", "blue", "frames.colour: unknown key"),
        ("split.shots", 0, "split.shots = 0"),
        ("model.vision_adapter", "prompt", "model.vision_adapter = 'prompt'.*frame_fusion"),
        ("model.adapter_layers", -1, r"model\.adapter_layers = -1"),
        ("model.adapter_layers", "most", r"model\.adapter_layers = 'most'.*'all'"),
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
        ("loss", 3, "loss = 3"),
        *((key, ABSENT, f"{key}: missing") for key in ("K", "data", "loss", "train")),
    ],
)
def test_a_value_that_is_not_allowed_is_named(tmp_path: Path, key: str, value: object, said: str) -> None:
    values = params()
    *path, last = key.split(".")
    section = values
    for part in path:
        section = section[part]
    section[last] = value
    if value is ABSENT:
        del section[last]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=said) as caught:
        Config.load(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"K: [", "not valid YAML"),
        (b"just words", "keys and values"),
        (b"", "keys and values"),
        ("about: süß".encode("latin-1"), "not valid YAML"),
        (b"K: !!python/object/apply:os.mkdir [ran]", "not valid YAML"),
        (None, "structalign params"),
    ],
    ids=["broken", "words alone", "empty", "not UTF-8", "a Python object", "no file"],
)
def test_a_file_without_parameters_is_refused(here: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (here / "params.yaml").write_bytes(content)
    with refused(said):
        Config.load("params.yaml")
    assert not (here / "ran").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("K=0", "K = 0"),
        ("K=100", "K = 100"),
        ("K=two", "K = 'two'"),
        ("evaluate.rerank=0", r"evaluate\.rerank = 0"),
        ("evaluate.index=faiss", "evaluate: index = 'faiss' needs rerank"),
        ("data=cifar", "data=cifar: no such choice"),
        ("method=magic", "method=magic: no such choice"),
        ("train.learning_rate=1", r"train\.learning_rate"),
        ("loss.etf_weight=-0.5", r"loss\.etf_weight = -0\.5"),
    ],
)
def test_a_bad_override_leaves_the_file_alone(tmp_path: Path, override: str, said: str) -> None:
    target = tmp_path / "params.yaml"
    target.write_text("before")
    with pytest.raises(UserError, match=said) as caught:
        compose([override], target)
    assert "\n" not in str(caught.value)
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_selection_on_validation_videos_needs_some(tmp_path: Path) -> None:
    assert composed(tmp_path, "train.select=best_on_val").split.validation > 0
    with pytest.raises(UserError, match=r"train\.select = 'best_on_val': needs split\.validation"):
        composed(tmp_path, "train.select=best_on_val", "split.validation=0")


def test_compiled_encoders_are_not_recorded_as_well(tmp_path: Path) -> None:
    assert composed(tmp_path, "train.cuda_graphs=true").train.cuda_graphs
    with pytest.raises(UserError, match=r"cuda_graphs = true: compiled encoders"):
        composed(tmp_path, "train.cuda_graphs=true", "train.compile=true")


def test_former_names_of_adapters_are_accepted() -> None:
    values = {
        "vision_adapter": "moe",
        "adapter_layers": 1,
        "vision_rank": 1,
        "text_adapter": "experts",
        "experts": 2,
        "top_k": 1,
        "rank": 1,
        "lora_alpha": 1.0,
        "dropout": 0.0,
    }
    model = ModelConfig(**values)
    assert (model.vision_adapter, model.text_adapter) == ("mlp_moe", "lora_moe")


@pytest.mark.parametrize("change", ["split.shots=8", "split.imbalance=8", "split.order=shuffled"])
def test_a_published_split_cannot_be_drawn_in_another_way(tmp_path: Path, change: str) -> None:
    assert composed(tmp_path, "data=msrvtt", "data.protocol=fewshot", change).data.protocol == "fewshot"
    with pytest.raises(UserError, match=rf"{change.split('=')[0]} = .*published splits.*data\.protocol=fewshot"):
        composed(tmp_path, "data=msrvtt", change)


WITHOUT_ADAPTERS = [
    name for name in method_names() if method_class(name).trains_clip or not method_class(name).trains
]


@pytest.mark.parametrize("name", WITHOUT_ADAPTERS)
def test_a_method_that_trains_all_of_clip_or_nothing_takes_no_adapters(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"model\.vision_adapter = 'lora': method {name} needs none"):
        composed(tmp_path, f"method={name}", "model.vision_adapter=lora")
    with pytest.raises(UserError, match=rf"model\.text_adapter = 'lora': method {name} needs none"):
        composed(tmp_path, f"method={name}", "model.text_adapter=lora")


def test_a_method_that_is_named_without_its_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.vision_adapter = 'frame_fusion': method finetune needs none"):
        composed(tmp_path, "method.name=finetune")


def test_files_that_are_the_users_fill_what_is_empty(tmp_path: Path) -> None:
    files = ("data.validation_captions={source: /a/train.json}", "data.labels={source: /a/labels.json}")
    data = composed(tmp_path, "data=actnet", *files).data.model_dump()
    assert data["validation_captions"]["source"] == "/a/train.json"
    assert data["labels"] == {"source": "/a/labels.json", "sha256": None}
