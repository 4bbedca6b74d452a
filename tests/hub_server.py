"""A Hugging Face Hub on the loopback that takes models and gives them back, over real HTTP: what
huggingface_hub asks of one with Git LFS (HF_HUB_DISABLE_XET)."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

SHA = "0123456789" * 4
LFS_TYPE = "application/vnd.git-lfs+json"


@dataclass
class Repository:
    """A model.

    Attributes:
        private: whether only its owner sees it.
        files: its bytes by path.
        messages: of its commits.
    """

    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """What a Hub has, and how it behaves.

    Attributes:
        url: of the server.
        token: that is known.
        owners: whose repositories this token may write to.
        models: repositories by name.
        blobs: large files by their SHA-256.
        failing: paths that are answered with a 500 begin so.
        asked: requests, as `METHOD path`.
    """

    url: str = ""
    token: str = "hf_known"
    owners: tuple[str, ...] = ("me",)
    models: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    failing: tuple[str, ...] = ()
    asked: list[str] = field(default_factory=list)


class RefusedError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, says: str, code: str = "", **more: str) -> None:
        self.status, self.says, self.code, self.more = status, says, code, more


@contextmanager
def hub_running() -> Iterator[Hub]:
    """A running Hub."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def answer(self) -> None:
            path = unquote(self.path.partition("?")[0])
            hub.asked.append(f"{self.command} {path}")
            body = _body(self)
            try:
                if any(path.startswith(one) for one in hub.failing):
                    raise RefusedError(500, "something broke")
                about, data = _answer(hub, self, path, body)
                status = 200
            except RefusedError as refusal:
                status, says = refusal.status, {"error": refusal.says, **refusal.more}
                data = json.dumps(says).encode()
                about = {"X-Error-Message": refusal.says}
                about |= {"X-Error-Code": refusal.code} if refusal.code else {}
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **about}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _body(request: BaseHTTPRequestHandler) -> bytes:
    """What came with a request, of a length that it says or in chunks."""
    if request.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length") or 0))
    parts = []
    while size := int(request.rfile.readline(), 16):
        parts.append(request.rfile.read(size))
        request.rfile.readline()
    request.rfile.readline()
    return b"".join(parts)


def _answer(
    hub: Hub, request: BaseHTTPRequestHandler, path: str, body: bytes
) -> tuple[dict[str, str], bytes]:
    """Headers and body of a success."""
    given = request.headers.get("Authorization", "").removeprefix("Bearer ")
    parts = path.strip("/").split("/")
    if parts[0] == "blobs":
        if hashlib.sha256(body).hexdigest() != parts[1]:
            raise RefusedError(400, "the file is another one")
        hub.blobs[parts[1]] = body
        return {}, b""
    if given and given != hub.token:
        raise RefusedError(401, "Invalid username or password.")
    if path == "/api/validate-yaml":
        return _json({"errors": [], "warnings": []})
    if path == "/api/repos/create":
        return _json(_create(hub, given, json.loads(body)))
    if parts[:2] == ["api", "models"]:
        name, what = "/".join(parts[2:4]), parts[4:5]
    else:
        name, what = f"{parts[0]}/{parts[1].removesuffix('.git')}", parts[2:3]
    model = hub.models.get(name)
    if model is None or (model.private and not given):
        raise RefusedError(404 if given else 401, "Repository not found", "RepoNotFound")
    if request.command == "POST" and name.split("/")[0] not in hub.owners:
        raise RefusedError(403, f"You may not write to {name}")
    if what == ["preupload"]:
        return _json({"files": [_mode(one) for one in json.loads(body)["files"]]})
    if what == ["info"]:
        return _json({"objects": _objects(hub, json.loads(body)["objects"])}, LFS_TYPE)
    if what == ["commit"]:
        return _json(_commit(hub, name, body))
    if what == ["resolve"]:
        return _file(model, "/".join(parts[4:]))
    if what == ["tree"]:
        entry = {"type": "file", "oid": SHA}
        files = model.files.items()
        return _json([{**entry, "path": path, "size": len(data)} for path, data in files])
    return _json({"id": name, "sha": SHA, "private": model.private, "siblings": []})


def _json(value: Any, kind: str = "application/json") -> tuple[dict[str, str], bytes]:
    return {"Content-Type": kind}, json.dumps(value).encode()


def _create(hub: Hub, given: str, wanted: dict[str, Any]) -> dict[str, str]:
    name = f"{wanted['organization']}/{wanted['name']}"
    if not given:
        raise RefusedError(401, "Unauthorized")
    if wanted["organization"] not in hub.owners:
        raise RefusedError(403, f"You don't have the rights to create a model under {name}")
    if name in hub.models:
        raise RefusedError(409, "You already created this model repo", url=f"{hub.url}/{name}")
    private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
    hub.models[name] = Repository(private)
    return {"url": f"{hub.url}/{name}", "name": name}


def _mode(file: dict[str, Any]) -> dict[str, Any]:
    mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}


def _objects(hub: Hub, wanted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for one in wanted:
        link = {"href": f"{hub.url}/blobs/{one['oid']}"}
        new = {} if one["oid"] in hub.blobs else {"actions": {"upload": link}}
        found.append({"oid": one["oid"], "size": one["size"], **new})
    return found


def _commit(hub: Hub, name: str, body: bytes) -> dict[str, Any]:
    model = hub.models[name]
    for line in map(json.loads, body.splitlines()):
        value = line["value"]
        if line["key"] == "header":
            model.messages.append(value["summary"])
        elif line["key"] == "file":
            model.files[value["path"]] = base64.b64decode(value["content"])
        else:
            assert line["key"] == "lfsFile"
            model.files[value["path"]] = hub.blobs[value["oid"]]
    return {"commitUrl": f"{hub.url}/{name}/commit/{SHA}", "commitOid": SHA}


def _file(model: Repository, path: str) -> tuple[dict[str, str], bytes]:
    if path not in model.files:
        raise RefusedError(404, "Entry not found", "EntryNotFound")
    data = model.files[path]
    etag = hashlib.sha256(data).hexdigest()
    return {"ETag": f'"{etag}"', "X-Repo-Commit": SHA}, data
