"""What all tests share: a quiet environment, and one local Ray cluster for those that need it.

The environment is set here, before any test module imports ray or torch.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

# Tests start their own cluster: one that the shell happens to point at is never joined.
os.environ.pop("RAY_ADDRESS", None)
os.environ.update(
    OMP_NUM_THREADS="1",
    RAY_AUTH_MODE="disabled",
    RAY_DATA_DISABLE_PROGRESS_BARS="1",
    RAY_DEDUP_LOGS="0",
    RAY_SERVE_LOG_TO_STDERR="0",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.3",
    RAY_worker_niceness="0",
    RAY_USAGE_STATS_ENABLED="0",
)


@pytest.fixture(scope="session")
def ray_local() -> Iterator[Any]:
    """One local cluster for the whole test run; tests that use it are marked `ray`.

    Its six CPUs are logical: a training with two workers, its data stream and a pool of labeling
    actors must all be schedulable at once, or they wait for each other for ever.
    """
    import ray

    # Ray puts sockets below this folder, and their paths are limited to about 100 characters.
    folder = tempfile.mkdtemp(prefix="nsr", dir="/tmp")
    ray.init(
        address="local",
        num_cpus=6,
        include_dashboard=False,
        object_store_memory=300 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
        _temp_dir=folder,
    )
    yield ray
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
