"""The model of `benchmarks/simulate_cluster.py`, against what is known without it."""

import math
from dataclasses import replace
from statistics import mean

import pytest
from cluster_model import Costs, Labeling, Training, simulate, work
from simulate_cluster import LABELED, stages

HOUR = 3600.0
# A step of a second on one node of eight GPUs, or of a quarter of it on four.
TRAINING = Training(
    steps=20_000, flops=8e14, accumulate=4, log_steps=20, checkpoint_seconds=600, bytes=8e9
)
LABELING = Labeling(rows=5_000_000, rows_per_shard=1000, flops=1e11)
WRITE = 10.0
"""Seconds of a checkpoint."""
# All but losses and checkpoints for nothing.
AT_ONCE = Costs(
    actor_start=(0, 0), group_start=(0, 0), compile=0, noticing=0, patience=0, replaced=(0, 0),
    shard=0, driver=math.inf, storage_all=math.inf,
)  # fmt: skip


def hours(job: Training | Labeling, gpus: int, life: float, noticed: float) -> float:
    """The mean over seeds."""
    outcomes = [simulate(job, gpus, life * HOUR, noticed, seed) for seed in range(6)]
    return mean(out.seconds for out in outcomes) / HOUR


@pytest.mark.parametrize("gpus", [8, 64])
def test_without_losses_a_training_takes_its_steps_and_its_checkpoints(gpus: int) -> None:
    job = replace(TRAINING, checkpoint_seconds=100)
    window = 160 / gpus  # seconds of 20 steps
    checkpoints = math.ceil(1000 / math.ceil((100 - WRITE) / window)) - 1
    seconds = simulate(job, gpus, costs=AT_ONCE).seconds
    assert seconds == pytest.approx(1000 * window + WRITE * checkpoints)
    assert work(job, gpus, AT_ONCE) == pytest.approx(1000 * window)


@pytest.mark.parametrize("gpus", [8, 64])
def test_without_losses_a_labeling_takes_its_forward_passes(gpus: int) -> None:
    out = simulate(LABELING, gpus, costs=AT_ONCE)
    assert out.seconds == pytest.approx(work(LABELING, gpus, AT_ONCE), rel=0.1)  # the last tasks
    assert out.seconds >= 5_000_000 / 748 / gpus
    assert out.held == pytest.approx(out.seconds * gpus)
    assert out.lost == 0


def daly(job: Training, life: float) -> float:
    """Expected seconds of a training that loses its one node every `life` seconds: each stretch of
    work and its checkpoint is begun anew until it is through without a loss (Daly 2006)."""
    stretch = math.ceil((job.checkpoint_seconds - WRITE) / 20) * 20
    return job.steps / stretch * life * math.expm1((stretch + WRITE) / life)


def test_losses_cost_what_daly_says_and_least_at_youngs_interval() -> None:
    life = 2000.0
    young = math.sqrt(2 * WRITE * life)  # 200 s
    took = {}
    for interval in (young / 4, young, young * 4):
        job = replace(TRAINING, checkpoint_seconds=interval + WRITE)
        took[interval] = mean(
            simulate(job, 8, life, 0, seed, AT_ONCE).seconds for seed in range(30)
        )
        assert took[interval] == pytest.approx(daly(job, life), rel=0.04)
    assert min(took, key=took.__getitem__) == young


@pytest.mark.parametrize(
    ("job", "life"), [(TRAINING, 2), (LABELING, 0.1)], ids=["training", "labeling"]
)
@pytest.mark.parametrize("noticed", [0, 1])
def test_more_losses_never_cost_less(job: Training | Labeling, life: float, noticed: float) -> None:
    took = [hours(job, 32, life * times, noticed) for times in (math.inf, 5, 1, 0.25)]
    assert took == sorted(took)
    assert took[-1] > 1.3 * took[0]


@pytest.mark.parametrize("life", [math.inf, 0.1, 0.03])
def test_every_shard_is_labeled_once_whatever_is_lost(life: float) -> None:
    out = simulate(LABELING, 32, life * HOUR)
    assert sorted(shard for task in out.shards for shard in task) == list(range(5000))
    assert (out.lost > 0) == math.isfinite(life)


def test_a_notice_saves_the_work_since_the_last_checkpoint() -> None:
    job = replace(TRAINING, checkpoint_seconds=1800)
    without, with_notice = (simulate(job, 32, 4 * HOUR, told, 2) for told in (0, 1))
    assert without.restarts >= 2
    assert without.lost > 0
    assert with_notice.lost == 0
    # Told too late to write a checkpoint.
    assert simulate(job, 32, 4 * HOUR, 1, 2, Costs(notice=5)).lost > 0


def test_fewer_workers_share_passes_and_the_last_round_is_not_full() -> None:
    # Two nodes of three go on: 24 passes are two rounds of 16 workers, 192 are twelve.
    costs = Costs(replaced=(1e9, 1e9))
    one, eight = (
        simulate(replace(TRAINING, accumulate=passes), 24, 2 * HOUR, 1, 9, costs)
        for passes in (1, 8)
    )
    assert one.restarts == eight.restarts == 1
    assert one.seconds > 1.1 * eight.seconds


def test_a_node_that_nobody_asks_for_is_taken_back() -> None:
    costs = Costs(idle=600, patience=120)  # shorter than what a new node takes
    slow, fast = (
        simulate(replace(TRAINING, checkpoint_seconds=seconds), 32, 5 * HOUR, 1, 0, costs)
        for seconds in (3600, 120)
    )
    assert slow.seconds > 1.2 * fast.seconds


def test_the_stages_are_those_of_the_paper() -> None:
    found = stages(300, 1024, 2)
    assert [type(stage) for stage in found] == [Training, *[Labeling, Training] * 3]
    # 350 epochs of 15 and 29 images for each labeled one; forward passes of 342 GFLOP.
    for stage, images in zip(found[2::2], (15, 15, 29), strict=True):
        assert isinstance(stage, Training)
        assert stage.steps * stage.flops == pytest.approx(
            350 * LABELED * images * 4 * 341.8e9, rel=1e-3
        )
