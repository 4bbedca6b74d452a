"""The network that the workers of a training talk over: that of their nodes' addresses.

gloo takes the interface of the host's name, which many machines resolve to 127.0.1.1, or to an
address that other nodes do not reach: then every collective between two nodes fails.
"""

import os
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig


class NodeNetwork(TorchConfig):  # type: ignore[misc]
    """Ray Train's settings of the process group, on the interface by which Ray knows a node."""

    @property
    def backend_cls(self) -> Any:
        """What sets the group up."""
        return _Backend


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_name_interface)
        super().on_start(worker_group, backend_config)


def _name_interface() -> None:
    """Tell gloo, unless the user has."""
    interface = interface_of(ray.util.get_node_ip_address())
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def interface_of(address: str) -> str | None:
    """Name of the network interface of this machine that has an address; None where none has."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return str(name)
    return None
