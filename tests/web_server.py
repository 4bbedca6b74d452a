"""A web server on the loopback that fails as real ones do, or is the Hugging Face Hub."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote


class Site:
    """What a server has, and how it behaves.

    Attributes:
        files: bytes by path.
        ranges: whether it gives parts of files.
        sized: whether it says how long a file is.
        statuses: by path, what it answers at first, one request each.
        cut: by path, after how many bytes its first answers break off.
        headers: sent with every answer.
        hub: files of its data set owner/name, by path; None: it is no Hub.
        token: what asks for files of the Hub needs.
        asked: how often each path was asked for.
        url: of the server.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.sized = True
        self.statuses: dict[str, list[int]] = {}
        self.cut: dict[str, list[int]] = {}
        self.headers: dict[str, str] = {}
        self.hub: dict[str, bytes] | None = None
        self.token = ""
        self.asked: Counter[str] = Counter()
        self.url = ""


@contextmanager
def serving() -> Iterator[Site]:
    """A running server."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self, site)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    vars(server)["handle_error"] = lambda *_: None  # who breaks off is meant to
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()


def answer(request: BaseHTTPRequestHandler, site: Site) -> None:
    """One GET."""
    path, _, query = unquote(request.path).partition("?")
    site.asked[path] += 1
    data = site.files.get(path)
    if site.hub is not None:
        data = of_hub(site.hub, path, "recursive=true" in query.lower())
    status = site.statuses[path].pop(0) if site.statuses.get(path) else 404 if data is None else 200
    if site.token and request.headers.get("Authorization") != f"Bearer {site.token}":
        status = 401
    if status >= 300:
        data = b"no"
    assert data is not None
    asked = request.headers.get("Range")
    about = dict(site.headers)
    if status == 404 and site.hub is not None:
        about["X-Error-Code"] = "EntryNotFound"
    if status == 401:
        about["X-Error-Code"] = "RepoNotFound"
    if status == 200 and asked and site.ranges:
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, stop = int(first), int(last) + 1 if last else len(data)
        total = len(data) if site.sized else "*"
        about["Content-Range"] = f"bytes {start}-{min(stop, len(data)) - 1}/{total}"
        status, data = 206, data[start:stop]
    request.send_response(status)
    about |= {"Content-Length": str(len(data))} if site.sized else {"Connection": "close"}
    for name, value in about.items():
        request.send_header(name, value)
    request.end_headers()
    if status < 300 and site.cut.get(path):
        request.wfile.write(data[: site.cut[path].pop(0)])
        request.close_connection = True
    else:
        request.wfile.write(data)


def of_hub(files: dict[str, bytes], path: str, recursive: bool) -> bytes | None:
    """What the Hub answers, as far as huggingface_hub asks it for files and listings."""
    whole, api = "/datasets/owner/name/resolve/main/", "/api/datasets/owner/name"
    if path.startswith(whole):
        return files.get(path.removeprefix(whole))
    if path in (api, f"{api}/revision/main"):
        return json.dumps({"id": "owner/name", "sha": "0" * 40, "siblings": []}).encode()
    if not path.startswith(f"{api}/tree/main"):
        return None
    folder = path.removeprefix(f"{api}/tree/main").strip("/")
    start = f"{folder}/" if folder else ""
    inside = {name[len(start) :]: data for name, data in files.items() if name.startswith(start)}
    if not inside:
        return None
    parents = {"/".join(n.split("/")[:k]) for n in inside for k in range(1, n.count("/") + 1)}
    about: dict[str, object] = {"oid": "0" * 40, "size": 0}
    listed = [{**about, "type": "directory", "path": start + name} for name in parents]
    for name, data in inside.items():
        listed.append({**about, "type": "file", "path": start + name, "size": len(data)})
    shown = [one for one in listed if recursive or "/" not in str(one["path"])[len(start) :]]
    return json.dumps(shown).encode()
