"""How a teacher labels the pile, which of its labels train a student, and when that takes over."""

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from ns_ray.config.validation import Fraction, Settings

Decode = Literal["auto", "with_model", "apart"]


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
    """Refuse to label with a teacher whose validation accuracy is below this; of several first
    teachers that of their average."""
    teachers: int | None = Field(default=None, ge=1, le=100)
    """First teachers that are trained, alike but for their seeds: the average of their
    probabilities labels the pile for the first student. All else that is said of the first teacher
    is said of the first of them; later students are taught by one model. null: 3 where the
    teacher's epochs are left open and at most 2,000 images are labeled, else 1."""
    decode: Decode = "auto"
    """Where images are decoded: in threads beside the model (with_model), or in Ray tasks on any
    CPU of the cluster (apart). auto: beside it, unless CPUs are left over, the model waits for
    pixels, and a measurement of both says that apart is faster."""
    noised: bool = False
    """Label noised images with a noised teacher (the noise it was trained with). Costs accuracy:
    for the paper's ablation only."""

    @model_serializer(mode="wrap")
    def _without_what_came_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is left open is chosen when the images are known; see defaults.py."""
        values: dict[str, Any] = dump(self)
        if self.teachers is None:
            values.pop("teachers", None)
        if self.decode == "auto":
            values.pop("decode", None)
        return values


class SelectConfig(Settings):
    """Which pseudo-labels train the student (paper section 3.1)."""

    threshold: Fraction = 0.3
    """Keep images whose top probability is above this."""
    precision: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """A threshold for each class, at least `threshold`: the lowest above which the teacher's
    answers on validation images are right this often, as far as their number can tell; where too
    few are of the class, that of all classes together. null: `threshold` for all."""
    max_confidence: Fraction = 1.0
    """Keep images whose top probability is at most this; with `threshold` a band of confidence."""
    max_foreign: float | None = None
    """Keep images that are at most this foreign to the classes: 1 is what 95 of 100 validation
    images don't exceed, 0 what half of them don't (docs/foreign.md). null: keep them, but never
    as copies above 1."""
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the pile that may be selected at all, drawn by a hash of key and seed; a smaller
    share is part of a larger one."""
    per_class: int | Literal["auto"] | None = "auto"
    """At most this many rows per predicted class, highest confidence first; rarer classes are
    filled up with copies. auto: the mean over the classes. null: no balancing."""
    max_copies: int = Field(default=5, ge=1)
    """Most copies of one image. 1: rare classes are not filled up."""
    targets: Literal["soft", "hard"] = "hard"
    """Train on the teacher's probabilities (the paper's choice), or on its arg-max (better with few
    labels: docs/decisions/0032)."""
    temperature: Annotated[float, Field(gt=0.0)] | Literal["auto"] = 1.0
    """Soft targets are p^(1/temperature), renormalized; below 1 sharpens. auto: the temperature
    that gives the teacher the least log loss on validation images, about 1 for one that was trained
    with `train.calibrate`."""
    weights: Literal["soft"] | None = None
    """soft: in the loss each selected image counts 1 where its confidence is at least the mean of
    the pile, and less the further it is below (SoftMatch's truncated Gaussian). SoftMatch itself
    has it in place of a threshold and copies: `threshold: 0` and `per_class: null`. null: all
    count alike."""
    reassign: bool = False
    """From the second generation on, keep the first selection and only re-label it."""

    @property
    def needs_validation(self) -> bool:
        """Whether the teacher's predictions of validation images have a say."""
        return self.precision is not None or self.temperature == "auto"

    @model_serializer(mode="wrap")
    def _without_what_came_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is as it always was is not written: a selection from before stays valid."""
        values: dict[str, Any] = dump(self)
        if self.precision is None:
            values.pop("precision", None)
        if self.weights is None:
            values.pop("weights", None)
        if self.max_foreign is None:
            values.pop("max_foreign", None)
        return values

    @model_validator(mode="after")
    def _of_soft_targets(self) -> "SelectConfig":
        if self.temperature != 1.0 and "targets" not in self.model_fields_set:
            raise ValueError(
                f"temperature={self.temperature} is one of soft targets; set select.targets=soft "
                "with it, or leave it out"
            )
        return self

    @field_validator("per_class")
    @classmethod
    def _positive(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, int) and value < 1:
            raise ValueError("per_class must be at least 1, `auto` or null")
        return value


class AcceptConfig(Settings):
    """When a student replaces its teacher: decided on validation images."""

    max_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Accept when the one-sided paired (McNemar) test that the student is better gives p of at
    most this. 0.9: not clearly worse; 0.5: no worse on validation; 0.05: significantly better; 1:
    always. Above 0.5, a student is only refused that has lost five images more than it gained."""
    otherwise: Literal["keep_teacher", "continue", "stop"] = "keep_teacher"
    """A refused student: the old teacher labels again, it teaches all the same, or the run ends."""
