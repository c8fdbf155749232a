"""The schema of `params.yaml`: every parameter, its type, its range and its meaning.

A bad value raises one `UserError` that names the key, the value and what is allowed. The defaults live in
`conf/` (Hydra composes them into `params.yaml`), so that a file with a key missing is refused as well.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, SerializeAsAny, ValidationError, ValidationInfo, field_validator, model_validator

from structalign.config.discovery import module_names, one_of
from structalign.config.pipeline import ROOT
from structalign.config.section import Auto, Count, DataSection, Fraction, Positive, Rate, Section, Weight
from structalign.util.errors import UserError
from structalign.util.log import log
from structalign.util.machine import available_cores


class FramesConfig(Section):
    """How clips become stored frames."""

    num_frames: Positive
    """Frames per clip, N: the middles of N equal intervals."""
    short_side: Annotated[int, Field(ge=16)]
    """Pixels of the stored frames' shorter side."""
    quality: Annotated[int, Field(ge=1, le=100)]
    """JPEG quality."""
    shard_mb: Positive
    """Megabytes per packed shard."""
    allow_missing: Count
    """How many clips may be left out because they cannot be decoded."""


class SplitConfig(Section):
    """How categories become tasks (protocol `fewshot`; `published` reads both from the split file)."""

    shots: Positive
    """Training videos per category. Published splits allow only 16, no imbalance, order=given."""
    imbalance: Annotated[float, Field(ge=1)]
    """Ratio of training videos between the categories with the most and the fewest: counts fall from shots by a
    constant factor, in an order drawn from the seed. 1: all have the same number."""
    order: Literal["shuffled", "given"]
    """Order in which categories become tasks."""
    validation: Count
    """Validation videos per category, which neither train nor test uses; 0: none. Built-in data have them of their
    own, MSR-VTT and ActivityNet take them from what the benchmark leaves out, local data from rows whose split is
    `val`, or else from the training videos that the draw left."""
    categories_per_task: list[Positive] | None
    """K numbers of categories, in the order of tasks; null: all tasks have the same number."""


class BackboneConfig(Section):
    """The CLIP that everything starts from."""

    architecture: str
    """An open_clip model name, or `tiny`: a small CLIP that comes with the program, trained on still images."""
    pretrained: str | None
    """An open_clip pretrained tag."""
    weights: str | None
    """A local weights file, in place of `pretrained`."""

    @model_validator(mode="after")
    def _tiny_has_its_own_weights(self) -> BackboneConfig:
        for key in ("pretrained", "weights"):
            if self.architecture == "tiny" and (value := getattr(self, key)) is not None:
                raise ValueError(
                    f"architecture = 'tiny' has weights of its own, and backbone.{key} = {value!r} would be ignored: "
                    f"set backbone.{key}=null, or backbone.architecture to the weights' own"
                )
        return self


