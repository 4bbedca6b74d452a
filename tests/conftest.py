"""What all tests share: a quiet environment, and one local Ray cluster for those that need it.

The environment is set here, before any test module imports ray or torch.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from starting import in_time
from tiny import Whole, whole_run

from ns_ray.compute.runtime import STARTS

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

RAY = str(Path(sys.executable).with_name("ray"))
"""Ray's command of this environment, which need not be on the PATH."""

settings.register_profile("untimed", deadline=None)  # no test asserts a time
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def ray_is_started_by_marked_tests_only(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that starts a cluster without a word takes ten times as long as it looks."""
    if request.node.get_closest_marker("ray"):
        return
    import ray

    def init(**_: Any) -> None:
        raise AssertionError("this test starts Ray: give it the mark `ray`, or keep it from it")

    monkeypatch.setattr(ray, "init", init)


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that are called in this process find a machine of two CPUs and do all work here:
    what they do then takes seconds, and starting Ray and its workers would take a minute."""
    from ns_ray.compute import Machine

    @contextlib.contextmanager
    def cluster(*_: Any) -> Iterator[Machine]:
        yield Machine(cpus=2, gpus=0, local=True)

    monkeypatch.setattr("ns_ray.compute.prepare", lambda **_: None)
    monkeypatch.setattr("ns_ray.compute.cluster", cluster)


@pytest.fixture(scope="session")
def ray_local() -> Iterator[Any]:
    """One local cluster for the whole test run; tests that use it are marked `ray`.

    Its six CPUs are logical: a training with two workers, its data stream and a pool of labeling
    actors must all be schedulable at once, or they wait for each other for ever.
    """
    import ray

    # Ray puts sockets below this folder, and their paths are limited to about 100 characters.
    folder = tempfile.mkdtemp(prefix="nsr", dir="/tmp")
    in_time(
        ray.init,
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


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """One undisturbed run that several test files look at; none of them may change it."""
    return whole_run(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium: the machine's, or else the one that `playwright install` has put there.

    Of a module, not of the session: while it is there, Playwright's event loop runs in this thread,
    and no other can.
    """
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="session")
def head() -> Iterator[dict[str, str]]:
    """`ray start --head` with token authentication; yields the environment of who submits to it."""
    import ray  # noqa: F401  puts its copy of psutil on the path

    home = Path(tempfile.mkdtemp(prefix="nsr", dir="/tmp"))
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "OMP_"))}
    gcs, dashboard, agent, client = free_ports(4)
    environ |= {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }
    subprocess.run(
        ["ray", "get-auth-token", "--generate"], env=environ, check=True, capture_output=True
    )
    start = [
        *("ray", "start", "--head", "--block", f"--temp-dir={home / 'ray'}", "--num-cpus=6"),
        *(f"--port={gcs}", f"--dashboard-port={dashboard}", "--object-store-memory=100000000"),
        *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
    ]

    def started() -> "subprocess.Popen[bytes]":
        with (home / "log").open("a") as log:
            return subprocess.Popen(
                start, env=environ, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    process, more = started(), STARTS - 1
    try:
        for _ in range(240):
            listed = subprocess.run(["ray", "job", "list"], env=environ, capture_output=True)
            if listed.returncode == 0:
                break
            if process.poll() is not None and more:
                process, more = started(), more - 1
            time.sleep(0.5)
        assert process.poll() is None, (home / "log").read_text()
        yield environ
    finally:
        import psutil

        alive = process.poll() is None
        children = psutil.Process(process.pid).children(recursive=True) if alive else []
        process.terminate()
        for child in psutil.wait_procs(children, timeout=3)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()
        process.wait()
        shutil.rmtree(home, ignore_errors=True)
