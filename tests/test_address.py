"""RAY_ADDRESS of a cluster, and of what is none."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ns_ray.compute import address as asked
from ns_ray.compute import machine
from ns_ray.compute.address import check_address
from ns_ray.errors import ConfigError, StageError


@contextmanager
def answering(words: bytes | None) -> Iterator[str]:
    """Address of a server that says so to whoever greets it; None: nothing, ever."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                if words is None:
                    over.wait()
                else:
                    connection.sendall(words)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        over.set()
        thread.join()


def test_a_server_of_grpc_is_taken() -> None:
    with answering(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])) as address:
        check_address(address)


def test_words_of_ray_are_left_to_it() -> None:
    check_address("auto")


@pytest.mark.parametrize("words", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_another_server_is_told_from_a_cluster(words: bytes) -> None:
    with answering(words) as address, pytest.raises(StageError, match=f"{address}: what answers"):
        check_address(address)


def test_silence_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "ANSWER_SECONDS", 0.05)
    with answering(None) as address, pytest.raises(StageError, match=r"nobody answers .*unset it"):
        check_address(address)


def test_a_closed_port_is_named_before_ray_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(StageError, match=f"^RAY_ADDRESS={address}: nobody answers.*unset it"):
        machine()


@pytest.mark.parametrize("address", ["http://head:8265", "https://head", "head", "head:", ":6379"])
def test_what_is_no_address_is_a_setting_to_change(address: str) -> None:
    with pytest.raises(ConfigError, match=rf"^RAY_ADDRESS={address} .*HOST:PORT .*unset it"):
        check_address(address)


@pytest.mark.parametrize("address", ["http://head:8265", "https://head"])
def test_the_address_of_a_dashboard_is_told_from_that_of_a_cluster(address: str) -> None:
    with pytest.raises(ConfigError, match="is for `ray job submit` and the dashboard"):
        check_address(address)
