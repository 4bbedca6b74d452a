"""What can happen to a cluster: each fault is done to a running one, and says what it did."""

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil
from raylets import STORE, Driver
from starting import in_time

STOPPED_SECONDS = 6.0
"""Longer than a frozen node is borne (see `raylets.QUICK`); a worker is."""

SOUGHT_SECONDS = 15.0
"""How long somebody to hit is waited for: the workers of a training start that late."""

FULL_SECONDS, READ_ONLY_SECONDS = 10.0, 30.0
"""Both longer than writing is tried again (ns_ray/store/faults.py)."""


class HasDriver(Protocol):
    """Who has started a driver."""

    @property
    def driver(self) -> Driver:
        """At work."""
        ...


@dataclass
class Scene:
    """A cluster with a run on it.

    Attributes:
        cluster, nodes: Ray's own handles; `nodes` are those with CPUs.
        cpus: of each.
        user: whose driver is at work.
        chance: decides whom it hits.
        disk: of the run alone, where there is one (see `own_disk`).
        wanted: nodes that are to come.
    """

    cluster: Any
    nodes: list[Any]
    cpus: int
    user: HasDriver
    chance: random.Random
    disk: Path | None = None
    wanted: int = 0

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

    def take(self) -> Any:
        """A node, which no other fault at the same time will hit."""
        node = self.chance.choice(self.nodes)
        self.nodes.remove(node)
        return node

    def add(self) -> None:
        """Let another node come. Ray starts one in the main thread only: that of `do`, if this is
        another one."""
        self.wanted += 1
        if threading.current_thread() is threading.main_thread():
            self._come()

    def _come(self) -> None:
        while self.wanted:
            self.wanted -= 1
            self.nodes.append(in_time(self.cluster.add_node, num_cpus=self.cpus, **STORE))

    def do(self, faults: Sequence[str]) -> list[str]:
        """Do some of FAULTS at the same moment; whom they hit."""
        with ThreadPoolExecutor(len(faults)) as threads:
            begun = [threads.submit(FAULTS[fault], self) for fault in faults]
            while not all(one.done() for one in begun):
                time.sleep(0.1)
                self._come()
            self._come()
        return [hit for one in begun if (hit := one.result())]


def raylet(node: Any) -> int:
    """Process id of what makes a node one."""
    return int(node.all_processes["raylet"][0].process.pid)


ACTORS, TRAINERS = ("MapWorker", "ShardPredictor"), ("TrainWorker",)


def kill_actor(scene: Scene) -> str | None:
    """SIGKILL of an actor that labels or scores."""
    return _kill(scene, *ACTORS)


def kill_worker(scene: Scene) -> str | None:
    """SIGKILL of a training worker."""
    return _kill(scene, *TRAINERS)


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
    node = scene.take()
    children = psutil.Process(raylet(node)).children()
    scene.cluster.remove_node(node, allow_graceful=False)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    scene.add()
    return "node"


def stop_worker(scene: Scene) -> str | None:
    """A training worker or labeling actor stands still for some seconds."""
    found = scene.workers(*TRAINERS, *ACTORS)
    if not found:
        return None
    victim = scene.chance.choice(found)
    title = " ".join(victim.cmdline()).strip()
    _stop([victim.pid])
    return title


def stop_node(scene: Scene) -> str | None:
    """A node stands still until the cluster has given it up; another one comes."""
    node = scene.take()
    main = psutil.Process(raylet(node))
    children = main.children()
    _stop([main.pid, *(child.pid for child in children)])
    for process in [*children, main]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    with contextlib.suppress(Exception):  # it is gone already
        scene.cluster.remove_node(node, allow_graceful=False)
    scene.add()
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

    node = scene.take()
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
        scene.nodes.append(node)
        return None
    scene.add()
    time.sleep(12)
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


def await_victim(scene: Scene, fault: str) -> None:
    """Wait a while for somebody whom a fault hits."""
    end = time.monotonic() + SOUGHT_SECONDS
    while fault in VICTIMS and not scene.workers(*VICTIMS[fault]) and time.monotonic() < end:
        time.sleep(0.1)


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
VICTIMS = {
    "actor killed": ACTORS,
    "worker killed": TRAINERS,
    "worker stopped": (*TRAINERS, *ACTORS),
}
"""Whom these hit, who may not have started when their stage has."""
OF_DISKS = ("disk full", "disk read-only")
"""Those that take a disk of the run's own."""
