"""Finds the Ray cluster to work on, or starts one on this machine. Nothing else starts Ray.

This module and the doors (commands/) import Ray, and the stages that use it, inside functions:
`environment.prepare` comes before.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tenacity

from ns_ray.compute import capacity, resources
from ns_ray.compute.address import INSTEAD, check_address
from ns_ray.compute.environment import WORKER_ENVIRONMENT, stop_like_ctrl_c
from ns_ray.compute.gauges import gauged
from ns_ray.compute.gcs import joined
from ns_ray.compute.quiet import quiet
from ns_ray.compute.resources import Machine
from ns_ray.config import ResourcesConfig
from ns_ray.errors import StageError, first_line
from ns_ray.log import say

DRIVERS = ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/dxg")
"""What is there where CUDA may be."""

OBJECT_STORE = 2 * 2**30
"""Most bytes of the object store of a local cluster. Encoded images of a few chunks fit easily."""

TOO_LATE = ".*timed out during startup"
"""What Ray says where a node's agents took over 15 s to start, or the node 30 s, which are no
settings of it (Ray 2.60; https://github.com/ray-project/ray/issues/65983)."""

STARTS = 3
"""How often a Ray of our own is started that is too late."""


@contextmanager
def cluster(
    config: ResourcesConfig, log_file: str | None = None, run: str = ""
) -> Iterator[Machine]:
    """The cluster named by RAY_ADDRESS (a Ray job has it), or a local one for the time being.

    To a cluster that is joined the stages' progress is told as metrics; see gauges.py.

    A local one declares as many logical CPUs as the stages need, so that none waits on another.
    Ray that runs in this process already is used as it is, and left running.

    Args:
        config: what the stages were told to use.
        log_file: where Ray's own messages of this process go.
        run: name of the run, a tag of its metrics.

    Raises:
        ConfigError: RAY_ADDRESS is no address of a cluster.
        StageError: nobody answers there, or Ray does not start.
    """
    import ray

    if ray.is_initialized():  # by who calls us, in a notebook or a task
        with quiet(log_file):
            yield capacity.enough(config)
        return
    if address := os.environ.get("RAY_ADDRESS"):
        check_address(address)
    with quiet(log_file):
        yield from _started(config, run)


def machine() -> Machine:
    """What a run would find: the cluster named by RAY_ADDRESS, or this machine. Starts nothing.

    Raises:
        ConfigError: RAY_ADDRESS is no address of a cluster.
        StageError: nobody answers there.
    """
    if (local := local_machine()) is not None:
        return local
    check_address(os.environ["RAY_ADDRESS"])
    import ray

    with quiet(None):
        _init(f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}")
        try:
            return capacity.present()
        finally:
            ray.shutdown()


def local_machine() -> Machine | None:
    """This machine; None where RAY_ADDRESS names a cluster."""
    if os.environ.get("RAY_ADDRESS"):
        return None
    return Machine(resources.cpus(), _local_gpus(), local=True)


def _started(config: ResourcesConfig, run: str) -> Iterator[Machine]:

    local = local_machine()
    if local is None:
        _init(
            f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}", runtime_env={"env_vars": WORKER_ENVIRONMENT}
        )
        with joined(), gauged(run):
            yield capacity.enough(config)
        return
    workers, pool = resources.workers(config, local), resources.pool(config, local)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    _init(
        "a local Ray",
        address="local",
        num_cpus=resources.logical_cpus(workers, pool, local),
        include_dashboard=False,
        object_store_memory=min(OBJECT_STORE, memory // 4),
        _node_ip_address="127.0.0.1",
    )
    with joined():
        yield local


@contextmanager
def local_cluster(cpus: int, log_file: str) -> Iterator[None]:
    """A Ray of our own with so many logical CPUs, for the time being."""

    with quiet(log_file):
        _init(
            "a local Ray",
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=128 * 2**20,
            _node_ip_address="127.0.0.1",
        )
        with joined():
            yield


def _init(what: str, **arguments: Any) -> None:
    """Start or join a cluster. One that does not start in time is started again.

    Raises:
        StageError: it doesn't answer; Ray raises plain exceptions of many kinds for that.
    """
    import ray

    patient = tenacity.retry(
        retry=tenacity.retry_if_exception_message(match=TOO_LATE),
        stop=tenacity.stop_after_attempt(STARTS),
        before_sleep=lambda _: say(f"{what} did not start in time: is the machine busy? Again"),
        reraise=True,
    )
    try:
        patient(ray.init)(log_to_driver=False, logging_level="ERROR", **arguments)
    except Exception as error:
        instead = "" if "address" in arguments else f"; {INSTEAD}"
        if "AF_UNIX path" in str(error):
            instead = "; set RAY_TMPDIR to a folder with a short name, such as /tmp"
        raise StageError(f"{what} did not start or answer: {first_line(error)}{instead}") from error
    stop_like_ctrl_c()  # Ray's handler ends the interpreter below running threads: it aborts


def _local_gpus() -> int:
    """CUDA devices that this process may use. torch, which knows, is imported only where there is
    a driver: natively, or below Windows."""
    if not any(Path(place).exists() for place in DRIVERS):
        return 0
    import torch

    return torch.cuda.device_count()
