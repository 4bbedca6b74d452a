"""Requests that no honest client sends, from a seed; and one honest way to send them: a socket."""

import io
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from broken_files import bomb, jpeg, picture
from PIL import Image
from served import b64, form


@dataclass(frozen=True)
class Attack:
    """Bytes for a connection.

    Attributes:
        name: kind of attack.
        data: everything that is sent.
        ends: whether the sending side is closed afterwards, as a client that goes away does; else
            an answer must come.
    """

    name: str
    data: bytes
    ends: bool = False


def request(
    body: bytes,
    kind: str = "image/jpeg",
    path: str = "/predict",
    method: str = "POST",
    length: object = None,
    extra: str = "",
) -> bytes:
    """An HTTP request; `length` overrides the true Content-Length, "" leaves it out."""
    said = len(body) if length is None else length
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    head += f"Content-Type: {kind}\r\n" if kind else ""
    head += f"Content-Length: {said}\r\n" if said != "" else ""
    return (head + extra + "\r\n").encode("latin-1") + body


def _file(rng: random.Random) -> bytes:
    kind = rng.choice(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
    buffer = io.BytesIO()
    image = picture(rng.randrange(50), 64, 48)
    image.quantize(32).save(buffer, kind) if kind == "GIF" else image.save(buffer, kind)
    return buffer.getvalue()


def _mutated(rng: random.Random) -> Attack:
    data = bytearray(_file(rng))
    for _ in range(rng.choice([1, 3, 30, 300])):
        # Headers are where the interesting bytes are.
        at = rng.randrange(min(len(data), 200)) if rng.random() < 0.6 else rng.randrange(len(data))
        data[at] = rng.randrange(256)
    if rng.random() < 0.3:
        data = data[: rng.randrange(1, len(data))]
    return Attack("mutated", request(bytes(data)))


def _random(rng: random.Random) -> Attack:
    return Attack("random", request(rng.randbytes(rng.choice([0, 1, 10, 1000, 50_000]))))


def _bomb(rng: random.Random) -> Attack:
    choice = rng.randrange(3)
    if choice == 0:
        return Attack("bomb", request(bomb(9_000, 9_000), "image/png"))
    if choice == 1:  # a GIF that claims to be 65535 x 65535
        return Attack("bomb", request(b"GIF89a\xff\xff\xff\xff\xf7\x00\x00" + bytes(800)))
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(buffer, "TIFF")
    data = bytearray(buffer.getvalue())
    for at in range(len(data) - 12):
        tag, kind = bytes(data[at : at + 2]), bytes(data[at + 2 : at + 4])
        if tag in (b"\x00\x01", b"\x01\x01") and kind == b"\x04\x00":
            data[at + 8 : at + 12] = (60_000).to_bytes(4, "little")
    return Attack("bomb", request(bytes(data), "image/tiff"))


def _type(rng: random.Random) -> Attack:
    kind = rng.choice(
        [
            "",
            "text/html",
            "image/",
            "x",
            "multipart/form-data",
            "application/json; charset=x" * 40,
            "multipart/form-data; boundary=" + "b" * 300,
            "application/json",
            "video/mp4",
            ";;;",
            "/",
        ]
    )
    extra = rng.choice(
        [
            "",
            "Content-Encoding: gzip\r\n",
            "Content-Encoding: br\r\n",
            "Expect: 100-continue\r\n",
            f"X-Request-ID: {'i' * 500}\r\n",
            "Accept: nothing/at-all\r\n",
            "Cookie: a=b\r\n",
        ]
    )
    body = rng.choice([jpeg(1), b"", b"\x00" * 100, b"{}"])
    return Attack("type", request(body, kind, extra=extra))


def _length(rng: random.Random) -> Attack:
    body = jpeg(rng.randrange(9))
    lie = rng.choice(["-1", "x", "0x10", "1e9", str(10**30), str(2**31), str(10**9), "", "+5", " "])
    if lie.isdigit() or rng.random() < 0.3:
        said = (
            lie if lie.isdigit() and rng.random() < 0.7 else str(len(body) + rng.randrange(1, 99))
        )
        return Attack("length", request(body, length=said), ends=True)
    if rng.random() < 0.3:
        return Attack("length", request(body, length=rng.randrange(len(body))))
    return Attack("length", request(body, length=lie), ends=True)


def _chunked(rng: random.Random) -> Attack:
    chunks = rng.choice(
        [
            b"zz\r\nabc\r\n0\r\n\r\n",
            b"ffffffffffffffff\r\nabc",
            b"5\r\nabc\r\n0\r\n\r\n",
            b"-1\r\n",
            b"3\r\nabc\r\n" * 500 + b"0\r\n\r\n",
        ]
    )
    data = request(chunks, length="", extra="Transfer-Encoding: chunked\r\n")
    return Attack("chunked", data, ends=True)


def _json(rng: random.Random) -> Attack:
    path = rng.choice(["/predict", "/invocations", "/v2/models/classifier/infer"])
    image = b64(jpeg(1))
    body = rng.choice(
        [
            "[" * 100_000,
            '{"inputs":' * 20_000,
            '{"inputs": "%s"}' % ("A" * 400_000),
            '{{"inputs": ["{}"]}}'.format('","'.join(["A"] * 5000)),
            '{"inputs": 1e999999}',
            '{"inputs": NaN}',
            '{"inputs": "\ud800"}'.encode("utf-8", "surrogatepass").decode("latin-1"),
            '{"inputs": "\\ud800\\udfff\\u0000"}',
            '{"inputs": "http://127.0.0.1/", "parameters": null}',
            '{{"inputs": "{}", "parameters": {{"top_k": 1{}}}}}'.format(image, "0" * 5000),
            f'{{"inputs": "{image}", "parameters": {{"top_k": -1}}}}',
            f'{{"inputs": "{image}", "inputs": [], "x": {{}}}}',
            '{"inputs": [{"name": "image", "shape": [1e9], "datatype": "BYTES", "data": ["A"]}]}',
            '{"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [{}]}]}',
            '{"id": {}, "outputs": 5, "inputs": [null]}',
            '{"id": [], "outputs": [{"name": {}}], "parameters": [], "inputs": [[]]}',
            '"\\x"',
            "null",
            "",
        ]
    )
    return Attack("json", request(body.encode("latin-1"), "application/json", path))


def _form(rng: random.Random) -> Attack:
    body, kind = form([b"x"] * rng.choice([1, 1000]), **{"a" * rng.randrange(1, 2000): "b"})
    choice = rng.randrange(5)
    if choice == 0:
        body, kind = form([rng.randbytes(20)] * 1000)
    elif choice == 1:
        body = body[: rng.randrange(len(body))]
    elif choice == 2:
        body = bytes(b ^ (rng.random() < 0.02) for b in body)
    elif choice == 3:
        body = body.replace(b"Content-Disposition", b"X" * 20_000)
    return Attack("form", request(body, kind))


def _http(rng: random.Random) -> Attack:
    path = rng.choice(
        [
            "/../../etc/passwd",
            "/%00",
            "/predict?top_k=" + "9" * 3000,
            "/predict?top_k[]=1&;=&&",
            "//",
            "/v2/models/%2e%2e/infer",
            "/v2/models/" + "m" * 3000,
            "/predict/",
            "/docs?x=<script>",
            "/predict?top_k=%FF%FE",
            "/predict?" + "a&" * 2000,
            "/-/x",
            "http://other/predict",
        ]
    )
    method = rng.choice(
        ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "PATCH", "FOO"]
    )
    if rng.random() < 0.2:
        return Attack("http", rng.randbytes(200) + b"\r\n\r\n", ends=True)
    return Attack("http", request(jpeg(1), path=path, method=method))


