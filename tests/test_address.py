"""RAY_ADDRESS of a cluster, and of what is none."""

import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from ray._private import services
from test_tls import certified

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


def test_a_server_of_grpc_that_does_not_answer_is_left_to_ray(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asked, "ANSWER_SECONDS", 0.5)
    with answering(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])) as address:
        check_address(address)


def test_who_speaks_grpc_and_is_no_head_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as Ray's own port for clients, 10001; Ray asks for ever. No proxy is asked."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server = grpc.server(ThreadPoolExecutor(1))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        with pytest.raises(StageError, match=r"is no head of a Ray cluster.*10001.*6379"):
            check_address(address)
    finally:
        server.stop(None)


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


def test_over_tls_the_certificate_must_name_what_ray_makes_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks at the node's own address instead of 127.0.0.1, and tries for minutes."""
    monkeypatch.setattr(services, "get_node_ip_address", lambda: "127.0.0.2")
    for name, value in certified(tmp_path / "tls", "127.0.0.1").items():
        monkeypatch.setenv(name, value)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "tls/tls.crt", tmp_path / "tls/tls.key")

    def answer(server: socket.socket) -> None:
        with suppress(OSError), context.wrap_socket(server.accept()[0], server_side=True):
            pass

    with socket.create_server(("127.0.0.2", 0)) as server, ThreadPoolExecutor(1) as thread:
        server.settimeout(20)
        thread.submit(answer, server)
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(StageError, match=r"RAY_ADDRESS=127\.0\.0\.1.*127\.0\.0\.2"):
            check_address(address)
