"""A cluster whose nodes are taken away, and what trainings and labelings on it take.

A discrete-event model (SimPy) for simulate_cluster.py. Nodes live exponentially long and are
replaced. Training does what ns_ray/training/workers.py and loop.py do, labeling what
ns_ray/labeling/inference.py does.
"""

import math
import random
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import simpy

Steps = Generator[simpy.Event, Any, Any]

GPUS_PER_NODE = 8
SHARD_BYTES, IMAGE_BYTES = 128 * 2**20, 110_000
"""Where ns_ray/data/chunks.py cuts a shard off; an image (docs/scale.md)."""
TASKS_PER_ACTOR = 20
"""As in ns_ray/labeling/inference.py."""


@dataclass(frozen=True)
class Costs:
    """Seconds and rates. Measured or counted unless the docstring says assumed."""

    flops: float = 100e12
    """Per second and GPU. Assumed: a tenth of an H200's peak in bf16, the share of its peak that
    the paper's TPU pod had (2,048 cores of 61 TFLOP/s, 6 days, for 14:1). In docs/gpu.md a
    ResNet-50 had a fifth, an EfficientNet-B0 a fortieth, in forward passes."""
    label_rate: float = 748
    """Images/s of a GPU at most, as decoding allows (docs/gpu.md)."""
    shard: float = 0.0049
    """Of each shard beyond its rows (docs/scale.md)."""
    driver: float = 19
    """Tasks/s that a driver hands out (docs/scale.md)."""
    actor_start: tuple[float, float] = (15, 60)
    """Actors, model, choice of runtime. Assumed (docs/scale.md)."""
    group_start: tuple[float, float] = (11, 40)
    """A group of training workers until its first step. Observed with a few CPU workers; that
    thousands take no longer is assumed."""
    compile: float = 120
    """torch.compile at every start. Assumed: the middle of one to three minutes
    (COMPILE_PAYS_SECONDS in ns_ray/training/loop.py)."""
    storage: float = 0.8e9
    """Bytes/s of one worker that writes or reads a checkpoint. Assumed (docs/scale.md)."""
    storage_all: float = 100e9
    """Bytes/s of all workers that read one, as each of them does. Assumed."""
    noticing: float = 16
    """Until Ray knows that a node is gone (NOTICED in ns_ray/training/workers.py)."""
    patience: float = 300
    """For a lost node, before fewer workers go on (PATIENCE in the same file)."""
    looks: float = 5
    """Least time between two looks for a notice (Moving in ns_ray/training/loop.py)."""
    notice: float = 120
    """From the notice of a preemption to the loss; clouds give 30 or 120 s. Assumed."""
    replaced: tuple[float, float] = (120, 300)
    """From the request for a new node until it is there. Assumed."""
    idle: float = math.inf
    """After which the autoscaler takes a node back that waits to be taken in. inf: never, as it is
    asked for all the time (asked_for in ns_ray/compute/capacity.py); if it were not, cluster/*.yaml
    would have 600 s (`idle_timeout_minutes`)."""


@dataclass(frozen=True)
class Training:
    """One training, as its settings have it.

    Attributes:
        steps: optimizer steps.
        flops: of one step, the backward pass and what is computed again included.
        accumulate: forward passes a step and worker.
        log_steps: checkpoints are written, and notices looked for, after so many steps.
        checkpoint_seconds: least time between two checkpoints.
        bytes: of a checkpoint.
    """

    steps: int
    flops: float
    accumulate: int
    log_steps: int
    checkpoint_seconds: float
    bytes: float


@dataclass(frozen=True)
class Labeling:
    """One labeling: rows, how many of them in a shard, FLOPs of an image's forward pass."""

    rows: int
    rows_per_shard: int
    flops: float


@dataclass
class Outcome:
    """What stages took: seconds; GPU-seconds that nodes were there, and of work done again;
    restarts of trainings; times that `resources.max_failures` (3) would have ended the command,
    which is then given again; the shards that were labeled."""

    seconds: float = 0
    held: float = 0
    lost: float = 0
    restarts: int = 0
    stops: int = 0
    shards: list[range] = field(default_factory=list)


