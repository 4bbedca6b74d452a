"""The nodes of a cluster, and the wait for those that are not there yet.

A cluster grows: its autoscaler adds nodes for what is asked for, or a lost one comes back. So what
does not fit yet is asked for with a placement group, which goes with this process, and is waited
for within bounds. What would never fit is refused at once.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from ns_ray.compute import resources
from ns_ray.compute.resources import Machine, Node, Workers
from ns_ray.config import ResourcesConfig, seconds_of
from ns_ray.errors import ConfigError
from ns_ray.log import say

POLL = 1.0
"""Seconds between two looks at the nodes."""
SAID_AGAIN = 60.0
"""Seconds after which a wait says again what it waits for."""

T = TypeVar("T")


def present(*, own: bool = False) -> Machine:
    """What the nodes have that are alive and stay so.

    Args:
        own: also what this process holds itself, if it is a task or an actor of Ray. A driver
            leaves it out: nobody else gets that while it waits for the others.
    """
    import ray
    from ray._private.state import state

    leaving = state.get_draining_nodes()
    here, held = ("", {}) if own else _held()
    found = []
    for node in ray.nodes():
        if node["Alive"] and node["NodeID"] not in leaving:
            mine = held if node["NodeID"] == here else {}
            cpus, gpus = (
                int(node["Resources"].get(name, 0) - mine.get(name, 0)) for name in ("CPU", "GPU")
            )
            found.append(Node(cpus, gpus))
    return Machine.of(found)


def _held() -> tuple[str, dict[str, float]]:
    """The node of this process and what it holds there; nothing where it is no worker of Ray."""
    import ray
    from ray._private.worker import global_worker

    if global_worker.mode != ray.WORKER_MODE:
        return "", {}
    context = ray.get_runtime_context()
    return context.get_node_id(), context.get_assigned_resources()


def enough(config: ResourcesConfig) -> Machine:
    """The cluster, when it has room for the workers and actors of a run.

    Raises:
        ConfigError: it has none, and will not have any, or not after `resources.max_wait`.
    """
    wait = Wait(config.max_wait)
    workers = wait.until(lambda: resources.workers(config, present()), _of_workers(config))
    wait.until(lambda: resources.pool(config, present()), _of_actors(config))
    machine = present()
    if not workers.gpus and config.gpus_per_worker is None and autoscaled():
        say(
            "no node has a GPU: training on CPUs; resources.gpus_per_worker=1 waits for nodes that "
            "have one"
        )
    return machine


def _of_workers(config: ResourcesConfig) -> list[dict[str, float]]:
    """What the workers of a run need at least, one CPU for loading among it."""
    gpus = 1.0 if config.gpus_per_worker is None and present().gpus else config.gpus_per_worker
    each = _bundle(config.cpus_per_worker or 1, gpus or 0)
    return [each] * config.num_workers + [_bundle(1, 0)]


def _of_actors(config: ResourcesConfig) -> list[dict[str, float]]:
    gpus = 1.0 if config.gpus_per_actor is None and present().gpus else config.gpus_per_actor
    return [_bundle(config.cpus_per_actor or 1, gpus or 0)] * (config.label_actors or 1)


def _bundle(cpus: float, gpus: float) -> dict[str, float]:
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {})}


class Wait:
    """A wait with a bound, which says what it waits for."""

    def __init__(self, bound: str) -> None:
        """
        Args:
            bound: the longest duration of all that is waited for, such as 15m.
        """
        self._bound, self._began = bound, time.monotonic()
        self._said: float | None = None

    def until(
        self, fits: Callable[[], T], bundles: list[dict[str, float]], *, again: bool = False
    ) -> T:
        """What `fits` returns, as soon as it raises no ConfigError; until then, nodes for the
        bundles are asked for.

        Args:
            fits: tells whether there is room.
            bundles: what there must be room for.
            again: there was room before: nodes that are lost may come back to any cluster.

        Raises:
            ConfigError: the last one, where no node will do, or after the bound.
        """
        import ray

        asked: Any = None
        try:
            while True:
                try:
                    return fits()
                except ConfigError as error:
                    if asked is None and not again and _never(bundles):
                        raise
                    self._say(error)
                if asked is None:
                    asked = ray.util.placement_group(bundles, strategy="PACK")
                time.sleep(POLL)
        finally:
            if asked is not None:
                ray.util.remove_placement_group(asked)

    def _say(self, error: ConfigError) -> None:
        now = time.monotonic()
        waited, bound = now - self._began, seconds_of(self._bound)
        if waited > bound:
            raise ConfigError(
                f"{error}; {waited:.0f} s were waited for nodes that have room for them "
                f"(resources.max_wait={self._bound})"
            ) from None
        if self._said is None:
            say(f"waiting for nodes, at most {self._bound} (resources.max_wait): {error}")
        elif now - self._said > SAID_AGAIN:
            say(f"waiting for nodes for {waited:.0f} s: {error}")
        else:
            return
        self._said = now


@contextmanager
def asked_for(workers: Workers, missing: int) -> Iterator[None]:
    """Inside, room for so many more workers is asked for, so that an autoscaler replaces the nodes
    that were lost. What comes is given back at once, and taken again from time to time: held, it
    could take the last CPU that loads; never touched, the autoscaler would count it as idle."""
    import ray

    stop = threading.Event()
    bundles = [_bundle(workers.cpus, workers.gpus)] * missing + [_bundle(1, 0)]

    def ask() -> None:
        with suppress(Exception):  # the training hears of a cluster that is gone
            while not stop.is_set():
                asked = ray.util.placement_group(bundles, strategy="PACK")
                while not asked.wait(0) and not stop.wait(POLL):
                    pass
                ray.util.remove_placement_group(asked)
                stop.wait(SAID_AGAIN)

    thread = threading.Thread(target=ask, daemon=True)
    if missing:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if missing:
            thread.join()


@contextmanager
def watched(doing: str, cpus: float, gpus: float) -> Iterator[None]:
    """Inside, it is said every minute when no node has room for one of the processes that work.

    Args:
        doing: what they do, for the message: `packing /out`.
        cpus, gpus: of each.
    """
    stop = threading.Event()

    def watch() -> None:
        since = time.monotonic()
        while not stop.wait(SAID_AGAIN):
            with suppress(Exception):  # whoever waits for the work hears of a cluster that is gone
                if present().holds(cpus, gpus):
                    since = time.monotonic()
                    continue
                say(
                    f"{doing}: for {time.monotonic() - since:.0f} s no node has had room for a "
                    f"process with {cpus:g} CPUs and {gpus:g} GPUs"
                )

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _never(bundles: list[dict[str, float]]) -> bool:
    """Whether no node can hold one of the bundles, now or later: a Ray that this process has
    started itself, with `ray.init`, stays as it is."""
    from ray._private import worker

    if worker._global_node is not None and worker._global_node.is_head():
        return True
    each = present().each
    largest = [node for node in each if node.cpus]
    fits = all(
        any(node.holds(bundle["CPU"], bundle.get("GPU", 0)) for node in largest)
        for bundle in bundles
    )
    return bool(largest) and not fits and not autoscaled()


def autoscaled() -> bool:
    """Whether the cluster has an autoscaler that adds nodes. Without one, Ray names each node's
    type after its id."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.runtime_context import get_runtime_context

    # Not the client of the process: closing one of several clusters takes it away from the others.
    address = get_runtime_context().gcs_address
    client = GcsClient(address=address)
    if is_autoscaler_v2(fetch_from_server=True, gcs_client=client):
        status = get_cluster_status(address)
        types = {
            node.node_id: node.ray_node_type_name
            for node in [*status.active_nodes, *status.idle_nodes]
        }
    else:
        told = json.loads(client.internal_kv_get(b"__autoscaling_status") or b"{}")
        types = told.get("autoscaler_report", {}).get("node_type_mapping") or {}
    return any(kind != f"node_{node}" for node, kind in types.items())


def left_for(workers: Workers, max_wait: str, patience: float) -> int:
    """How many of the workers of a training that has lost some there is room for: all of them, or
    after some patience as many as there are.

    Args:
        workers: all of them.
        max_wait: for the first of them.
        patience: seconds for all of them.

    Raises:
        ConfigError: there was no room for one.
    """
    began = time.monotonic()

    def fits() -> int:
        machine = present()
        room = min(workers.count, machine.holds(workers.cpus, workers.gpus))
        while room and room * workers.cpus > machine.cpus - 1:  # a CPU that loads
            room -= 1
        if room == workers.count or (room and time.monotonic() - began > patience):
            return room
        raise ConfigError(f"{workers.count} training workers, and room for {room}")

    each = _bundle(workers.cpus, workers.gpus)
    bundles = [each] * workers.count + [_bundle(1, 0)]
    return Wait(max_wait).until(fits, bundles, again=True)
