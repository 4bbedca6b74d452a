"""What a process is told before Ray and its workers start: allocator, environment, SIGTERM.

Ray reads its environment when it is imported, so `prepare` comes before any import of it.
"""

import ctypes
import os
import secrets
import signal
import sys
import threading
from importlib import import_module

WORKER_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
    "GOMP_SPINCOUNT": "3000",
}
"""Settings of glibc's allocator: by default it returns each large activation to the system and
faults it in again at the next layer, which costs more than the arithmetic (docs/performance.md).
One arena, because those of threads other than the main one cannot hold large blocks. They act on
processes started afterwards: Ray's workers. `keep_memory` does the same for this one.

And how long torch's threads wait for each other without leaving their processor: 100 times as long
by default, which makes training 1.4 and 2.8 times slower beside one and two busy programs on two
processors (benchmarks/busy_machine.py). Read when torch is imported."""

_MALLOPT = {-8: 1, -3: 2**31 - 1, -1: 2**31 - 1, -2: 2**28}
"""The same as numbers of <malloc.h>: M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD."""


def keep_memory() -> None:
    """Make this process's allocator keep the memory it has. Without glibc, nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        for option, value in _MALLOPT.items():
            mallopt(option, value)


def prepare(*, models: bool = True) -> None:
    """Set the environment that Ray reads when it is imported, where the user hasn't; let SIGTERM
    end the process like Ctrl-C.

    Args:
        models: import torch and timm, which take seconds, beside what follows.
    """
    keep_memory()
    stop_like_ctrl_c()
    defaults = {
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "GOMP_SPINCOUNT": WORKER_ENVIRONMENT["GOMP_SPINCOUNT"],
    }
    if not os.environ.get("RAY_ADDRESS"):
        # Labeling and training are what the user is waiting for: no lower priority for workers. No
        # more of them than there are tasks for: idle ones wake up a hundred times a second.
        defaults.update(WORKER_ENVIRONMENT, RAY_worker_niceness="0", RAY_enable_worker_prestart="0")
        if "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
            # Explicit, because the default depends on Ray's version and on files in the home
            # folder; a token of our own, because it lives as long as this cluster. Ray reads the
            # mode when it is imported: a notebook that has done so gets what Ray has by default,
            # for with one set later this process and the cluster would disagree.
            defaults.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if not models:
        return
    # Only what never imports Ray: two threads that import one package from two ends can meet it
    # half-initialized.
    threading.Thread(target=import_module, args=("timm",)).start()


def stop_like_ctrl_c() -> None:
    """Let SIGTERM, which containers and jobs are stopped with, interrupt the main thread."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
