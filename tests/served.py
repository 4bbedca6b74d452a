"""A small model behind real HTTP, without Ray: the application under uvicorn, in a thread."""

import asyncio
import base64
import http.client
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import uvicorn

from ns_ray.config.training import ModelConfig
from ns_ray.config.validation import validate
from ns_ray.model import bundle, networks
from ns_ray.serving.paths import create_app
from ns_ray.serving.replica import Replica
from ns_ray.serving.settings import ServeConfig

CLASSES = ("blue", "green", "red")
SETTINGS: dict[str, Any] = {"cpus": 1, "predict": {"runtime": "torch", "precision": "fp32"}}


def make_bundle(folder: Path, generation: int = 1, seed: int = 0) -> Path:
    """An untrained model of three classes, as a run leaves it."""
    torch.manual_seed(seed)
    model = networks.build(ModelConfig(model="test_resnet", image_size=32, crop_pct=1.0), 3)
    bundle.save(
        model,
        str(folder),
        classes=CLASSES,
        fingerprint=f"{seed:02d}{generation:02d}" * 4,
        provenance={"run": "tiny", "generation": generation, "role": "student"},
    )
    return folder


@dataclass
class Reply:
    """One HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The text of an error; every error must have one."""
        found = self.json
        assert list(found) == ["error"], found
        assert isinstance(found["error"], str)
        return str(found["error"])


@dataclass
class Server:
    """A running application, and a client of it."""

    port: int
    replica: Replica | None = None
    loop: asyncio.AbstractEventLoop | None = None
    default_headers: dict[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.host}:{self.port}"

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> Reply:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            connection.request(method, path, body, {**self.default_headers, **(headers or {})})
            reply = connection.getresponse()
            return Reply(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        """GET."""
        return self.call("GET", path, headers=headers)

    def post_image(self, data: bytes, path: str = "/predict", kind: str = "image/jpeg") -> Reply:
        """POST an encoded image."""
        return self.call("POST", path, data, {"Content-Type": kind})

    def post_json(self, value: Any, path: str = "/predict") -> Reply:
        """POST a JSON value."""
        return self.call("POST", path, json.dumps(value).encode(), JSON)

    def post_form(self, files: Sequence[bytes], path: str = "/predict", **fields: str) -> Reply:
        """POST files as a form."""
        body, kind = form(files, **fields)
        return self.call("POST", path, body, {"Content-Type": kind})


JSON = {"Content-Type": "application/json"}


def form(files: Sequence[bytes], **fields: str) -> tuple[bytes, str]:
    """A multipart body and its content type."""
    mark = "----ns-ray-test"
    parts = [
        f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{i}.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n".encode()
        + data
        + b"\r\n"
        for i, data in enumerate(files)
    ]
    parts += [
        f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    return b"".join(parts) + f"--{mark}--\r\n".encode(), f"multipart/form-data; boundary={mark}"


def b64(data: bytes) -> str:
    """Base64, as text."""
    return base64.b64encode(data).decode()


@contextmanager
def serving(path: Path | None, keys: Sequence[str] = (), **settings: Any) -> Iterator[Server]:
    """The application with a bundle, on a free port. Without a bundle it never gets ready."""
    config = validate(ServeConfig, {**SETTINGS, **settings})
    replica = Replica(config)
    app = create_app(replica, [key.encode() for key in keys])
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, lifespan="off", access_log=False, log_level="critical")
    )
    started = threading.Event()
    found: dict[str, Any] = {}

    async def run() -> None:
        found["loop"] = asyncio.get_running_loop()
        if path is not None:
            await replica.load(str(path))
        task = asyncio.create_task(server.serve())
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        found["port"] = server.servers[0].sockets[0].getsockname()[1]
        started.set()
        await task
        if replica.model is not None:
            await replica.model.batcher.close()

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    assert started.wait(120)
    try:
        yield Server(found["port"], replica, found["loop"])
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
