"""A call on every other machine of a cluster."""

from collections.abc import Callable
from typing import Any, TypeVar

from ns_ray.compute.failures import ours
from ns_ray.log import say

SOON, LATEST = 5.0, 120.0
"""Seconds until it is said which nodes are waited for, and until they no longer are. A worker
process starts in seconds, but a node may install an environment for it first."""

T = TypeVar("T")


def on_other_nodes(work: Callable[..., T], *arguments: Any, doing: str) -> dict[str, T]:
    """What `work(*arguments)` returns on each live node that has CPUs or GPUs, by its address; a
    node that is lost or does not answer in time is left out. The driver's own node is not asked:
    on a cluster of one machine nothing is done.

    Args:
        work: travels to the nodes.
        doing: what is waited for, for the message: `read /out`.

    Raises:
        NsRayError: a call failed.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    calls = {}
    for node in ray.nodes():
        has = node["Resources"]
        if node["Alive"] and node["NodeID"] != here and (has.get("CPU") or has.get("GPU")):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(work)
            calls[task.remote(*arguments)] = f"{node['NodeManagerHostname']} ({node['NodeName']})"
    ready, late = ray.wait(list(calls), num_returns=len(calls), timeout=SOON) if calls else ([], [])
    if late:
        say(f"waiting for {_names(calls, late)} to {doing}")
        ready, late = ray.wait(list(calls), num_returns=len(calls), timeout=LATEST - SOON)
    if late:
        say(f"{_names(calls, late)} did not {doing} within {LATEST:.0f} s; going on without")
    found = {}
    for call in ready:
        try:
            found[calls[call]] = ray.get(call)
        except ray.exceptions.RayTaskError as error:
            raise ours(error, f"{doing} on {calls[call]}") from error
        except ray.exceptions.RayError:  # a node that has left by now writes nothing
            continue
    return found


def _names(calls: dict[Any, str], some: list[Any]) -> str:
    return ", ".join(sorted(calls[call] for call in some))
