"""The ports that one server of this machine has to itself: the one where it is asked, and a block
behind it.

HAProxy asks every replica at a port of its own, which Ray Serve counts from 30000 without looking
who has it, and Serve's proxy, while it has no replica, at 8500, which several may share: a second
server was answered by the first one's model. And between two looks at a port that is still free,
two servers could take the same one. Knows nothing about Ray.
"""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ns_ray.errors import ConfigError

FIRST, LAST, BLOCK = 30000, 31000, 100
"""Ray's range for replicas, and how much of it one server takes. From the end: a cluster on this
machine counts from the beginning."""


@contextmanager
def own_port(host: str, port: int) -> Iterator[str]:
    """Keep other servers of ns-ray from starting on a port.

    Yields:
        The address with the port: 127.0.0.1:8000, [::1]:8000.

    Raises:
        ConfigError: somebody listens there, or another server is starting.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} ({_reason(error)}); set --host or --port"
        ) from None
    place = f"[{address[0]}]:{port}" if family == socket.AF_INET6 else f"{address[0]}:{port}"
    with ExitStack() as held:
        if not _held(held, place):
            raise ConfigError(
                f"cannot listen on {host}:{port} (another ns-ray serve is starting there); "
                "set --port"
            )
        yield place


@contextmanager
def own_block() -> Iterator[range]:
    """A hundred ports on which nobody listens, and which no other server of ns-ray takes.

    Raises:
        ConfigError: there are none left.
    """
    with ExitStack() as held:
        for first in range(LAST - BLOCK, FIRST - 1, -BLOCK):
            block = range(first, first + BLOCK)
            if _held(held, f"replicas:{first}") and all(_is_free(port) for port in block):
                break
        else:
            raise ConfigError(
                f"there is no room for another server: no {BLOCK} ports from {FIRST} to {LAST} "
                "are free; stop one, or set --ingress proxy"
            )
        yield block


def _held(held: ExitStack, name: str) -> bool:
    """Whether a name is this process' alone now. It is no file: it ends with the process, and is as
    local to a container as its ports are."""
    if sys.platform != "linux":
        return True
    guard = held.enter_context(socket.socket(socket.AF_UNIX))
    try:
        guard.bind(f"\0ns-ray:{name}")
    except OSError:
        return False
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _reason(error: Exception) -> str:
    number = getattr(error, "errno", None)
    return os.strerror(number).lower() if number and number > 0 else str(error)
