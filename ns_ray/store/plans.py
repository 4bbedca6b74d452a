"""What a run was going to take when it began (plan.json), for its report to compare with."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from ns_ray.store.contents import Count, Seconds, holding
from ns_ray.store.files import read_json, write_json


@dataclass(frozen=True)
class PlannedStage:
    """A training, labeling or scoring.

    Attributes:
        id: of the step that it is, or is a part of: `gen-01/train`; see steps.py.
        kind: what it does.
        images: how many go through the model.
        seconds: what it was going to take; None where that was not measured.
        cpus: that it holds.
        gpus: that it holds.
    """

    id: str
    kind: Literal["train", "label", "score"]
    images: Count
    seconds: Seconds | None
    cpus: Seconds
    gpus: Seconds


@dataclass(frozen=True)
class _Plan:
    stages: tuple[PlannedStage, ...]
    disk_bytes: Count


def write_plan(path: str, stages: Sequence[PlannedStage], disk: int) -> None:
    """Write the stages of a run, and the bytes that it takes of the disk at its end."""
    write_json(path, {"stages": [asdict(stage) for stage in stages], "disk_bytes": disk})


def read_plan(path: str) -> tuple[tuple[PlannedStage, ...], int]:
    """The stages of a run, and the bytes that it was going to take of the disk.

    Raises:
        DamagedFileError: it is no plan.
    """
    found = holding(_Plan, read_json(path), path)
    return found.stages, found.disk_bytes
