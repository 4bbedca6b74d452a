"""Hostile requests, clients that go away, and more load than fits. The long version, against a
server as users start it, is `python benchmarks/serve_hostile.py`."""

import asyncio
import base64
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_files import encoded, jpeg, picture
from hostile import Attack, attack, many_parts, many_values, request, send
from served import JSON, Reply, Server, b64, form, make_bundle, serving
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ns_ray.errors import ImageError
from ns_ray.serving.batcher import Batcher
from ns_ray.serving.encodings import from_base64
from ns_ray.serving.requests import held, predict_question
from ns_ray.serving.settings import ServeConfig
from ns_ray.serving.totals import Totals


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder, max_bytes=2_000_000, max_images=16, max_pixels=4_000_000) as started:
        yield started


def test_hostile_requests_get_a_4xx_and_do_no_harm(server: Server) -> None:
    attacks = [attack(seed) for seed in range(400)]
    assert len({one.name for one in attacks}) == 9
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda one: send(server.port, one), attacks))
    bad = [
        (seed, one.name, status)
        for seed, (one, status) in enumerate(zip(attacks, statuses, strict=True))
        if (status is None and not one.ends) or (status or 0) >= 500
    ]
    assert bad == []
    found = Counter(statuses)
    assert found[200] > 0, "some mutations do no harm to an image"
    assert found[400] > 50
    assert server.post_image(jpeg(1)).status == 200
    assert server.replica is not None
    totals = server.replica.totals
    deadline = time.monotonic() + 20
    while totals.queue or totals.body_bytes:
        assert time.monotonic() < deadline, "something is still held"
        time.sleep(0.05)