class ModelConfig(Section):
    """Adapters (METHOD.md, section 2)."""

    vision_adapter: Literal["frame_fusion", "lora", "mlp_moe", "prompts", "none"]
    """What trains in the vision tower: attention between frames, LoRA, expert MLPs, prompts, or nothing."""
    adapter_layers: Count | Literal["all"]
    """How many of the last vision blocks carry an adapter; all: every one."""
    vision_rank: Positive
    """Rank of the vision LoRA, and of the vision experts of `mlp_moe`."""
    video_pooling: Literal["mean", "text", "proxies"] = "mean"
    """What a video's frames become: their mean; a vector for each text that attends to them (method xpool); or one
    vector from a pass of all frames at once, with four proxy tokens that see all of them (method clip_vip)."""
    text_adapter: Literal["lora_moe", "lora", "mlp_moe", "prompts", "none"]
    """What trains in the text tower: a mixture of LoRA experts, LoRA, expert MLPs, prompts, or nothing."""
    general_prompts: Positive = 5
    """`prompts`: how many all tasks share, in each of the first two blocks."""
    expert_prompts: Positive = 8
    """`prompts`: how many each task has of its own, in each of the next three blocks."""
    experts: Positive
    """LoRA experts per projection, E; of `mlp_moe`, experts per block."""
    top_k: Positive
    """Experts that answer for one text; of `mlp_moe`, for one text or frame."""
    rank: Positive
    """Rank r of the text LoRA, and of the text experts of `mlp_moe`."""
    lora_alpha: Rate
    """LoRA updates, and what the experts of `mlp_moe` add, are scaled by lora_alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)]
    """Dropout on the input of LoRA's A, and on the hidden states of `mlp_moe`'s experts."""
    checkpoint_vision: bool = False
    """Compute vision blocks again in the backward pass instead of keeping what they need: less memory, more time."""

    @field_validator("vision_adapter", "text_adapter", mode="before")
    @classmethod
    def _renamed(cls, value: object, info: ValidationInfo) -> object:
        """Accept the former names of the two mixtures of experts."""
        now = {"experts": "lora_moe", "moe": "mlp_moe"}.get(value) if isinstance(value, str) else None
        if now is None:
            return value
        log.info(f"model.{info.field_name} = {value!r} is now called {now!r}")
        return now

    @model_validator(mode="after")
    def _top_k_within_experts(self) -> ModelConfig:
        if self.top_k > self.experts:
            raise ValueError(f"top_k = {self.top_k} exceeds experts = {self.experts}")
        return self


class SimilarityConfig(Section):
    """The score that ranks videos for a query (METHOD.md, section 3)."""

    pooling: Literal["max", "soft"]
    """How words and frames meet: by their best match, or by softmax-weighted sums."""
    alpha: Fraction
    """Share of the word-frame score in the ranking; the rest is the global cosine."""


class EtfConfig(Section):
    """The simplex equiangular tight frame (METHOD.md, section 4)."""

    construction: Literal["exact", "random"]
    """exact: every pair of prototypes at the same angle. random: a normalised Gaussian projection, as released."""
    num_classes: Annotated[int, Field(ge=2)] | None
    """Prototypes to provide for; null: the number of categories over all tasks."""
    train_projections: bool
    """Whether the linear maps P_t and P_v train; the released code leaves them at their random start."""


class LossConfig(Section):
    """Weights and forms of the training losses (METHOD.md, section 4). A term of weight 0 costs nothing."""

    etf_weight: Weight
    """Weight of the alignment with the ETF prototypes; 0 drops the term and its cost."""
    etf_adaptive: bool
    """True: ETF always weighs etf_weight of the base loss. False: etf_weight is a plain factor."""
    crp_weight: Weight
    """Weight of cross-modal relation preservation; 0 drops the term and its cost."""
    crp_teacher: Literal["previous", "initial"]
    """Whose relations are preserved: those of the model after the previous task, or of the untouched CLIP."""
    temperature: Rate
    """Temperature of relation preservation and of distillation."""
    pseudo_weight: Weight
    """Weight of the term that contrasts pseudo pairs of old classes with the batch."""
    pseudo_etf: bool
    """Whether pseudo pairs of old classes join the ETF term as well."""
    pseudo_balanced: bool
    """True: old classes are drawn equally often. False: in proportion to their training samples."""
    pseudo_same_class: Literal["negative", "masked", "positive"]
    """What two pseudo pairs of one class are to each other: negatives as in the paper, though nothing tells them
    apart; left out; or positives, which changes the loss and not its gradient, as pseudo features are constants."""
    pseudo_normalised: bool
    """Whether pseudo features are scaled to length 1, as real ones are; the paper takes them as drawn."""
    scl_scale: Literal["batch", "global"]
    """Scale of the word-frame loss's logits: exp(4.60) / sqrt(batch size) as in the paper, or exp(4.60) as in the
    contrastive loss of the methods that use global features."""
    distill_weight: Weight
    """Weight of the distillation term of lwf, vr_lwf and zscl."""
    cross_task_source: Literal["gallery", "train"]
    """Whose stored features stablefusion's cross-task term contrasts with: the galleries of earlier tasks, which are
    features of their test videos and which no other method trains on, or their training videos."""
    cross_task_weight: Fraction
    """Share b of stablefusion's cross-task term: (1 - b) * SCL + b * CE."""
    same_video: Literal["negative", "masked", "positive"]
    """What two captions of one video are to each other within a batch, in every contrastive term of any method."""


