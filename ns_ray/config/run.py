"""A whole run as settings: its images, its models, its stages, and where the work runs.

Knows nothing about files, torch or Ray. Unknown keys are errors that suggest the nearest key; every
other check lives beside the field it guards. How settings are read: loading.py.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from ns_ray.config.labeling import AcceptConfig, LabelConfig, PredictConfig, SelectConfig
from ns_ray.config.scoring import EvaluateConfig
from ns_ray.config.training import (
    ModelConfig,
    TrainConfig,
    as_asked,
    finetuning,
    fixres_config,
    train_config,
)
from ns_ray.config.validation import Duration, Fraction, Settings
from ns_ray.errors import ConfigError


def _sources(value: Any) -> Any:
    """A list of one source is that source."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(v, str) for v in value):
        return value[0] if len(value) == 1 else value
    raise ValueError("must be a source, or a list of sources")


def _several(value: Any) -> Any:
    """One name is a list of it."""
    return [value] if isinstance(value, str) else value


Several = Annotated[tuple[str, ...], Field(min_length=1)]
Sources = Annotated[str | Several, BeforeValidator(_sources)]
"""One source, or several as one."""


class DataConfig(Settings):
    """Which images. A source is a folder per class, a flat folder (unlabeled), a CSV, JSON, Parquet
    or Arrow table, WebDataset tars (also .tar.gz, .tar.bz2, .tar.xz, .tar.zst), zip archives of
    folders (photos.zip, or photos.zip/train for one in it), IDX files, a packed corpus, or a named
    set: digits, fashion-mnist, cifar10, svhn. It may lie on s3://, gs:// or
    hf://datasets/OWNER/NAME; tables, tars, archives and IDX files may be URLs (https://), and so
    may the images that a table names."""

    labeled: Sources
    """Source of the labeled images, or a list of sources: then keys have the source's index in
    front, and classes are those of all."""
    unlabeled: tuple[str, ...] = ("rest",)
    """Sources of the pile; labels in them are ignored. `rest` stands for the labeled images that
    `labels` and `validation_size` leave over."""
    validation: Sources | None = None
    """Source of the validation images, or a list. null: held out of the labeled images,
    stratified."""
    test: Sources | None = None
    """Source of the test images, or a list, scored once at the end. null: no test."""
    labels: int | None = Field(default=None, ge=2)
    """Train on this many labeled images only, drawn per class by seed. null: all."""
    validation_size: float = Field(default=0.1, gt=0)
    """How much to hold out when `validation` is null: a fraction below 1, else a number of images.
    """
    max_rejected: Fraction = 0.1
    """Exit 3 as soon as more than this fraction of a source cannot be read."""
    max_pixels: int = Field(default=178_956_970, ge=1, le=178_956_970)
    """Reject images with more pixels (Pillow's own limit against decompression bombs)."""
    id_column: str | None = None
    """Leave the pile's images in its Parquet tables, which hold them encoded, rather than copy
    them. This column's values, which are unique, become keys. They are read and checked all the
    same; the tables must stay as they are while the images are used. null: images are copied."""
    rows_per_shard: int = Field(default=1024, ge=1)
    """Images in one shard of a packed corpus: the unit of labeling, retry and resume."""
    leaks: Literal["near", "exact"] = "near"
    """What of the labeled images and the pile is left out as a copy of a validation or test image.
    near: the same file, and the same picture encoded anew, resized, cropped by 5 %, brighter or
    darker, or mirrored (docs/leaks.md); of files that are in the pile several times, one stays.
    exact: the same file."""

    @model_serializer(mode="wrap")
    def _without_what_came_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is as it always was is not written: a run from before stays valid."""
        values: dict[str, Any] = dump(self)
        if self.id_column is None:
            values.pop("id_column", None)
        if self.leaks == "near":
            values.pop("leaks", None)
        return values

    @field_validator("unlabeled", mode="before", json_schema_input_type=str | tuple[str, ...])
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


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
    """Restarts of a training whose worker or node was lost, without a step forward between them.
    -1: no limit."""
    max_wait: Duration = "15m"
    """How long to wait for nodes of a cluster that are not there yet: those its autoscaler adds,
    and those that take the place of lost ones."""


class PricesConfig(Settings):
    """What machines cost, for `ns-ray plan` and the report. null: not known."""

    cpu_hour: float | None = Field(default=None, ge=0)
    """Price of one CPU for an hour: that of a machine without GPUs, divided by its CPUs."""
    gpu_hour: float | None = Field(default=None, ge=0)
    """Price of one GPU for an hour, above that of the CPUs beside it."""
    currency: str = "USD"
    """What the prices are in."""


class RunConfig(Settings):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Folder of the run below `storage`: letters, digits, dot, dash and underscore."""
    storage: str = "runs"
    """A folder, or an s3:// or gs:// URI, which may end with options of pyarrow:
    s3://bucket/runs?endpoint_override=https://HOST&region=eu-west-1. AWS_ENDPOINT_URL_S3 and
    AWS_ENDPOINT_URL name the server too, to processes that have them."""
    seed: int = Field(default=0, ge=0)
    """Decides splits, weights, order, augmentation, and ties of the selection."""
    budget: Duration | None = None
    """Fit the run into this time: 90s, 30m, 2h, 1h30m. When the images are packed, a few steps are
    measured. Then all models whose `epochs` are left open take fewer steps, down to a quarter of
    them, and where `students` is left out, there may be fewer (docs/decisions/0034). null: as long
    as it takes."""
    data: DataConfig
    teacher: ModelConfig
    students: tuple[ModelConfig, ...] = Field(default=(), min_length=1)
    """The students in turn, each as large as its teacher or larger. Left out: two like the teacher.
    """
    predict: PredictConfig = PredictConfig()
    label: LabelConfig = LabelConfig()
    select: SelectConfig = SelectConfig()
    train: TrainConfig = TrainConfig()
    accept: AcceptConfig = AcceptConfig()
    control: bool = False
    """Also train the last student's architecture, steps and noise on labeled images only; in two
    parts where it has `finetune`."""
    refit: bool = False
    """At the end, make the best student and the models that led to it once more with the validation
    images among the labeled ones, and deliver that student. Steps grow with the labels: it takes
    longer than the run so far. Only test images can say how good it is; without an accepted student
    nothing is made again."""
    evaluate: EvaluateConfig = EvaluateConfig()
    resources: ResourcesConfig = ResourcesConfig()
    prices: PricesConfig = PricesConfig()
    trackers: Annotated[
        tuple[Literal["mlflow", "wandb"], ...], BeforeValidator(_several, str | list[str])
    ] = ()
    """What a run tells its settings, metrics, report and model beside its own files: mlflow, wandb
    (docs/trackers.md). Their own environment variables say where, such as MLFLOW_TRACKING_URI,
    MLFLOW_EXPERIMENT_NAME, WANDB_PROJECT and WANDB_MODE."""

    @field_serializer("train")
    def _asked(self, train: TrainConfig) -> dict[str, Any]:
        """What a run leaves open is chosen when its images are known; see defaults.py."""
        return as_asked(train)

    @model_serializer(mode="wrap")
    def _without_what_came_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is as it always was is not written: a run from before stays valid."""
        values: dict[str, Any] = dump(self)
        if self.budget is None:
            values.pop("budget", None)
        if not self.refit:
            values.pop("refit", None)
        if self.prices == PricesConfig():
            values.pop("prices", None)
        if not self.trackers:
            values.pop("trackers", None)
        return values

    @model_validator(mode="wrap")
    @classmethod
    def _two_like_the_teacher(
        cls, raw: Any, validated: ModelWrapValidatorHandler["RunConfig"]
    ) -> "RunConfig":
        """Where no students are named, and the teacher is a model to be trained. They don't count
        as set: a budget may leave some out."""
        teacher = raw.get("teacher") if isinstance(raw, Mapping) else None
        if not isinstance(teacher, Mapping) or "students" in raw or not teacher.get("model"):
            return validated(raw)
        own = ("model", "pretrained", "model_args", "image_size", "crop_pct")
        student = {name: teacher[name] for name in own if name in teacher}
        made = validated({**raw, "students": [student, dict(student)]})
        made.model_fields_set.discard("students")
        return made

    @model_validator(mode="after")
    def _students_are_trained(self) -> "RunConfig":
        if not self.students:
            raise ValueError("students: name at least one model, such as {model: efficientnet_b0}")
        if self.teacher.finetune is not None:
            raise ValueError("teacher.finetune: a first teacher has no pseudo-labels; leave it out")
        if self.teacher.init == "teacher":
            raise ValueError(
                "teacher.init=teacher: the first teacher has no teacher; use scratch, and "
                "teacher.pretrained for start weights of your own"
            )
        if self.teacher.bundle is not None and (self.label.teachers or 1) > 1:
            raise ValueError(
                f"label.teachers={self.label.teachers}, but teacher.bundle={self.teacher.bundle} "
                "is one teacher; set label.teachers=1, or teacher.model to train several"
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
