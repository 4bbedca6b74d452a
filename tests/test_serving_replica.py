"""What a replica does when something of its own goes wrong, and the keys that it reads."""

import asyncio
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from broken_files import jpeg
from hostile import request
from served import Server, make_bundle, serving

from ns_ray.config.validation import validate
from ns_ray.errors import ConfigError
from ns_ray.serving.app import read_keys
from ns_ray.serving.settings import ServeConfig


def fails(*_: Any) -> Any:
    raise RuntimeError("the model failed")


def load(server: Server, bundle: str) -> None:
    assert server.replica is not None
    assert server.loop is not None
    asyncio.run_coroutine_threadsafe(server.replica.load(bundle), server.loop).result(60)


def wait_until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_fault_of_the_model_is_a_500_that_names_the_request(tmp_path: Path) -> None:
    with serving(make_bundle(tmp_path)) as server:
        assert server.replica is not None
        assert server.replica.model is not None
        batcher = server.replica.model.batcher
        forward, batcher._forward = batcher._forward, fails
        reply = server.call("POST", "/predict", jpeg(1), {"X-Request-ID": "mine"})
        assert reply.status == 500
        assert reply.error == "internal error; see the log of request mine"
        totals = server.replica.totals
        wait_until(lambda: totals.requests["/predict", "500"] == 1)
        assert (totals.queue, totals.body_bytes) == (0, 0)
        batcher._forward = forward
        assert server.post_image(jpeg(1)).status == 200


def test_a_bundle_that_cannot_be_loaded_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_bundle(tmp_path / "1"), make_bundle(tmp_path / "2", generation=2, seed=2)
    with serving(first) as server:
        with pytest.raises(ConfigError, match="nowhere"):
            load(server, str(tmp_path / "nowhere"))
        with monkeypatch.context() as changed:
            changed.setattr("ns_ray.serving.replica.Predictor.forward", fails)
            with pytest.raises(RuntimeError, match="the model failed"):
                load(server, str(second))
        reply = server.post_image(jpeg(1))
        assert reply.status == 200
        assert reply.headers["x-model-version"].startswith("tiny-gen-01-")
        assert server.get("/readyz").status == 200


def test_a_model_exchanged_while_a_body_arrives_costs_no_request(tmp_path: Path) -> None:
    first, second = make_bundle(tmp_path / "1"), make_bundle(tmp_path / "2", generation=2, seed=2)
    with serving(first) as server:
        replica = server.replica
        assert replica is not None
        assert replica.model is not None
        old, whole = replica.model.batcher, request(jpeg(1))
        with socket.create_connection(("127.0.0.1", server.port), 60) as connection:
            connection.sendall(whole[:-100])
            wait_until(lambda: replica.totals.body_bytes > 0)
            load(server, str(second))
            wait_until(lambda: not old._thread.is_alive())
            connection.sendall(whole[-100:])
            answer = connection.recv(10_000)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"x-model-version: tiny-gen-02-" in answer.lower()


def test_a_client_that_leaves_is_counted_and_holds_nothing(tmp_path: Path) -> None:
    with serving(make_bundle(tmp_path)) as server:
        assert server.replica is not None
        totals = server.replica.totals
        with socket.create_connection(("127.0.0.1", server.port), 60) as connection:
            connection.sendall(request(jpeg(1))[:-100])
            wait_until(lambda: totals.body_bytes > 0)
        wait_until(lambda: totals.requests["/predict", "499"] == 1)
        assert (totals.queue, totals.body_bytes) == (0, 0)


def test_keys_are_read_from_lines(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    assert read_keys(None) == ()
    file.write_text("# ours\n\n  one \ntwo\n")
    assert read_keys(str(file)) == (b"one", b"two")
    file.write_text("# nobody\n")
    with pytest.raises(ValueError, match="holds no key"):
        read_keys(str(file))


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"max_replicas": 1, "replicas": 2}, "max_replicas=1 must be at least replicas=2"),
        ({"max_images": 9, "max_queue": 8}, "max_images=9 must be at most max_queue=8"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(
    wrong: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        validate(ServeConfig, wrong)
