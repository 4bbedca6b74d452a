"""A Ray cluster of several nodes on this machine, whose nodes come and go, and drivers on it."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from conftest import RAY, free_ports
from starting import in_time

LISTS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
)
"""Of an autoscaler's config; all must be there."""

QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
"""So that a dead node is noticed within 2 s rather than 16."""


STORE = {"object_store_memory": 100 * 2**20}
"""Bytes of each node."""


@contextmanager
def cluster_of(*cpus: int) -> Iterator[tuple[Any, list[Any]]]:
    """A head without CPUs, and nodes with so many; Ray's own handles of cluster and nodes."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK, **STORE}
    cluster = in_time(Cluster, initialize_head=True, head_node_args=head)
    try:
        yield cluster, [in_time(cluster.add_node, num_cpus=count, **STORE) for count in cpus]
    finally:
        cluster.shutdown()


class Driver:
    """A process of ours on a cluster, and what it says, line by line."""

    def __init__(self, command: list[str], address: str, **environ: str) -> None:
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, "RAY_ADDRESS": address, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as said:
            for line in said:
                self.lines.append(line.rstrip("\n"))

    def until(self, says: Callable[[str], bool], seconds: float = 120) -> str:
        """The first line that is meant."""
        end, seen = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            for line in self.lines[seen:]:
                seen += 1
                if says(line):
                    return line
            assert self._process.poll() is None or seen < len(self.lines), self.text
            time.sleep(0.05)
        raise AssertionError(self.text)

    def until_there(self, folder: Path, pattern: str, seconds: float = 120) -> None:
        """Wait for a file that it makes."""
        end = time.monotonic() + seconds
        while not any(folder.glob(pattern)):
            assert time.monotonic() < end, self.text
            assert self._process.poll() is None, self.text
            time.sleep(0.05)

    def ended(self, seconds: float = 300) -> int:
        """Its exit code."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.text) from None
        self._reader.join(10)
        return code

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()
        self._reader.join(10)
        if self._process.stdout is not None:
            self._process.stdout.close()

    @property
    def text(self) -> str:
        """All it has said."""
        return "\n".join(self.lines)


@contextmanager
def driver_of(command: list[str], address: str, **environ: str) -> Iterator[Driver]:
    """A driver that does not outlive its test."""
    driver = Driver(command, address, **environ)
    try:
        yield driver
    finally:
        driver.kill()


@contextmanager
def autoscaling_head(folder: Path, node: dict[str, int], most: int) -> Iterator[str]:
    """A head without CPUs whose autoscaler may add so many nodes; its address."""
    import psutil  # comes with Ray

    port = free_ports(1)[0]
    address = f"127.0.0.1:{port}"
    launched = {"resources": {**node, "object_store_memory": 100 * 2**20}, "node_config": {}}
    config = folder / "autoscaler.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                **{name: [] for name in LISTS},
                "cluster_name": "fake",
                "provider": {
                    "type": "fake_multinode",
                    "gcs_address": address,
                    "launch_multiple": True,
                },
                "auth": {},
                "docker": {},
                "file_mounts": {},
                "max_workers": most,
                "idle_timeout_minutes": 5,
                "head_node_type": "ray.head.default",
                "available_node_types": {
                    "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}},
                    "more": {**launched, "min_workers": 0, "max_workers": most},
                },
            }
        )
    )
    temporary = tempfile.mkdtemp(prefix="nsr", dir="/tmp")
    process = subprocess.Popen(
        [
            *(RAY, "start", "--head", "--block", "--num-cpus=0", "--include-dashboard=false"),
            *(f"--port={port}", "--node-ip-address=127.0.0.1", f"--temp-dir={temporary}"),
            *(f"--autoscaling-config={config}", "--object-store-memory=100000000"),
        ],
        env={**os.environ, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        for _ in range(240):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            time.sleep(0.5)
        time.sleep(5)
        yield address
    finally:
        # Those that the autoscaler started are not below `ray start`, but in its session.
        ours = [p for p in psutil.process_iter() if _session(p.pid) == process.pid]
        for one in ours:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def _session(pid: int) -> int:
    with contextlib.suppress(OSError):
        return os.getsid(pid)
    return -1