class Cluster:
    """Nodes that come and go. `up` may be used by who starts now; `leaving` had their notice."""

    def __init__(
        self, gpus: int, life: float, noticed: float, costs: Costs, seed: int, grows: bool
    ) -> None:
        """
        Args:
            gpus: in all, a multiple of 8.
            life: mean seconds until a node is taken away; inf: never.
            noticed: share of the losses that are announced.
            seed: the same lives for all settings.
            grows: whether new nodes are used as soon as they are there, so that none is idle.
        """
        self.env, self.costs, self.life, self.noticed = simpy.Environment(), costs, life, noticed
        self.count = gpus // GPUS_PER_NODE
        self.up, self.leaving = set(range(self.count)), set[int]()
        self.group: frozenset[int] = frozenset()
        self.changed, self.asked, self.taken = (self.env.event() for _ in range(3))
        self.out = [self.env.event() for _ in range(self.count)]
        self.held, self._since = 0.0, 0.0
        self._grows = grows
        if math.isfinite(life):
            for node in range(self.count):
                self.env.process(self._live(node, random.Random(f"{seed} {node}")))

    def _live(self, node: int, rng: random.Random) -> Steps:
        env, costs = self.env, self.costs
        while True:
            yield env.timeout(rng.expovariate(1 / self.life))
            told, back = rng.random() < self.noticed, rng.uniform(*costs.replaced)
            if told:
                self._move(node, leaving=True)
                yield env.timeout(costs.notice)
                back = max(0, back - costs.notice)
            self._move(node)
            yield env.timeout(back)
            self._move(node, up=True)
            while not self._grows:
                yield self.taken | (
                    env.timeout(costs.idle) if costs.idle < math.inf else env.event()
                )
                if node in self.group:
                    break
                self._move(node)
                yield self.asked
                yield env.timeout(rng.uniform(*costs.replaced))
                self._move(node, up=True)

    def take(self) -> frozenset[int]:
        """All that are there become the group."""
        self.group = frozenset(self.up)
        self.taken.succeed()
        self.taken = self.env.event()
        return self.group

    def ask(self) -> None:
        """For as many nodes as there were at first."""
        self.asked.succeed()
        self.asked = self.env.event()

    def _move(self, node: int, up: bool = False, leaving: bool = False) -> None:
        self.count_held()
        (self.up.add if up else self.up.discard)(node)
        (self.leaving.add if leaving else self.leaving.discard)(node)
        if not up and not leaving:
            self.group -= {node}
            self.out[node].succeed()
            self.out[node] = self.env.event()
        self.changed.succeed()
        self.changed = self.env.event()

    def count_held(self) -> float:
        """GPU-seconds so far."""
        alive = (len(self.up) + len(self.leaving)) * GPUS_PER_NODE
        self.held += alive * (self.env.now - self._since)
        self._since = self.env.now
        return self.held


def work(job: Training | Labeling, gpus: int, costs: Costs) -> float:
    """Seconds of a stage's passes alone, shared out evenly."""
    if isinstance(job, Training):
        return job.steps * job.flops / costs.flops / gpus
    return job.rows * per_image(job, costs) / gpus


def per_image(job: Labeling, costs: Costs) -> float:
    """Seconds that a GPU labels one: decoding and forward passes overlap."""
    return max(1 / costs.label_rate, job.flops / costs.flops)


def train(job: Training, cluster: Cluster, rng: random.Random, out: Outcome) -> Steps:
    """All steps of a training, from checkpoint to checkpoint."""
    saved, furthest, failures = 0.0, 0.0, 0
    costs, env = cluster.costs, cluster.env
    while saved < job.steps:
        cluster.ask()
        asked = env.now
        while len(cluster.up) < cluster.count and env.now < asked + costs.patience:
            yield cluster.changed | env.timeout(asked + costs.patience - env.now)
        while not cluster.up:
            yield cluster.changed
        saved, reached, broke = yield from _attempt(job, cluster, rng, saved, out)
        out.restarts += saved < job.steps
        if broke:
            yield env.timeout(costs.noticing)
            failures = 1 if reached > furthest else failures + 1
            if failures > 3:
                out.stops, failures = out.stops + 1, 0
        furthest = max(furthest, reached)


