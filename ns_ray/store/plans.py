"""What a run was going to take when it began (plan.json), for its report to compare with."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from ns_ray.config import PricesConfig
from ns_ray.store.contents import Count, Seconds, holding
from ns_ray.store.files import read_json, write_json

Kind = Literal["train", "label", "score"]


@dataclass(frozen=True)
class Hours:
    """What is held, and how long.

    Attributes:
        seconds: from the first stage to the end of the last, one after the other.
        cpus: CPU-hours.
        gpus: GPU-hours.
    """

    seconds: float = 0.0
    cpus: float = 0.0
    gpus: float = 0.0

    def __add__(self, other: "Hours") -> "Hours":
        return Hours(self.seconds + other.seconds, self.cpus + other.cpus, self.gpus + other.gpus)

    def money(self, prices: PricesConfig) -> float | None:
        """What they cost; None where nothing has a price."""
        if prices.cpu_hour is None and prices.gpu_hour is None:
            return None
        return self.cpus * (prices.cpu_hour or 0.0) + self.gpus * (prices.gpu_hour or 0.0)


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
    kind: Kind
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
