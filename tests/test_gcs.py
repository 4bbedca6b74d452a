"""What becomes of work whose head does not answer; the whole of it is in test_head_lost.py."""

import atexit
import socket
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from ns_ray.compute.gcs import joined
from ns_ray.errors import DataError, NsRayError, StageError


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done to leave: Ray's own way, or one without it."""
    made: list[str] = []
    monkeypatch.setattr(ray, "shutdown", lambda: made.append("shutdown"))
    monkeypatch.setattr(atexit, "register", lambda _, code: made.append(f"exit {code}"))
    return made


def context(monkeypatch: pytest.MonkeyPatch, server: socket.socket) -> None:
    address = f"127.0.0.1:{server.getsockname()[1]}"
    found: Any = SimpleNamespace(gcs_address=address)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: found)


@pytest.mark.parametrize(
    ("raised", "seen", "left"),
    [
        (ValueError("of Ray"), StageError, "exit 4"),
        (DataError("of Ray"), StageError, "exit 4"),
        (KeyboardInterrupt(), KeyboardInterrupt, "exit 130"),
        (None, StageError, "exit 4"),
    ],
)
def test_without_a_head_ray_is_not_asked_to_leave(
    raised: BaseException | None,
    seen: type[BaseException],
    left: str,
    calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would wait for the head, and then end the process in its way."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        context(monkeypatch, server)

    def work() -> None:
        with joined():
            if raised is not None:
                raise raised

    with pytest.raises(seen) as caught:
        work()
    if isinstance(caught.value, NsRayError):
        assert "does not answer; the same command continues" in str(caught.value)
    assert calls == [left]


def test_with_a_head_an_error_stays_what_it_is(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        context(monkeypatch, server)
        monkeypatch.setattr("ns_ray.compute.gcs.greeted", lambda _: True)
        with pytest.raises(DataError, match="ours"), joined():
            raise DataError("ours")
    assert calls == ["shutdown"]