def test_clients_that_go_away_do_not_hurt_those_that_stay(server: Server) -> None:
    whole = request(jpeg(1))

    def leave(i: int) -> None:
        with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
            connection.sendall(whole if i % 2 else whole[: len(whole) // 2])

    def stay(i: int) -> int:
        return server.post_image(jpeg(i)).status

    with ThreadPoolExecutor(32) as pool:
        gone = [pool.submit(leave, i) for i in range(250)]
        good = [pool.submit(stay, i) for i in range(64)]
        assert {future.result() for future in good} == {200}
        for future in gone:
            future.result()
    assert server.post_image(jpeg(2)).status == 200


def test_a_body_that_never_ends_is_a_408(folder: Path) -> None:
    with (
        serving(folder, deadline=0.5) as quick,
        socket.create_connection(("127.0.0.1", quick.port), 30) as connection,
    ):
        connection.sendall(request(b"", length=1000) + b"x")
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")
        assert quick.post_image(jpeg(1)).status == 200


@pytest.mark.parametrize("path", ["/predict", "/v2/models/classifier/infer"])
def test_json_full_of_values_is_refused_unparsed(
    server: Server, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    parsed: list[bytes] = []
    monkeypatch.setattr("ns_ray.serving.requests.from_json", parsed.append)
    for name, body in many_values(300_000).items():
        one = Attack(name, request(body, "application/json" if path == "/predict" else "", path))
        assert (name, send(server.port, one)) == (name, 413)
    assert parsed == []


def test_as_many_images_as_may_be_are_read_from_odd_json(server: Server) -> None:
    images = [b64(encoded(picture(i, 200, 150), "JPEG")) for i in range(16)]
    body = {"inputs": images, "parameters": {"top_k": 1}}
    text = json.dumps(body, indent=8).replace("/", "\\/").replace("\n", "\r\n").encode()
    reply = server.call("POST", "/predict", text, JSON)
    assert reply.status == 200
    assert [len(entry) for entry in reply.json] == [1] * 16


def test_a_form_of_many_parts_is_refused_unparsed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = form([jpeg(1)])[0].replace(b"\r\n\r\n", b"\r\n" + b"x: y\r\n" * 99 + b"\r\n", 1)
    kind = form([])[1]
    assert send(server.port, Attack("headers", request(headers, kind))) == 400
    parsed: list[bytes] = []
    monkeypatch.setattr("ns_ray.serving.requests.read_form", lambda body, *_: parsed.append(body))
    assert send(server.port, Attack("parts", request(*many_parts(300_000)))) == 413
    assert parsed == []


def asked(chunks: Iterable[bytes], kind: str, pause: float = 0, **settings: Any) -> int:
    """Status of a question whose body comes in these chunks: 200 when it can be read."""
    left = list(chunks)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def run() -> int:
        headers = [(b"content-type", kind.encode())]
        scope = {"type": "http", "method": "POST", "headers": headers, "query_string": b""}
        config = ServeConfig(**settings)
        try:
            async with held(Request(scope, receive), predict_question, config, Totals()):
                return 200
        except HTTPException as error:
            return error.status_code

    return asyncio.run(run())


@pytest.mark.parametrize("more", [0, 1])
def test_parts_are_counted_across_chunks(more: int) -> None:
    body, kind = form([b"x"] * 2 + [b"\r\n" * 50] * 2)
    part, closing = form([], top_k="1")[0].rsplit(b"------", 1)
    body = part * (16 + more) + body
    chunks = [body[i : i + 7] for i in range(0, len(body), 7)]
    assert closing
    assert asked(chunks, kind, max_images=4) == (413 if more else 200)


def test_a_body_that_comes_too_slowly_is_a_408(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ns_ray.serving.requests.GRACE", 0.2)
    with serving(folder, min_rate=50_000) as quick:
        with socket.create_connection(("127.0.0.1", quick.port), 20) as connection:
            connection.sendall(request(b"", length=1000))
            answer = connection.makefile("rb").read()  # to the end: it is closed
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"min_rate=50000" in answer
        assert quick.post_image(jpeg(1)).status == 200


def test_a_long_body_has_as_much_time_as_its_bytes_give_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ns_ray.serving.requests.GRACE", 0.3)
    chunks = [bytes(50_000)] * 8
    assert asked(chunks, "image/jpeg", pause=0.05, min_rate=10_000) == 200
    assert asked(chunks, "image/jpeg", pause=0.05, min_rate=10**9) == 408


def test_base64_is_the_same_in_pieces(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ns_ray.serving.encodings.PIECE", 7)
    assert server.post_json({"inputs": b64(jpeg(1))}).status == 200
    for bad in ("QUJDRA==QUJDRA==", "QUJDREVGRw=", "QUJDREVGR=GG", "QUJDREVG?"):
        assert server.post_json({"inputs": bad}).error.startswith("bad_base64")


@pytest.mark.parametrize(
    "written",
    [
        lambda data: "data:image/jpeg;base64," + b64(data),
        lambda data: "DATA:image/jpeg;name=a.jpg;BASE64,\n" + base64.encodebytes(data).decode(),
        lambda data: "data:;base64," + base64.urlsafe_b64encode(data).decode().rstrip("="),
        lambda data: base64.encodebytes(data).decode(),
        lambda data: base64.encodebytes(data).decode().replace("\n", "\r\n "),
        lambda data: b64(data) + "\n",
        lambda data: base64.urlsafe_b64encode(data).decode(),
        lambda data: b64(data).rstrip("="),
    ],
    ids=[
        "data URI",
        "odd data URI",
        "bare data URI",
        "lines",
        "CRLF lines",
        "newline",
        "URL-safe",
        "unpadded",
    ],
)
@pytest.mark.parametrize("piece", [5, 2**20])
def test_base64_as_people_write_it(
    server: Server, monkeypatch: pytest.MonkeyPatch, written: Callable[[bytes], str], piece: int
) -> None:
    monkeypatch.setattr("ns_ray.serving.encodings.PIECE", piece)
    for extra in range(3):  # every length of padding
        data = jpeg(1) + bytes(extra)
        assert from_base64(written(data)) == data
    assert server.post_json({"inputs": written(jpeg(1))}).status == 200


@pytest.mark.parametrize("text", ["data:;base64,?", "A", "AB=", "A===", "QUJ DRA==="])
def test_what_is_no_base64_is_told_what_is(server: Server, text: str) -> None:
    for inputs in (text, [text]):
        reply = server.post_json({"inputs": inputs})
        error = reply.error if isinstance(inputs, str) else reply.json[0]["error"]
        assert reply.status == (400 if isinstance(inputs, str) else 200)
        assert error.startswith("bad_base64: the text is not base64: A-Z")
    assert server.post_json({"inputs": ""}).status == 400


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("data:image/svg+xml,<svg/>", "a data URI must be in base64"),
        ("data:image/jpeg,abcd", "a data URI must be in base64"),
        ("data:", "a data URI must be in base64"),
        ("https://host/a.jpg", "no URL is fetched"),
        ("S3://bucket/a.jpg", "no URL is fetched"),
        ("file:///etc/passwd", "no URL is fetched"),
    ],
)
def test_what_stands_in_place_of_base64_is_named(server: Server, text: str, word: str) -> None:
    reply = server.post_json({"inputs": text})
    assert reply.status == 400
    assert word in reply.error
    assert "data:image/png;base64," in reply.error
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [text]}
    assert word in server.post_json({"inputs": [tensor]}, "/v2/models/classifier/infer").error


def test_more_load_than_fits_is_refused_at_once(folder: Path) -> None:
    with serving(folder, max_queue=4, max_images=4) as small:
        assert small.replica is not None
        assert small.replica.model is not None
        batcher = small.replica.model.batcher
        forward, busy = batcher._forward, threading.Event()

        def slow(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            busy.wait(20)
            return forward(pixels)

        batcher._forward = slow
        with ThreadPoolExecutor(80) as pool:
            replies = [pool.submit(small.post_image, jpeg(i)) for i in range(80)]
            refused: list[Future[Reply]] = []
            deadline = time.monotonic() + 60
            while len(refused) < 76:
                refused = [future for future in replies if future.done()]
                assert time.monotonic() < deadline, len(refused)
                time.sleep(0.02)
            busy.set()
            done = [future.result() for future in replies]
        codes = Counter(reply.status for reply in done)
        assert codes == {200: 4, 429: 76}
        for reply in done:
            if reply.status == 429:
                assert reply.error
                assert int(reply.headers["retry-after"]) >= 1
        assert small.post_image(jpeg(1)).status == 200


def test_an_answer_that_takes_too_long_is_a_504(folder: Path) -> None:
    with serving(folder, deadline=0.3) as quick:
        assert quick.replica is not None
        assert quick.replica.model is not None
        batcher = quick.replica.model.batcher
        forward, busy = batcher._forward, threading.Event()
        batcher._forward = lambda pixels: (busy.wait(20), forward(pixels))[1]
        reply = quick.post_image(jpeg(1))
        busy.set()
        assert reply.status == 504
        assert reply.error
        assert reply.headers["retry-after"]
        assert quick.post_image(jpeg(1)).status == 200


# ---------------------------------------------------------------------------------------- batcher


def pixels_of(data: bytes) -> np.ndarray[Any, Any]:
    if data == b"bad":
        raise ImageError("broken")
    return np.full((2, 2, 3), data[0], np.uint8)


def test_batches_form_while_the_model_is_busy_and_rows_go_to_their_askers() -> None:
    sizes: Counter[int] = Counter()
    go = threading.Event()

    def forward(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        go.wait(20)
        return pixels[:, 0, 0, :1].astype(np.float32)

    async def run() -> list[object]:
        batcher = Batcher(pixels_of, forward, decoders=2, max_batch=4, sizes=sizes)
        first = batcher.submit(bytes([200]))
        await asyncio.sleep(0.2)  # the model has it, alone
        others = [batcher.submit(bytes([i])) for i in range(10)]
        others.append(batcher.submit(b"bad"))
        await asyncio.sleep(0.3)
        go.set()
        found = await asyncio.gather(first, *others, return_exceptions=True)
        await batcher.close()
        assert batcher.waiting == 0
        return found

    first, *others, bad = asyncio.run(run())
    assert [float(np.asarray(row)[0]) for row in (first, *others)] == [200.0, *range(10)]
    assert isinstance(bad, ImageError)
    assert sizes == {1: 1, 4: 2, 2: 1}


def test_a_cancelled_image_is_skipped_and_the_thread_survives() -> None:
    seen: list[int] = []
    go = threading.Event()

    def forward(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        go.wait(20)
        seen.extend(int(p[0, 0, 0]) for p in pixels)
        if 66 in pixels:
            raise RuntimeError("the model failed")
        return pixels[:, 0, 0, :1].astype(np.float32)

    async def run() -> None:
        batcher = Batcher(pixels_of, forward, decoders=1, max_batch=1)
        first = batcher.submit(bytes([1]))
        await asyncio.sleep(0.2)
        gone = [batcher.submit(bytes([i])) for i in (2, 3)]
        kept = batcher.submit(bytes([4]))
        await asyncio.sleep(0.1)
        for future in [first, *gone]:  # one is inside the model already
            future.cancel()
        await asyncio.sleep(0)
        assert batcher.waiting == 1
        go.set()
        assert (await kept)[0] == 4
        with pytest.raises(RuntimeError, match="the model failed"):
            await batcher.submit(bytes([66]))
        assert (await batcher.submit(bytes([5])))[0] == 5
        await batcher.close()

    asyncio.run(run())
    assert seen == [1, 4, 66, 5]


def test_a_batch_takes_what_is_being_decoded_and_a_lone_image_waits_for_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ns_ray.serving.batcher.PATIENCE", 60.0)
    sizes: Counter[int] = Counter()

    def slowly(data: bytes) -> np.ndarray[Any, Any]:
        time.sleep(0 if data == b"bad" else 0.02 * data[0])
        return pixels_of(data)

    async def run() -> None:
        batcher = Batcher(slowly, lambda p: p[:, 0, 0, :1], decoders=4, max_batch=8, sizes=sizes)
        await asyncio.gather(*[batcher.submit(bytes([i])) for i in range(1, 5)])
        assert sizes == {4: 1}
        gone = batcher.submit(bytes([5]))
        bad = batcher.submit(b"bad")
        gone.cancel()
        with pytest.raises(ImageError):
            await bad
        await asyncio.sleep(0.3)
        assert (await asyncio.wait_for(batcher.submit(bytes([1])), 20))[0] == 1
        await batcher.close()

    asyncio.run(run())
    assert sizes == {4: 1, 1: 1}


def test_an_image_that_takes_long_to_decode_holds_nobody_up() -> None:
    late = threading.Event()

    def one_is_late(data: bytes) -> np.ndarray[Any, Any]:
        if data[0] == 99:
            late.wait(60)
        return pixels_of(data)

    async def run() -> None:
        batcher = Batcher(one_is_late, lambda p: p[:, 0, 0, :1], decoders=2, max_batch=8)
        slow, quick = batcher.submit(bytes([99])), batcher.submit(bytes([1]))
        assert (await asyncio.wait_for(quick, 20))[0] == 1
        assert not slow.done()
        late.set()
        assert (await slow)[0] == 99
        await batcher.close()

    asyncio.run(run())