PUBLISHED = {"shots": 16, "imbalance": 1.0, "order": "given", "categories_per_task": None}
"""What the published splits of MSR-VTT and ActivityNet were drawn with, as keys of `split`."""


class MethodConfig(Section):
    """Which continual-learning method runs (METHOD.md, section 7)."""

    name: str
    """A file in `structalign/methods/`. `method=NAME` also sets the values that go with the method."""

    @field_validator("name")
    @classmethod
    def _method_exists(cls, name: str) -> str:
        return one_of(module_names("methods"), name)


class TrainConfig(Section):
    """Optimisation (METHOD.md, section 4)."""

    epochs: Positive
    """Epochs per task."""
    max_steps: Positive | None
    """null: every step of every epoch. N: a task and its schedule end after N steps, to try a path quickly."""
    batch_size: Annotated[int, Field(ge=2)]
    """Pairs of a video and a caption in a step, over all devices."""
    lr_first: Rate
    """Learning rate in task 1."""
    lr_later: Rate
    """Learning rate of the attention adapters in later tasks."""
    lr_scalars: Rate
    """Learning rate of fusion scalars and task prototypes in later tasks."""
    lr_clip: Rate
    """Learning rate of the methods that train all of CLIP, in every task."""
    weight_decay: Weight
    """Weight decay of AdamW."""
    eps: Rate
    """Epsilon of AdamW."""
    clip_norm: Rate
    """Largest norm of the gradient over all trained parameters."""
    warmup: Fraction
    """Share of task 1's steps that warm up; later tasks have no warm-up."""
    schedule: Literal["cosine", "released"]
    """cosine: half a cosine down to 0. released: a full one, which comes back up."""
    select: Literal["last", "best_on_val", "best_on_test"]
    """Which epoch is kept: the last, or that with the best R@1 over all seen tasks on the validation videos
    (split.validation) or on the test videos. best_on_test leaks the test set; it is there to compare with published
    tables."""
    patience: Positive
    """best_on_val, best_on_test: stop after this many epochs without a better R@1 ..."""
    min_epochs: Count
    """... but not before this many."""
    freeze_experts: bool
    """moe_adapter: when a task ends, the experts that it used most keep what they learnt."""
    balanced: bool
    """Batches draw all categories equally often, whatever their number of videos."""
    crop_scale: Annotated[float, Field(gt=0, le=1)]
    """Smallest share of the frame's area that a random crop keeps."""
    flip: bool
    """Random horizontal flips; set it to false if captions say left or right."""
    precision: Literal["auto", "fp32", "bf16"]
    """auto: bf16 on a GPU that has it, fp32 elsewhere. For a CLIP of ViT-B/32's size, a CPU with bf16 instructions
    (AVX512-BF16) takes 0.6 of the time with bf16; the tiny CLIP is slower with it."""
    devices: Positive | Auto
    """Devices that train together, each on a share of every batch; auto: all visible GPUs, or 1 on the CPU. Loss and
    gradients are those of one device up to rounding, but each device draws dropout and router noise of its own."""
    share_videos: bool
    """Encode a video that occurs several times in a batch once, with one augmentation for all of its captions."""
    compile: bool
    """Compile the encoders with torch.compile: minutes at first, faster steps afterwards."""
    cuda_graphs: bool
    """On a GPU, record what the encoders do and repeat it, in place of launching thousands of kernels in every
    step. Takes about twice the memory, and more for each length of captions (in steps of 8 tokens). Nothing
    changes on a CPU, with all of CLIP trained, with mlp_moe adapters or with model.checkpoint_vision."""
    deterministic: bool
    """Use only algorithms that repeat bit for bit on a GPU, and stop at an operation that has none; slower. The CPU's
    always do."""

    @model_validator(mode="after")
    def _compiled_or_recorded(self) -> TrainConfig:
        if self.compile and self.cuda_graphs:
            raise ValueError("cuda_graphs = true: compiled encoders cannot be recorded; set compile or it to false")
        return self


