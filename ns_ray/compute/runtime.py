"""Finds the Ray cluster to work on, or starts one on this machine. Nothing else starts Ray.

This module and the doors (commands/) import Ray, and the stages that use it, inside functions:
`environment.prepare` comes before.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ns_ray.compute import resources
from ns_ray.compute.environment import WORKER_ENVIRONMENT, stop_like_ctrl_c
from ns_ray.compute.quiet import quiet
from ns_ray.compute.resources import Machine
from ns_ray.config import ResourcesConfig
from ns_ray.errors import StageError, first_line

DRIVERS = ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/dxg")
"""What is there where CUDA may be."""

OBJECT_STORE = 2 * 2**30
"""Most bytes of the object store of a local cluster. Encoded images of a few chunks fit easily."""


@contextmanager
def cluster(config: ResourcesConfig, log_file: str | None = None) -> Iterator[Machine]:
    """The cluster named by RAY_ADDRESS (a Ray job has it), or a local one for the time being.

    A local one declares as many logical CPUs as the stages need, so that none waits on another.

    Args:
        config: what the stages were told to use.
        log_file: where Ray's own messages of this process go.
    """
    import ray

    if ray.is_initialized():
        yield _machine()
        return
    with quiet(log_file):
        yield from _started(config)


def machine() -> Machine:
    """What a run would find: the cluster named by RAY_ADDRESS, or this machine. Starts nothing."""
    if (local := local_machine()) is not None:
        return local
    import ray

    with quiet(None):
        _init(f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}")
        try:
            return _machine()
        finally:
            ray.shutdown()


def local_machine() -> Machine | None:
    """This machine; None where RAY_ADDRESS names a cluster."""
    if os.environ.get("RAY_ADDRESS"):
        return None
    return Machine(resources.cpus(), _local_gpus(), local=True)


def _started(config: ResourcesConfig) -> Iterator[Machine]:
    import ray

    local = local_machine()
    if local is None:
        _init(
            f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}", runtime_env={"env_vars": WORKER_ENVIRONMENT}
        )
        try:
            yield _machine()
        finally:
            ray.shutdown()
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
    try:
        yield local
    finally:
        ray.shutdown()


@contextmanager
def local_cluster(cpus: int, log_file: str) -> Iterator[None]:
    """A Ray of our own with so many logical CPUs, for the time being."""
    import ray

    with quiet(log_file):
        _init(
            "a local Ray",
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=128 * 2**20,
            _node_ip_address="127.0.0.1",
        )
        try:
            yield
        finally:
            ray.shutdown()


def _init(what: str, **arguments: Any) -> None:
    """Start or join a cluster.

    Raises:
        StageError: it doesn't answer; Ray raises plain exceptions of many kinds for that.
    """
    import ray

    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **arguments)
    except Exception as error:
        raise StageError(f"{what} did not start or answer: {first_line(error)}") from error
    stop_like_ctrl_c()  # Ray's handler ends the interpreter below running threads: it aborts


def _machine() -> Machine:
    """The running cluster's resources."""
    import ray

    found = ray.cluster_resources()
    return Machine(int(found.get("CPU", 1)), int(found.get("GPU", 0)), local=False)


def _local_gpus() -> int:
    """CUDA devices that this process may use. torch, which knows, is imported only where there is
    a driver: natively, or below Windows."""
    if not any(Path(place).exists() for place in DRIVERS):
        return 0
    import torch

    return torch.cuda.device_count()
