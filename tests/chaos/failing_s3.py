"""An S3 server that is slow and fails: a proxy before moto's, which answers some requests with 503,
ends some connections early, and is away at times."""

import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BUSY, DROPPED, CUT = 0.03, 0.02, 0.02
"""Shares of requests that get 503 SlowDown, no answer, and half an answer."""
SLOWEST = 0.03
"""Seconds that a request waits at most."""
SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)
HOP = {"connection", "transfer-encoding", "content-length", "server", "date"}
"""Headers that a proxy makes itself."""


class Failing:
    """What a proxy does to requests.

    Attributes:
        port: of the proxy.
        counts: of what it has done: ok, busy, dropped, cut, away.
    """

    def __init__(self, port: int, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self._chance = random.Random(seed)
        self._away_until = 0.0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, port))
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])

    def be_away(self, seconds: float) -> None:
        """End every connection at once for so long."""
        self._away_until = time.monotonic() + seconds

    def fate(self) -> tuple[str, float]:
        """What happens to the next request, and after how many seconds."""
        with self._lock:
            drawn, wait = self._chance.random(), self._chance.uniform(0, SLOWEST)
            told = next(
                (
                    name
                    for name, limit in (
                        ("busy", BUSY),
                        ("dropped", BUSY + DROPPED),
                        ("cut", BUSY + DROPPED + CUT),
                    )
                    if drawn < limit
                ),
                "ok",
            )
            if time.monotonic() < self._away_until:
                told, wait = "away", 0.0
            self.counts[told] += 1
            return told, wait


def _handler(failing: Failing, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

        def _pass(self) -> None:
            body = self._body()
            told, wait = failing.fate()
            time.sleep(wait)
            if told in ("dropped", "away"):
                self.close_connection = True
                return
            if told == "busy":
                self._answer(503, {"Content-Type": "application/xml"}, SLOW_DOWN)
                return
            inner = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            inner.request(self.command, self.path, body, dict(self.headers))
            reply = inner.getresponse()
            data = reply.read()
            headers = {k: v for k, v in reply.getheaders() if k.lower() not in HOP}
            length = reply.getheader("Content-Length") if self.command == "HEAD" else None
            self._answer(reply.status, headers, data, length, cut=told == "cut")
            inner.close()

        def _body(self) -> bytes:
            """As it came: chunks, which S3's clients sign, stay chunks."""
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while True:
                head = self.rfile.readline()
                size = int(head.partition(b";")[0], 16)
                body += head + (self.rfile.read(size + 2) if size else b"")
                if not size:
                    break
            while (line := self.rfile.readline()) not in (b"\r\n", b""):
                body += line
            return body + b"\r\n"

        def _answer(
            self,
            status: int,
            headers: dict[str, str],
            data: bytes,
            length: str | None = None,
            *,
            cut: bool = False,
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", length or str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if cut else data)
            self.close_connection = self.close_connection or cut

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815

    return Handler


@contextmanager
def failing(port: int, seed: int) -> Iterator[Failing]:
    """A proxy before the server at a port."""
    made = Failing(port, seed)
    thread = threading.Thread(target=made._server.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made._server.shutdown()
        made._server.server_close()
