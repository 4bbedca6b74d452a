"""Which ports a server of this machine takes, and what a second one is told."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from conftest import free_ports
from served import make_bundle
from tiny import user_environment

from ns_ray.errors import ConfigError
from ns_ray.serving import ports
from ns_ray.serving.launch import environment
from ns_ray.serving.ports import own_block, own_port

HOLD = """
import sys, time
from ns_ray.serving.ports import own_block, own_port
with own_port("127.0.0.1", int(sys.argv[1])), own_block() as block:
    print(block[0], flush=True)
    time.sleep(600)
"""


@contextmanager
def another_server(port: int) -> Iterator[int]:
    """A process that has taken what `ns-ray serve` takes when it starts; yields its first port."""
    command = [sys.executable, "-c", HOLD, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=user_environment()) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def refused(port: int, host: str = "127.0.0.1") -> str:
    with pytest.raises(ConfigError) as error, own_port(host, port):
        pass
    return str(error.value)


def test_a_port_that_is_taken_is_named_with_what_to_set() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for host in ("127.0.0.1", "localhost", "0.0.0.0"):
            text = refused(port, host)
            assert f"cannot listen on {host}:{port} (address already in use)" in text
            assert "--port" in text
    with own_port("localhost", port) as place:
        assert place in (f"127.0.0.1:{port}", f"[::1]:{port}")


def test_a_host_that_is_none_is_named() -> None:
    assert "--host" in refused(8000, "192.0.2.77")
    assert "no-such-host.invalid:8000" in refused(8000, "no-such-host.invalid")


def test_two_that_start_at_once_share_no_port() -> None:
    if sys.platform != "linux":
        return  # elsewhere only what listens already is seen
    (port,) = free_ports(1)
    with another_server(port) as first:
        assert f"{port} (another ns-ray serve is starting there)" in refused(port)
        with own_block() as one, own_block() as two:
            taken = range(first, first + ports.BLOCK)
            assert len({*taken, *one, *two}) == 3 * ports.BLOCK
    end = time.monotonic() + 30
    while True:  # what it had is free as soon as it has ended
        try:
            with own_port("127.0.0.1", port):
                break
        except ConfigError:
            assert time.monotonic() < end


def test_ports_where_somebody_listens_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with own_block() as block:
        pass
    monkeypatch.setattr(ports, "FIRST", block[0])
    monkeypatch.setattr(ports, "LAST", block[-1] + 1)
    full = pytest.raises(ConfigError, match="stop one, or set --ingress proxy")
    with socket.create_server(("127.0.0.1", block[7])), full, own_block():
        pass
    with own_block() as again:
        assert again == block


def test_ray_is_given_the_ports_of_the_block_and_no_others(tmp_path: Path) -> None:
    block = range(30500, 30600)
    environ = environment("haproxy", str(tmp_path), 30, block, "127.0.0.1:8000")
    given = {name: int(value) for name, value in environ.items() if "_PORT" in name}
    low = given.pop("RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT")
    high = given.pop("RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT")
    assert sorted([*range(low, high), *given.values()]) == list(block)
    # All that Ray has for HTTP with HAProxy: one that it adds must come from the block, too.
    from ray.serve._private import constants

    known = {name for name in dir(constants) if name.startswith("RAY_") and "PORT" in name}
    http = {n for n in known if "GRPC" not in n and n.endswith("_PORT") and "WORKER" not in n}
    assert http == {name for name in environ if name.endswith("_PORT")}


def test_a_second_server_on_a_port_is_exit_2(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    with socket.create_server(("127.0.0.1", 0)) as taken, ExitStack() as stack:
        numbers = [taken.getsockname()[1]]
        if sys.platform == "linux":
            numbers += free_ports(1)
            stack.enter_context(another_server(numbers[-1]))
        for number in numbers:
            command = ["serve", "--bundle", str(bundle), "--port", str(number)]
            done = subprocess.run(
                [sys.executable, "-m", "ns_ray", *command],
                env=user_environment(),
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 2
            assert f"127.0.0.1:{number}" in done.stderr
            assert "--port" in done.stderr
            assert done.stderr.count("\n") == 1
