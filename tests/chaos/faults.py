"""What can happen to a cluster: each fault is done to a running one, and says what it did."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil
from raylets import STORE, Driver

STOPPED_SECONDS = 6.0
"""Longer than a frozen node is borne (see `raylets.QUICK`); a worker is."""

FULL_SECONDS, READ_ONLY_SECONDS = 10.0, 30.0
"""Both longer than writing is tried again (ns_ray/store/faults.py)."""


class HasDriver(Protocol):
    """Who has started a driver."""

    driver: Driver


@dataclass
class Scene:
    """A cluster with a run on it.

    Attributes:
        cluster, nodes: Ray's own handles; `nodes` are those with CPUs.
        cpus: of each.
        user: whose driver is at work.
        chance: decides whom it hits.
        disk: of the run alone, where there is one (see `own_disk`).
    """

    cluster: Any
    nodes: list[Any]
    cpus: int
    user: HasDriver
    chance: random.Random
    disk: Path | None = None

    def workers(self, *names: str) -> list[psutil.Process]:
        """Processes of the nodes that do something of such a name."""
        found = []
        for node in self.nodes:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in psutil.Process(raylet(node)).children():
                    with contextlib.suppress(psutil.NoSuchProcess):
                        title = " ".join(process.cmdline())
                        if any(name in title for name in names):
                            found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def replace(self, node: Any) -> None:
        """Let another node take the place of one that has gone."""
        self.nodes.remove(node)
        self.nodes.append(self.cluster.add_node(num_cpus=self.cpus, **STORE))


def raylet(node: Any) -> int:
    """Process id of what makes a node one."""
    return int(node.all_processes["raylet"][0].process.pid)


def kill_actor(scene: Scene) -> str | None:
    """SIGKILL of an actor that labels or scores."""
    return _kill(scene, "MapWorker", "ShardPredictor")


def kill_worker(scene: Scene) -> str | None:
    """SIGKILL of a training worker."""
    return _kill(scene, "TrainWorker")


def kill_loader(scene: Scene) -> str | None:
    """SIGKILL of a process that decodes, packs or waits."""
    return _kill(scene, "ray::_make", "ray::patiently", "ray::IDLE", "Examples")


def _kill(scene: Scene, *names: str) -> str | None:
    found = scene.workers(*names)
    if not found:
        return None
    victim = scene.chance.choice(found)
    title = " ".join(victim.cmdline()).strip()
    victim.send_signal(signal.SIGKILL)
    return title


def kill_driver(scene: Scene) -> str | None:
    """SIGKILL of the driver."""
    scene.user.driver.kill()
    return "driver"


def kill_node(scene: Scene) -> str | None:
    """A node dies with all of its processes; another one comes."""
    node = scene.chance.choice(scene.nodes)
    children = psutil.Process(raylet(node)).children()
    scene.cluster.remove_node(node, allow_graceful=False)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    scene.replace(node)
    return "node"


def stop_worker(scene: Scene) -> str | None:
    """A training worker or labeling actor stands still for some seconds."""
    found = scene.workers("TrainWorker", "MapWorker", "ShardPredictor")
    if not found:
        return None
    victim = scene.chance.choice(found)
    title = " ".join(victim.cmdline()).strip()
    _stop([victim.pid])
    return title


def stop_node(scene: Scene) -> str | None:
    """A node stands still until the cluster has given it up; another one comes."""
    node = scene.chance.choice(scene.nodes)
    main = psutil.Process(raylet(node))
    children = main.children()
    _stop([main.pid, *(child.pid for child in children)])
    for process in [*children, main]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    with contextlib.suppress(Exception):  # it is gone already
        scene.cluster.remove_node(node, allow_graceful=False)
    scene.replace(node)
    return "node"


def _stop(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    time.sleep(STOPPED_SECONDS)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def preempt(scene: Scene) -> str | None:
    """A node is given notice, is drained, and goes; another one comes."""
    from ray import _raylet
    from ray.core.generated import autoscaler_pb2

    node = scene.chance.choice(scene.nodes)
    deadline = int((time.time() + 20) * 1000)
    accepted, _ = _raylet.GcsClient(  # type: ignore[attr-defined]
        address=scene.cluster.address
    ).drain_node(
        node.node_id,
        autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "spot",
        deadline,
    )
    if not accepted:
        return None
    scene.nodes.append(scene.cluster.add_node(num_cpus=scene.cpus, **STORE))
    time.sleep(12)
    scene.nodes.remove(node)
    scene.cluster.remove_node(node, allow_graceful=False)
    return "node"


@contextlib.contextmanager
def own_disk(folder: Path) -> Iterator[Path | None]:
    """A small disk for one run, in memory. None where none can be mounted: it takes Linux, and
    root."""
    place = folder / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill_disk(scene: Scene) -> str | None:
    """The disk is full for some seconds."""
    if scene.disk is None:
        return None
    filler = scene.disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))
    time.sleep(FULL_SECONDS)
    filler.unlink()
    return "disk"


def refuse_writes(scene: Scene) -> str | None:
    """No file can be made, renamed or removed for half a minute, not even by root. Nobody is hit
    where the kernel knows no such mark on a disk in memory (Linux before 6.6)."""
    if scene.disk is None or not _mark("+i", [str(scene.disk)]):
        return None
    # A folder may be renamed until it is marked, which is no reason to end.
    _mark("+i", [folder for folder, _, _ in os.walk(scene.disk)])
    time.sleep(READ_ONLY_SECONDS)
    # The innermost first: one that is free may be renamed, and with it the path of what is in it.
    _mark("-i", [folder for folder, _, _ in os.walk(scene.disk, topdown=False)])
    return "disk"


def _mark(mark: str, folders: list[str]) -> bool:
    """Mark folders as immutable, or no longer. Whether all of them were there and can be."""
    done = subprocess.run(["chattr", mark, *folders], check=False, capture_output=True)
    return not done.returncode


Fault = Callable[[Scene], str | None]

FAULTS: dict[str, Fault] = {
    "actor killed": kill_actor,
    "worker killed": kill_worker,
    "loader killed": kill_loader,
    "driver killed": kill_driver,
    "node killed": kill_node,
    "worker stopped": stop_worker,
    "node stopped": stop_node,
    "node preempted": preempt,
    "disk full": fill_disk,
    "disk read-only": refuse_writes,
}
OF_DISKS = ("disk full", "disk read-only")
"""Those that take a disk of the run's own."""
