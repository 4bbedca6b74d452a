"""How many workers, actors and CPUs each stage gets on a given machine or cluster.

Counts the CPUs of this machine; all else is plain arithmetic. Knows nothing about Ray (see
runtime.py) or the stages.
"""

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
class Machine:
    """What a machine or a cluster has in all."""

    cpus: int
    gpus: int
    local: bool
    """Whether we start Ray on it ourselves, with as many logical CPUs as the stages need."""


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
    """

    actors: int
    cpus: float
    gpus: float
    in_process: bool = False

    @property
    def device(self) -> Device:
        """Where each of them computes."""
        return "cuda" if self.gpus else "cpu"


CPUS_PER_ACTOR = 8
"""Most CPUs of one predictor actor on a CPU cluster: more threads add little to one forward."""


def workers(config: ResourcesConfig, machine: Machine) -> Workers:
    """Training workers for a machine.

    Raises:
        ConfigError: it has fewer CPUs or GPUs than the workers need.
    """
    count = config.num_workers
    if count > machine.cpus:
        raise ConfigError(
            f"resources.num_workers={count}, but there are {machine.cpus} CPUs; "
            f"set resources.num_workers to at most {machine.cpus}"
        )
    gpus = config.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if machine.gpus >= count else 0.0
    if gpus * count > machine.gpus:
        raise ConfigError(
            f"resources.gpus_per_worker={gpus:g} for {count} workers, but there are {machine.gpus} "
            "GPUs; lower resources.gpus_per_worker or resources.num_workers"
        )
    in_turn = machine.local and not gpus
    loaders = config.loaders
    if loaders is None:
        # In turn with the model they can have all CPUs; beside it, they leave it one.
        share = machine.cpus // count
        loaders = min(8, max(1, share if in_turn else share - 1))
    cpus = config.cpus_per_worker
    if cpus is None:
        share = machine.cpus // count
        if not machine.local:
            # One whole CPU stays free for tasks, or nothing would ever be loaded or labeled.
            share = (machine.cpus - 1) // count - loaders
        cpus = float(max(1, share))
    if not machine.local and cpus * count > machine.cpus - 1:
        raise ConfigError(
            f"{count} training workers with {cpus:g} CPUs each leave none of the cluster's "
            f"{machine.cpus} CPUs for loading; lower resources.cpus_per_worker or "
            "resources.num_workers, or start Ray with more CPUs (ray start --num-cpus)"
        )
    alone = machine.local and count == 1
    return Workers(count, cpus, gpus, loaders, in_process=alone, in_turn=in_turn)


def pool(config: ResourcesConfig, machine: Machine) -> Pool:
    """Predictor actors for a machine.

    Raises:
        ConfigError: it has fewer CPUs or GPUs than the actors need.
    """
    gpus = config.gpus_per_actor
    if gpus is None:
        gpus = 1.0 if machine.gpus else 0.0
    free = machine.cpus if machine.local else max(1, machine.cpus - 1)
    actors = config.label_actors
    if actors is None:
        actors = max(1, int(machine.gpus // gpus)) if gpus else -(-free // CPUS_PER_ACTOR)
    if gpus * actors > machine.gpus:
        raise ConfigError(
            f"{actors} label actors with {gpus:g} GPUs each, but there are {machine.gpus} GPUs; "
            "lower resources.label_actors or resources.gpus_per_actor"
        )
    cpus = config.cpus_per_actor
    if cpus is None:
        cpus = float(max(1, free // actors))
    if not machine.local and actors * cpus > free:
        raise ConfigError(
            f"{actors} label actors with {cpus:g} CPUs each, but {free} of the cluster's CPUs are "
            "free for them; lower resources.label_actors or resources.cpus_per_actor"
        )
    return Pool(actors, cpus, gpus, in_process=machine.local and actors == 1)


CPUS_PER_RUN = 8
"""CPUs of a cluster without GPUs that one of several runs at a time gets, per training worker."""


def runs(config: ResourcesConfig, machine: Machine) -> int:
    """How many runs at a time use a cluster well: each has GPUs, or CPUs, for its workers."""
    if machine.gpus:
        return max(1, machine.gpus // config.num_workers)
    return max(1, machine.cpus // (CPUS_PER_RUN * config.num_workers))


def logical_cpus(workers: Workers, pool: Pool, machine: Machine) -> int:
    """CPUs to declare to a local Ray so that stages never wait on each other: every actor's and
    worker's share, a loader each, and two for plain tasks."""
    train = workers.count * (workers.cpus + workers.loaders)
    return int(max(train, pool.actors * pool.cpus, machine.cpus)) + 2
