"""How many workers, actors and CPUs each stage gets on a given machine or cluster.

Counts the CPUs of this machine; all else is plain arithmetic. Knows nothing about Ray (see
runtime.py) or the stages.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ns_ray.config import ResourcesConfig
from ns_ray.errors import ConfigError

Device = Literal["cpu", "cuda"]


def cpus() -> int:
    """CPUs that this process may use: those of its affinity, within the quota of its container
    (cgroup v1 or v2, a part of a CPU counted as one), and at most LOKY_MAX_CPU_COUNT where that is
    set. The host may have many more."""
    import joblib  # here: it takes a while, and most of those who import this module do not count

    return int(joblib.cpu_count())


@dataclass(frozen=True)
class Node:
    """What one machine of a cluster has."""

    cpus: int
    gpus: int = 0

    def holds(self, cpus: float, gpus: float) -> int:
        """How many processes with so many CPUs and GPUs each it has room for."""
        room = [int(self.cpus // cpus)] if cpus else []
        return min([*room, *([int(self.gpus // gpus)] if gpus else [])], default=0)


@dataclass(frozen=True)
class Machine:
    """What a machine or a cluster has in all."""

    cpus: int
    gpus: int
    local: bool
    """Whether we start Ray on it ourselves, with as many logical CPUs as the stages need."""
    nodes: tuple[Node, ...] = ()
    """The machines of a cluster: a process has its CPUs and GPUs from one of them. Empty: it is
    one."""

    @classmethod
    def of(cls, nodes: Iterable[Node]) -> "Machine":
        """A cluster of these machines."""
        found = tuple(nodes)
        cpus, gpus = sum(node.cpus for node in found), sum(node.gpus for node in found)
        return cls(cpus, gpus, False, found)

    @property
    def each(self) -> tuple[Node, ...]:
        """Its machines; itself where it is one."""
        return self.nodes or (Node(self.cpus, self.gpus),)

    def holds(self, cpus: float, gpus: float) -> int:
        """How many processes with so many CPUs and GPUs each there is room for."""
        return sum(node.holds(cpus, gpus) for node in self.each)

    def largest(self) -> str:
        """What its nodes have at most, in words."""
        most = max(self.each, key=lambda node: (node.gpus, node.cpus))
        return f"{most.cpus} CPUs and {most.gpus} GPUs"

    def share(self, parts: int) -> "Machine":
        """What each of so many runs at a time has of it: some of its nodes, or a part of one."""
        if parts == 1:
            return self
        if len(self.each) < parts:
            on_one = -(-parts // len(self.each))
            cpus, gpus = min((n.cpus, n.gpus) for n in self.each)
            return Machine(max(1, cpus // on_one), gpus // on_one, self.local)
        ordered = sorted(self.each, key=lambda node: (node.gpus, node.cpus), reverse=True)
        return Machine.of(ordered[parts - 1 :: parts])


@dataclass(frozen=True)
class Workers:
    """Training workers.

    Attributes:
        count: DDP workers.
        cpus: CPUs of each; also its torch threads on a CPU.
        gpus: GPUs of each (0 or 1).
        loaders: processes per worker that decode and augment; 0 means a thread of the worker.
        in_process: whether the one worker is the driver's own process. A process of its own would
            first import what the driver has imported, for seconds, at every training.
        in_turn: whether loaders rest while the model works, because they have the same CPUs.
    """

    count: int
    cpus: float
    gpus: float
    loaders: int
    in_process: bool = False
    in_turn: bool = False

    @property
    def device(self) -> Device:
        """Where each of them computes."""
        return "cuda" if self.gpus else "cpu"


@dataclass(frozen=True)
class Pool:
    """Predictor actors of a labeling or evaluation job.

    Attributes:
        actors: how many.
        cpus: CPUs of each: decoding threads, and forward threads without a GPU.
        gpus: GPUs of each.
        in_process: whether the driver's own process may do a small job instead.
        spare: whole CPUs that none of them has, for each of them.
    """

    actors: int
    cpus: float
    gpus: float
    in_process: bool = False
    spare: int = 0

    @property
    def device(self) -> Device:
        """Where each of them computes."""
        return "cuda" if self.gpus else "cpu"


CPUS_PER_ACTOR = 8
"""Most CPUs of one predictor actor on a CPU cluster: more threads add little to one forward."""
CPUS_BESIDE_A_GPU = 4
"""CPUs of a predictor actor that has one: threads of one interpreter decode a thousand images/s,
eight no more than four (docs/gpu.md). Those that are left decode in tasks, where that pays."""
LOADERS = 8
"""Most loader processes of a worker, unless told otherwise."""
CPUS_PER_LOADER = 4
"""Of four CPUs of a worker that computes on them, one decodes: it keeps up with a small network,
and the more so with others."""


def workers(config: ResourcesConfig, machine: Machine) -> Workers:
    """Training workers for a machine or the nodes of a cluster.

    Raises:
        ConfigError: it has no room for them.
    """
    count = config.num_workers
    if not machine.cpus:
        raise ConfigError("no node of the cluster has a CPU that can be used")
    if count > machine.cpus:
        raise ConfigError(
            f"resources.num_workers={count}, but there are {machine.cpus} CPUs; "
            f"set resources.num_workers to at most {machine.cpus}"
        )
    gpus = config.gpus_per_worker
    if gpus is None:
        # On a cluster with GPUs nobody means to train on CPUs because some GPUs are not there yet.
        enough = machine.gpus >= count if machine.local else machine.gpus > 0
        gpus = 1.0 if enough else 0.0
    if machine.holds(0, gpus) < count and gpus:
        raise ConfigError(
            f"{count} training workers with {gpus:g} GPUs each, but there are {machine.gpus} GPUs; "
            "lower resources.gpus_per_worker (0 trains on CPUs) or resources.num_workers"
        )
    if machine.local:
        return _local_workers(config, machine, gpus)
    share = _share(machine, count, gpus)
    loaders, cpus = config.loaders, config.cpus_per_worker
    if loaders is None:
        # Beside GPUs they work on any node: all CPUs but one for each worker.
        free = machine.cpus // count - 1
        loaders = max(1, min(LOADERS, free if gpus else share // CPUS_PER_LOADER))
    if cpus is None:
        cpus = float(max(1, share - loaders))
    # One whole CPU stays free for tasks, or nothing would ever be loaded.
    if machine.holds(cpus, gpus) < count or cpus * count > machine.cpus - 1:
        raise ConfigError(
            f"{count} training workers with {cpus:g} CPUs and {gpus:g} GPUs each, and a CPU for "
            f"loading, have no room in this cluster: {machine.cpus} CPUs and {machine.gpus} GPUs, "
            f"at most {machine.largest()} on one node; lower resources.cpus_per_worker, "
            "resources.gpus_per_worker or resources.num_workers, or start Ray with more CPUs "
            "(ray start --num-cpus, or ray.init(num_cpus=...))"
        )
    return Workers(count, cpus, gpus, loaders)


def _local_workers(config: ResourcesConfig, machine: Machine, gpus: float) -> Workers:
    """Those of a machine whose logical CPUs we declare: loaders take turns with a model on CPUs."""
    count, in_turn = config.num_workers, not gpus
    share = machine.cpus // count
    loaders, cpus = config.loaders, config.cpus_per_worker
    if loaders is None:
        # In turn with the model they can have all CPUs; beside it, they leave it one.
        loaders = min(LOADERS, max(1, share if in_turn else share - 1))
    if cpus is None:
        cpus = float(max(1, share))
    return Workers(count, cpus, gpus, loaders, in_process=count == 1, in_turn=in_turn)


def _share(machine: Machine, count: int, gpus: float) -> int:
    """The most CPUs that each of so many processes can have, loaders among them; at least 1."""
    most = max(node.cpus for node in machine.each)
    return next((c for c in range(most, 1, -1) if machine.holds(c, gpus) >= count), 1)


def pool(config: ResourcesConfig, machine: Machine) -> Pool:
    """Predictor actors for a machine or the nodes of a cluster.

    Raises:
        ConfigError: it has no room for them.
    """
    gpus, actors, cpus = config.gpus_per_actor, config.label_actors, config.cpus_per_actor
    if gpus is None:
        gpus = 1.0 if machine.gpus else 0.0
    free = machine.cpus if machine.local else max(1, machine.cpus - 1)
    if actors is None:
        if gpus:
            actors = max(1, machine.holds(0, gpus))
        elif machine.local:
            actors = -(-free // CPUS_PER_ACTOR)
        elif cpus is None:
            actors, cpus = _spread(machine, free)
        else:
            actors = max(1, min(machine.holds(cpus, 0), int(free // cpus)))
    if gpus and machine.holds(0, gpus) < actors:
        raise ConfigError(
            f"{actors} label actors with {gpus:g} GPUs each, but there are {machine.gpus} GPUs; "
            "lower resources.label_actors or resources.gpus_per_actor"
        )
    if cpus is None:
        share = (
            free // actors if machine.local else min(_share(machine, actors, gpus), free // actors)
        )
        cpus = float(max(1, min(share, CPUS_BESIDE_A_GPU) if gpus else share))
    if not machine.local and (actors * cpus > free or machine.holds(cpus, gpus) < actors):
        raise ConfigError(
            f"{actors} label actors with {cpus:g} CPUs and {gpus:g} GPUs each have no room in this "
            f"cluster: {free} CPUs are free for them, at most {machine.largest()} on one node; "
            "lower resources.label_actors, resources.cpus_per_actor or resources.gpus_per_actor"
        )
    spare = max(0, int(machine.cpus / actors - cpus))
    return Pool(actors, cpus, gpus, in_process=machine.local and actors == 1, spare=spare)


def _spread(machine: Machine, free: int) -> tuple[int, float]:
    """Actors that use most of a cluster's CPUs, as few and as large as possible; their CPUs."""
    for cpus in range(CPUS_PER_ACTOR, 1, -1):
        actors = min(machine.holds(cpus, 0), free // cpus)
        if 4 * actors * cpus >= 3 * free:
            return actors, float(cpus)
    return free, 1.0


CPUS_PER_RUN = 8
"""CPUs of a cluster without GPUs that one of several runs at a time gets, per training worker."""


def runs(config: ResourcesConfig, machine: Machine) -> int:
    """How many runs at a time use a cluster well: each has GPUs, or CPUs, for its workers."""
    each = machine.holds(0, 1) if machine.gpus else machine.holds(CPUS_PER_RUN, 0)
    return max(1, each // config.num_workers)


def logical_cpus(workers: Workers, pool: Pool, machine: Machine) -> int:
    """CPUs to declare to a local Ray so that stages never wait on each other: every actor's and
    worker's share, a loader each, and two for plain tasks."""
    train = workers.count * (workers.cpus + workers.loaders)
    return int(max(train, pool.actors * pool.cpus, machine.cpus)) + 2