def many_values(size: int) -> dict[str, bytes]:
    """JSON bodies of this many bytes that hold no image, by what they are full of: parsed, each of
    20 MB takes seconds and gigabytes."""
    filled = {
        "lists": (b'{"inputs": [', b"[],", b"[]]}"),
        "objects": (b'{"inputs": [', b"{},", b"{}]}"),
        "numbers": (b'{"inputs": [[', b"1,", b"1]]}"),
        "texts": (b'{"inputs": [', b'"",', b'""]}'),
        "keys": (b'{"inputs": "AA"', b',"a":0', b"}"),
        "depth": (b'{"x": ', b"[", b""),
        "deep objects": (b"", b'{"a":', b""),
        "escapes": (b'{"inputs": "', b"\\n", b'"}'),
    }
    return {
        name: first + more * ((size - len(first) - len(last)) // len(more)) + last
        for name, (first, more, last) in filled.items()
    }


def many_parts(size: int) -> tuple[bytes, str]:
    """A form of this many bytes full of tiny parts, and its content type."""
    body, kind = form([], top_k="1")
    at = body.rindex(b"\r\n", 0, -2) + 2
    part, end = body[:at], body[at:]
    return part * ((size - len(end)) // len(part)) + end, kind


KINDS: tuple[Callable[[random.Random], Attack], ...] = (
    *(_mutated,) * 6,
    *(_random, _bomb, _type, _length, _chunked, _json, _form, _http),
)


def attack(seed: int) -> Attack:
    """One hostile request."""
    rng = random.Random(seed)
    return rng.choice(KINDS)(rng)


def send(port: int, one: Attack, timeout: float = 60.0) -> int | None:
    """Send it; the status of the answer, or None when the server closed without one."""
    with socket.create_connection(("127.0.0.1", port), timeout) as connection:
        try:
            connection.sendall(one.data)
            if one.ends:
                connection.shutdown(socket.SHUT_WR)
        except OSError:  # refused in mid-body: the answer may still be there
            pass
        received = b""
        try:
            while b"\r\n" not in received or b" 100 " in received.split(b"\r\n", 1)[0]:
                part = connection.recv(65536)
                if not part:
                    break
                received += part
                if received.startswith(b"HTTP/1.1 100"):
                    received = received.partition(b"\r\n\r\n")[2]
        except ConnectionError:
            pass
    line = received.split(b"\r\n", 1)[0].split()
    return int(line[1]) if len(line) > 1 and line[0].startswith(b"HTTP/") else None
