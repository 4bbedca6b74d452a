"""The verdict of a run (result.json) and the scores of its models (evaluation.json), as whoever
shows them needs them."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from ns_ray.errors import DamagedFileError
from ns_ray.store.contents import Count, Number, Seconds, holding
from ns_ray.store.files import read_json


@dataclass(frozen=True)
class _PseudoLabels:
    kept: Count
    copies: Count = 0


@dataclass(frozen=True)
class _Row:
    """A generation, or the control arm."""

    generation: Annotated[int, Field(ge=-1, le=10_000)]
    role: str
    model: str
    parameters: Count
    val_top1: Number
    test_top1: Number | None
    accepted: bool | None
    pseudo_labels: _PseudoLabels | None
    seconds: dict[str, Seconds]
    images_per_second: dict[str, Seconds | None]
    p_value: Number | None = None


@dataclass(frozen=True)
class _Refit:
    generations: Annotated[tuple[Count, ...], Field(min_length=1)]
    labeled: Count
    test_top1: Number | None
    seconds: dict[str, Seconds]


@dataclass(frozen=True)
class _Data:
    classes: tuple[str, ...]
    labeled: Count | None = None
    unlabeled: Count | None = None
    validation: Count | None = None
    test: Count | None = None
    rejected: dict[str, dict[str, Count] | None] = field(default_factory=dict)


@dataclass(frozen=True)
class _Result:
    name: str
    status: str
    config_hash: str
    best_generation: Count
    generations: Annotated[tuple[_Row, ...], Field(min_length=1)]
    control: _Row | None
    data: _Data | None = None
    refit: _Refit | None = None
    versions: dict[str, Any] = field(default_factory=dict)


def read_result(path: str) -> dict[str, Any]:
    """The result of a run that has ended.

    Raises:
        DamagedFileError: it is none.
    """
    raw = read_json(path)
    found = holding(_Result, raw, path)
    if [row.generation for row in found.generations] != [*range(len(found.generations))]:
        raise DamagedFileError(path, "its generations are not 0, 1, ... in this order")
    if found.best_generation >= len(found.generations):
        count = len(found.generations)
        said = f"its best generation is {found.best_generation}, and there are {count}"
        raise DamagedFileError(path, said)
    return raw


@dataclass(frozen=True)
class _Bin:
    """Of a reliability diagram."""

    low: Number
    high: Number
    rows: Count
    confidence: Number
    accuracy: Number


@dataclass(frozen=True)
class _Class:
    name: str
    rows: Count
    precision: Number
    recall: Number
    f1: Number


@dataclass(frozen=True)
class _Scores:
    """On the images of a split."""

    rows: Count
    top1: Number
    nll: float
    ece: Number
    top1_interval: tuple[Number, Number] | None = None
    confusion: list[list[Count]] | None = None
    reliability: list[_Bin] | None = None
    classes: list[_Class] | None = None
    images_per_second: Seconds | None = None


@dataclass(frozen=True)
class _Corruption:
    family: str
    error: dict[str, Number]
    mean: Number


@dataclass(frozen=True)
class _Robustness:
    corruptions: dict[str, _Corruption] = field(default_factory=dict)
    adversarial: dict[str, dict[str, Number]] = field(default_factory=dict)
    perturbations: dict[str, dict[str, Any]] = field(default_factory=dict)
    mean_corruption_error: Number | None = None


@dataclass(frozen=True)
class _Paired:
    p: Number


@dataclass(frozen=True)
class _Evaluation:
    validation: _Scores | None = None
    test: _Scores | None = None
    robustness: _Robustness | None = None
    robustness_before_fixres: _Robustness | None = None
    paired: dict[str, _Paired] = field(default_factory=dict)


def read_scores(path: str) -> dict[str, Any]:
    """The scores of a model of a run.

    Raises:
        DamagedFileError: the file holds none.
    """
    raw = read_json(path)
    holding(_Evaluation, raw, path)
    return raw
