"""Finds the Ray cluster to work on, or starts one on this machine. Nothing else starts Ray.

Ray reads its environment when it is imported, so `prepare` comes before any import of it: this
module and the doors (commands/) import Ray, and the stages that use it, inside functions.
"""

import ctypes
import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO, cast

from ns_ray.compute import resources
from ns_ray.compute.resources import WORKER_ENVIRONMENT, Machine
from ns_ray.config import ResourcesConfig
from ns_ray.errors import StageError, first_line

_MALLOPT = {-8: 1, -3: 2**31 - 1, -1: 2**31 - 1, -2: 2**28}
"""The same as numbers of <malloc.h>: M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD."""

OBJECT_STORE = 2 * 2**30
"""Most bytes of the object store of a local cluster. Encoded images of a few chunks fit easily."""


def keep_memory() -> None:
    """Make this process's allocator keep the memory it has. Without glibc, nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        for option, value in _MALLOPT.items():
            mallopt(option, value)


def prepare() -> None:
    """Set the environment that Ray reads when it is imported, where the user hasn't; import torch
    and timm, which every run needs and which take seconds, beside what follows; let SIGTERM end
    the process like Ctrl-C."""
    keep_memory()
    _stop_like_ctrl_c()
    defaults = {
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    }
    if not os.environ.get("RAY_ADDRESS"):
        # Labeling and training are what the user is waiting for: no lower priority for workers. No
        # more of them than there are tasks for: idle ones wake up a hundred times a second.
        defaults.update(WORKER_ENVIRONMENT, RAY_worker_niceness="0", RAY_enable_worker_prestart="0")
        if "RAY_AUTH_MODE" not in os.environ:
            # Explicit, because the default depends on Ray's version and on files in the home
            # folder; a token of our own, because it lives as long as this cluster.
            defaults.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # Only what never imports Ray: two threads that import one package from two ends can meet it
    # half-initialized.
    threading.Thread(target=import_module, args=("timm",)).start()


@contextmanager
def cluster(config: ResourcesConfig, log_file: str | None = None) -> Iterator[Machine]:
    """The cluster named by RAY_ADDRESS (a submitted job has it), or a local one for the time being.

    A local one declares as many logical CPUs as the stages need, so that none waits on another.

    Args:
        config: what the stages were told to use.
        log_file: where Ray's own messages of this process go.
    """
    import ray

    if ray.is_initialized():
        yield _machine()
        return
    with _quiet(log_file):
        yield from _started(config)


def machine() -> Machine:
    """What a run would find: the cluster named by RAY_ADDRESS, or this machine. Starts nothing."""
    if (local := local_machine()) is not None:
        return local
    import ray

    with _quiet(None):
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

    with _quiet(log_file):
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
    _stop_like_ctrl_c()  # Ray's handler ends the interpreter below running threads: it aborts


def _stop_like_ctrl_c() -> None:
    """Let SIGTERM, which containers and jobs are stopped with, interrupt the main thread."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _machine() -> Machine:
    """The running cluster's resources."""
    import ray

    found = ray.cluster_resources()
    return Machine(int(found.get("CPU", 1)), int(found.get("GPU", 0)), local=False)


def _local_gpus() -> int:
    """CUDA devices of this machine, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([d for d in visible.split(",") if d.strip() and not d.strip().startswith("-")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


@contextmanager
def _quiet(log_file: str | None) -> Iterator[None]:
    """Send what Ray prints in this process to a file, and its progress bars nowhere. Ray's C++ part
    writes to file descriptor 2 (`sys.stderr` keeps pointing at the real one), and a thread of it
    prints what happened to workers on `sys.stdout`."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    if log_file is None:
        yield
        return
    Path(log_file).parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(log_file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    for name in ("ray", "ray.data", "ray.train", "ray.serve"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
    sys.stderr.flush()
    usual = sys.stdout, sys.stderr
    with (
        open(log_file, "a", buffering=1) as file,
        os.fdopen(os.dup(2), "w", buffering=1) as stderr,
    ):
        os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = cast(TextIO, _NotFromRay(usual[0], file)), stderr
        try:
            yield
        finally:
            sys.stdout, sys.stderr = usual
            stderr.flush()
            os.dup2(stderr.fileno(), 2)


class _NotFromRay:
    """A stream, but for what Ray's own threads write: that goes to another."""

    def __init__(self, stream: TextIO, other: TextIO) -> None:
        self._stream, self._other = stream, other

    def write(self, text: str) -> int:
        from_ray = threading.current_thread().name.startswith("ray_")
        return (self._other if from_ray else self._stream).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
