"""openapi.yaml and the application say the same: every path, and every answer that the document
names is one that a client can get. That there are no others is in test_serving_page.py."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from broken_files import jpeg
from hostile import request
from served import JSON, Server, b64, make_bundle, serving
from starlette.routing import Route

import ns_ray
from ns_ray.serving.paths import create_app
from ns_ray.serving.replica import Replica
from ns_ray.serving.settings import ServeConfig

FILE = Path(ns_ray.__file__).parent / "serving" / "openapi.yaml"
DOCUMENT: dict[str, Any] = yaml.safe_load(FILE.read_text())
PAGES = {"/", "/docs", "/openapi.json"}
"""For people and tools, and so not in the document."""
ANSWERS = [
    (method, path, int(code))
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
    for code in operation["responses"]
]


@dataclass(frozen=True)
class Servers:
    """One for each state in which a server answers otherwise."""

    good: Server
    locked: Server
    loading: Server
    full: Server
    slow: Server


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = make_bundle(tmp_path_factory.mktemp("bundle"))
    with ExitStack() as stack:
        started = Servers(
            good=stack.enter_context(serving(folder, max_bytes=20_000)),
            locked=stack.enter_context(serving(folder, keys=["key"])),
            loading=stack.enter_context(serving(None)),
            full=stack.enter_context(serving(folder, max_queue_bytes=1024)),
            slow=stack.enter_context(serving(folder, deadline=0.3)),
        )
        assert started.slow.replica is not None
        assert started.slow.replica.model is not None
        batcher = started.slow.replica.model.batcher
        forward, end = batcher._forward, threading.Event()
        batcher._forward = lambda pixels: (end.wait(60), forward(pixels))[1]
        yield started
        end.set()


def infer(data: str, **changed: Any) -> dict[str, Any]:
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [data], **changed}
    return {"inputs": [tensor]}


def sent(servers: Servers, method: str, path: str, code: int) -> int:
    """The status of a POST or PUT that should be `code`."""
    v2 = path.endswith("/infer")
    good, image = servers.good, jpeg(1)
    if code == 408:
        with socket.create_connection(("127.0.0.1", servers.slow.port), 30) as connection:
            connection.sendall(request(b"", path=path, length=1000, method=method) + b"x")
            return int(connection.recv(1000).split()[1])
    state = {401: servers.locked, 429: servers.full, 503: servers.loading, 504: servers.slow}
    server = state.get(code, good)
    data = b"no image" if code == 400 else bytes(2000) if code == 429 else image
    body, headers = data, {"Content-Type": "image/jpeg"}
    if v2:
        asked = infer(b64(data), shape=[2 if code == 422 else 1])
        body, headers = json.dumps(asked).encode(), JSON
    elif code == 422:
        body, headers = b'{"inputs": 5}', JSON
    if code == 413:
        body = bytes(20_001)
    if code == 415:
        headers = {**JSON, "Content-Encoding": "gzip"} if v2 else {"Content-Type": "text/html"}
    return server.call(method, path, body, headers).status


@pytest.mark.parametrize(("method", "path", "code"), ANSWERS)
def test_every_answer_of_the_document_is_given(
    servers: Servers, method: str, path: str, code: int
) -> None:
    model = "other" if code == 404 else "classifier"
    path = path.replace("{model}", model)
    if method == "get":
        server = {401: servers.locked, 503: servers.loading}.get(code, servers.good)
        assert server.get(path).status == code
    else:
        assert sent(servers, method.upper(), path, code) == code


def test_the_document_and_the_application_have_the_same_paths(servers: Servers) -> None:
    app = create_app(Replica(ServeConfig()))
    routes = {
        (route.path, method.lower())
        for route in app.routes
        if isinstance(route, Route) and route.path not in PAGES
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert routes == {(path, method) for method, path, _ in ANSWERS}


def test_the_document_is_served_with_the_version(servers: Servers) -> None:
    served = servers.good.get("/openapi.json").json
    assert served["info"].pop("version") == ns_ray.__version__
    DOCUMENT["info"].pop("version")
    assert served == DOCUMENT