class EvaluateConfig(Section):
    """Encoding and ranking of the test videos."""

    batch_size: Positive
    """Videos encoded at a time; with 8 of 12 frames, ViT-B/32 needs about 0.7 GB above the model."""
    drift_videos: Count
    """Test videos per class encoded again after every task to see how far features moved; 0: none."""
    rerank: Positive | None
    """null: every query is scored against every video. M: each query's M best videos by global cosine are scored by
    words and frames as well, and all others rank below them, in the order of their global cosine. A candidate's
    score is the fused one, but the mean and standard deviation of its word-frame z-score come from 512 videos spread
    evenly over the gallery. If M covers the gallery, nothing changes. train.select ranks in full."""
    index: Literal["flat", "faiss"]
    """How the M best are found. flat: among all global cosines. faiss: in an inverted file of 8-bit vectors, for
    galleries beyond memory; it may miss some, and videos that it does not return tie for the last rank."""

    @model_validator(mode="after")
    def _index_needs_rerank(self) -> EvaluateConfig:
        if self.index != "flat" and self.rerank is None:
            raise ValueError(f"index = {self.index!r} needs rerank, the number of candidates to find for each query")
        return self


class MachineConfig(Section):
    """How this machine is used. No stage runs again when it changes: workers change no result, another kind of device
    changes last bits, and precision if `train.precision` is auto."""

    device: str
    """auto, cpu, cuda, cuda:1, ..."""
    workers: Positive | Auto
    """Processes that decode videos and threads that decode stored frames; auto: one per core."""

    @property
    def num_workers(self) -> int:
        """`workers` as a number."""
        return available_cores() if self.workers == "auto" else self.workers


class TaskEntry(Section):
    """One row of the schedule that `dvc.yaml` iterates over."""

    id: Positive
    previous: str