def _attempt(
    job: Training, cluster: Cluster, rng: random.Random, saved: float, out: Outcome
) -> Steps:
    """Start the workers and train until the end, a loss, or a checkpoint at which they leave.

    Returns:
        The steps of the last checkpoint, the last step, and whether a loss was the reason.
    """
    env, costs, group = cluster.env, cluster.costs, cluster.take()
    workers = len(group) * GPUS_PER_NODE
    read = max(job.bytes / costs.storage, workers * job.bytes / costs.storage_all)
    began = env.now + rng.uniform(*costs.group_start) + costs.compile + (read if saved else 0)
    lanes = cluster.count * GPUS_PER_NODE * job.accumulate
    step = -(-lanes // workers) * job.flops / lanes / costs.flops
    window, write = job.log_steps * step, job.bytes / costs.storage
    windows = max(1, math.ceil((job.checkpoint_seconds - write) / window))
    period = windows * window + write
    rest = (job.steps - saved) / job.log_steps
    end = began + rest * window + (math.ceil(rest / windows) - 1) * write
    until, leaves = end, False
    while env.now < until:
        yield cluster.changed | env.timeout(until - env.now)
        done = max(0.0, env.now - began)
        periods = int((done + 1e-6) / period)
        kept = saved + periods * windows * job.log_steps
        since = max(0.0, done - periods * period - (write if leaves else 0))
        reached = kept + min(windows * window, since) / step
        if group != cluster.group:
            out.lost += (done - periods * period) * workers
            return kept, reached, True
        if group & cluster.leaving and not leaves:
            between = max(window, costs.looks)
            looked = began + math.ceil(max(done, 1e-9) / between) * between
            until, leaves = min(end, looked + write), True
        elif not leaves:
            grows = len(group) < cluster.count == len(cluster.up)
            until = min(end, began + (periods + 1) * period) if grows else end
            if grows and done and done - periods * period < 1e-6 and periods:
                return kept, kept, False
    if until == end:
        return job.steps, job.steps, False
    return reached, reached, False


def label(job: Labeling, cluster: Cluster, rng: random.Random, out: Outcome) -> Steps:
    """All shards of a labeling; a lost actor's task is done again from its beginning. A node's
    eight actors take their tasks together."""
    env, costs = cluster.env, cluster.costs
    rows = min(job.rows_per_shard, SHARD_BYTES // IMAGE_BYTES)
    shards = -(-job.rows // rows)
    actors = cluster.count * GPUS_PER_NODE
    size = max(1, shards // (TASKS_PER_ACTOR * actors)) * GPUS_PER_NODE
    waiting = simpy.Store(env)
    waiting.items = [range(at, min(at + size, shards)) for at in range(0, shards, size)]
    tasks, driver, finished = len(waiting.items), simpy.Resource(env, 1), env.event()
    each = rows * per_image(job, costs) + costs.shard

    def node_works(node: int) -> Steps:
        while True:
            while node not in cluster.up:
                yield cluster.changed
            gone = cluster.out[node]
            yield gone | env.timeout(rng.uniform(*costs.actor_start))
            while not gone.triggered:
                task = yield waiting.get()
                with driver.request() as turn:
                    yield turn
                    yield env.timeout(GPUS_PER_NODE / costs.driver)
                began = env.now
                took = -(-len(task) // GPUS_PER_NODE) * each
                yield gone | env.timeout(took)
                if env.now < began + took:
                    out.lost += (env.now - began) * GPUS_PER_NODE
                    yield waiting.put(task)
                    break
                out.shards.append(task)
                if len(out.shards) == tasks:
                    finished.succeed()

    for node in range(cluster.count):
        env.process(node_works(node))
    yield finished


def simulate(
    job: Training | Labeling,
    gpus: int,
    life: float = math.inf,
    noticed: float = 0,
    seed: int = 0,
    costs: Costs | None = None,
) -> Outcome:
    """One stage on a cluster of its own; see Cluster for the arguments."""
    costs, out, rng = costs or Costs(), Outcome(), random.Random(f"start {seed}")
    cluster = Cluster(gpus, life, noticed, costs, seed, grows=isinstance(job, Labeling))
    if isinstance(job, Training):
        cluster.env.run(cluster.env.process(train(job, cluster, rng, out)))
    else:
        cluster.env.run(cluster.env.process(label(job, cluster, rng, out)))
    out.seconds, out.held = cluster.env.now, cluster.count_held()
    return out
