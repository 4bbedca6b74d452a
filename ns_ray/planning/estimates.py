"""What the stages of a run take together: time, CPU- and GPU-hours, room on the disk, and money."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ns_ray.compute import Pool, Workers
from ns_ray.config import PricesConfig, RunConfig
from ns_ray.store import Hours, Kind

if TYPE_CHECKING:
    from ns_ray.planning.costs import Counts, Stage

START_SECONDS: dict[Kind, float] = {"train": 2.0, "label": 1.0, "score": 0.1}
"""What a stage takes before its first and after its last image: about half of it here, with a
process of its own two or three times as long."""
CHECKPOINTS, CHECKPOINT_BYTES = 2, 16
"""Checkpoints of a training that are kept, and bytes of one for each parameter: the weights, their
average, and the two moments of AdamW."""
SIGNATURE_BYTES = 1700
"""Of a validation or test image, for its copies to be known by; measured on Fashion-MNIST."""
LABEL_BYTES = 40
"""Of a pseudo-label besides its probabilities: a key, a class and a confidence."""


def hours(kind: Kind, seconds: float, workers: Workers, pool: Pool) -> Hours:
    """What a stage of this kind holds while it works: trainings their workers, all others the
    actors."""
    if kind == "train":
        loaders = 0 if workers.in_turn else workers.loaders
        cpus, gpus = workers.count * (workers.cpus + loaders), workers.count * workers.gpus
    else:
        cpus, gpus = pool.actors * pool.cpus, pool.actors * pool.gpus
    return Hours(seconds, cpus * seconds / 3600, gpus * seconds / 3600)


def total(stages: "Iterable[Stage]", workers: Workers, pool: Pool) -> Hours:
    """All of them, one after the other; what was not measured counts nothing."""
    known = [(stage.kind, stage_seconds(stage, workers, pool) or 0.0) for stage in stages]
    return sum((hours(kind, seconds, workers, pool) for kind, seconds in known), Hours())


def stage_seconds(stage: "Stage", workers: Workers, pool: Pool) -> float | None:
    """What a stage takes with what it is going to work with; None where it was not measured."""
    if stage.rate is None:
        return None
    work = 1 / stage.rate
    if stage.kind == "train":
        several, loaders, beside = float(workers.count), workers.loaders, not workers.in_turn
    else:
        share = pool.gpus if pool.gpus else pool.cpus / workers.cpus
        several, loaders, beside = pool.actors * share, int(pool.cpus), pool.gpus > 0
    loading = stage.loading / max(1, loaders)
    per_image = max(work, loading) if beside else work + loading
    return START_SECONDS[stage.kind] + stage.images * per_image / several


def label_bytes(config: RunConfig, rows: int, classes: int) -> int:
    """What the pseudo-labels of all students take of the disk."""
    numbers = classes if classes <= config.label.dense_classes else 3 * config.label.top_k
    return len(config.students) * rows * (LABEL_BYTES + 2 * numbers)


def disk_bytes(
    config: RunConfig,
    counts: "Counts",
    timed: "Iterable[tuple[Stage, float | None]]",
    images: int,
) -> int:
    """What a run takes of the disk at its end.

    Args:
        config: the run.
        counts: its images.
        timed: its stages, and the seconds that they take.
        images: bytes of those it packs.
    """
    signed = 0 if config.data.leaks == "exact" else counts.validation + counts.test
    labels = label_bytes(config, counts.unlabeled, counts.classes)
    trainings = [(stage, seconds) for stage, seconds in timed if stage.kind == "train"]
    models = sum(_model_bytes(config, stage, seconds) for stage, seconds in trainings)
    return images + signed * SIGNATURE_BYTES + labels + models


def _model_bytes(config: RunConfig, stage: "Stage", seconds: float | None) -> int:
    """A model in fp32, and the checkpoints that its training leaves."""
    parameters = stage.cost.parameters if stage.cost else 0
    every = config.train.checkpoint_seconds
    made = CHECKPOINTS if seconds is None or not every else int(seconds // every)
    return 4 * parameters + min(made, CHECKPOINTS) * CHECKPOINT_BYTES * parameters


def amount(number: int) -> str:
    """A count in words: 58,000 or 1,779.6 M."""
    return f"{number:,}" if number < 10**6 else f"{number / 1e6:,.1f} M"


def memory(size: int) -> str:
    """Bytes in words: 35 MB, 27.6 GB."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"


def duration(seconds: float | None) -> str:
    """In words: 40 s, 12 min, 3.5 h, 20 days."""
    if seconds is None:
        return "?"
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{1 if name == 'h' else 0}f} {name}"
    days = seconds / 86_400
    return f"{days:,.0f} days" if days < 1000 else f"{days / 365:,.0f} years"


def in_words(needed: Hours, disk: int, prices: PricesConfig, besides: str = "") -> str:
    """`about 12 min: 0.40 CPU-hours, 1.2 GB of disk, 0.02 USD`.

    Args:
        needed: what the stages take together.
        disk: bytes.
        prices: of CPUs and GPUs.
        besides: what of the disk is not counted.
    """
    parts = [f"{needed.cpus:,.3g} CPU-hours"]
    if needed.gpus:
        parts.append(f"{needed.gpus:,.3g} GPU-hours")
    parts.append(f"{memory(disk)} of disk{besides}")
    money = needed.money(prices)
    if money is not None:
        parts.append(f"{money:,.2f} {prices.currency}")
    return f"about {duration(needed.seconds)}: {', '.join(parts)}"