class Config(Section):
    """All of `params.yaml`."""

    about: str
    variant: Literal["method", "released", "figure", "light"]
    """method: as the paper describes it. released: as the authors' released code runs. figure: as the paper's
    framework figure shows it. light: less to train, compute and store."""
    K: Annotated[int, Field(ge=1, le=99)]
    """Number of tasks."""
    seed: Count
    """The one seed: data, split, initialisation, order and noise all follow from it."""
    threads: Positive | Auto
    """CPU threads that PyTorch computes with; results depend on them in the last bits, which training magnifies.
    auto: one per core, so that machines of different sizes differ."""
    tasks: dict[str, TaskEntry]
    last: str
    tuned_on: str | None
    """Data set that the values of `tuned=NAME` were found on: others refuse them, and null takes them as they are."""
    annotations: str
    """File that `download` depends on besides its code: `data.csv`, or the data set's own file in conf/data."""
    data: SerializeAsAny[DataSection]
    frames: FramesConfig
    split: SplitConfig
    backbone: BackboneConfig
    model: ModelConfig
    similarity: SimilarityConfig
    etf: EtfConfig
    loss: LossConfig
    method: MethodConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    machine: MachineConfig

    @model_validator(mode="after")
    def _selection_has_videos(self) -> Config:
        if self.train.select == "best_on_val" and self.split.validation == 0:
            raise ValueError("train.select = 'best_on_val': needs split.validation, validation videos per category")
        return self

    @model_validator(mode="after")
    def _every_device_has_a_pair(self) -> Config:
        devices, batch_size = self.train.devices, self.train.batch_size
        if devices != "auto" and devices > batch_size:
            raise ValueError(f"train.devices = {devices}: exceeds train.batch_size = {batch_size}; lower it")
        return self

    @model_validator(mode="after")
    def _tuned_values_are_of_these_data(self) -> Config:
        if self.tuned_on not in (None, self.data.name):
            raise ValueError(
                f"tuned_on = {self.tuned_on!r}: the tuned values were found on other data than {self.data.name!r}; "
                f"`structalign tune --data {self.data.name}` finds its own, and tuned_on=null takes these"
            )
        return self

    @model_validator(mode="after")
    def _published_splits_are_as_they_are(self) -> Config:
        if self.data.protocol == "published":
            for key, value in PUBLISHED.items():
                if getattr(self.split, key) != value:
                    raise ValueError(
                        f"split.{key} = {getattr(self.split, key)!r}: the published splits are drawn already, with "
                        f"{value!r}; data.protocol=fewshot draws others"
                    )
        return self

    @model_validator(mode="after")
    def _model_is_the_methods(self) -> Config:
        name, model = self.method.name, self.model
        for key, value in _model_of_method(name).items():
            if (key == "video_pooling" or value == "none") and getattr(model, key) != value:
                raise ValueError(f"model.{key} = {getattr(model, key)!r}: method {name} needs {value}")
        if model.video_pooling == "proxies" and self.similarity.alpha > 0:
            raise ValueError(
                f"similarity.alpha = {self.similarity.alpha}: method {name} has no frame features; set 0"
            )
        return self

    @model_validator(mode="after")
    def _tasks_follow_from_k(self) -> Config:
        names = [f"{task:02d}" for task in range(1, self.K + 1)]
        previous = [f"{task:02d}" for task in range(self.K)]
        same = list(self.tasks) == names and [entry.previous for entry in self.tasks.values()] == previous
        if not same or self.last != names[-1]:
            raise ValueError(
                f"K = {self.K} disagrees with tasks = {list(self.tasks)} (last: {self.last}); "
                f"set K with `dvc exp run -S K={self.K}` or `structalign params K={self.K}`, not by hand"
            )
        return self

    @classmethod
    def load(cls, path: str | Path = "params.yaml") -> Config:
        """Read and check a parameter file.

        Raises
        ------
        UserError
            If the file is missing, is not YAML, or holds a key or value that is not allowed.
        """
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; `structalign params` composes it") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise UserError(f"{path}: expected keys and values, found {type(values).__name__}")
        return cls.parse(values, str(path))

    @classmethod
    def parse(cls, values: dict[str, Any], where: str = "params") -> Config:
        """Check values that are already in memory; `where` names their origin in error messages.

        Raises
        ------
        UserError
            If keys or values are not allowed; the message names all of them.
        """
        data, problems = _parse_data(values.get("data"))
        try:
            config = cls.model_validate({**values, "data": data})
        except ValidationError as error:
            problems += [_describe(item) for item in error.errors()]
        if problems:
            raise UserError(f"{where}: {'; '.join(problems)}") from None
        return config


def _model_of_method(name: str) -> dict[str, Any]:
    """What `method=NAME` sets in the section `model`; empty if the method has no file in `conf/method/`."""
    path = ROOT / f"conf/method/{name}.yaml"
    if not path.exists():
        return {}
    return {"video_pooling": "mean", **yaml.safe_load(path.read_text(encoding="utf-8")).get("model", {})}


def _parse_data(values: Any) -> tuple[DataSection, list[str]]:
    """Check the section `data` by the data set that it names; return it and what is wrong with it."""
    placeholder = DataSection(name="", protocol="fewshot")
    if not isinstance(values, dict):
        return placeholder, ["data: missing" if values is None else f"data = {values!r}: must hold keys and values"]
    try:
        name = one_of(module_names("data/datasets"), values.get("name"))
    except ValueError as error:
        return placeholder, [f"data.name = {values.get('name')!r}: {error}"]
    try:
        section = import_module(f"structalign.data.datasets.{name}").DataConfig.model_validate(values)
    except ValidationError as error:
        return placeholder, [_describe(item, "data") for item in error.errors()]
    return section, []


def _describe(error: Any, section: str = "") -> str:
    """One problem as `key = value: what would be right`."""
    location = ([section] if section else []) + [str(part) for part in error["loc"]]
    key = ".".join(part for part in location if part not in ("constrained-int", "literal['auto']", "literal['all']"))
    kind, message = error["type"], error["msg"]
    if kind == "extra_forbidden":
        return f"{key}: unknown key"
    if kind == "missing":
        return f"{key}: missing"
    if kind == "value_error":
        return f"{key}: {error['ctx']['error']}" if key else str(error["ctx"]["error"])
    return f"{key} = {error['input']!r}: {message[0].lower()}{message[1:]}"
