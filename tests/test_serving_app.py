"""The HTTP contract: what clients send, and what they get back."""

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_files import bomb, broken, encoded, jpeg, odd_but_good, picture
from served import CLASSES, JSON, Server, b64, form, make_bundle, serving

from ns_ray.config.labeling import PredictConfig
from ns_ray.config.validation import validate
from ns_ray.data.images import encode_png
from ns_ray.errors import ConfigError
from ns_ray.model.predictor import Predictor
from ns_ray.serving.settings import ServeConfig

VERSION = "tiny-gen-01-000100010001"
KEYS = ("first-key", "second-key")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder, max_bytes=200_000, max_pixels=1_000_000, max_images=8) as started:
        yield started


@pytest.fixture(scope="module")
def locked(folder: Path) -> Iterator[Server]:
    with serving(folder, keys=KEYS) as started:
        yield started


def check_classes(answer: Any, count: int = 3) -> None:
    assert [set(entry) for entry in answer] == [{"label", "score"}] * count
    scores = [entry["score"] for entry in answer]
    assert scores == sorted(scores, reverse=True)
    assert {entry["label"] for entry in answer} <= set(CLASSES)


def assert_same(answers: Any, others: Any) -> None:
    """The same classes in the same order, scores equal but for the arithmetic of batches."""
    for answer, other in zip(answers, others, strict=True):
        assert [entry["label"] for entry in answer] == [entry["label"] for entry in other]
        first, second = ([entry["score"] for entry in a] for a in (answer, other))
        np.testing.assert_allclose(first, second, atol=1e-4)


@pytest.mark.parametrize("kind", ["image/jpeg", "application/octet-stream", "image/x-anything", ""])
def test_the_body_is_the_file(server: Server, kind: str) -> None:
    reply = server.post_image(jpeg(1), kind=kind)
    assert reply.status == 200
    check_classes(reply.json)
    assert reply.headers["x-model-version"] == VERSION


def test_the_answer_is_the_models(server: Server, folder: Path) -> None:
    exact = PredictConfig(runtime="torch", precision="fp32")
    predictor = Predictor(str(folder), config=exact, device="cpu", threads=1)
    images = [jpeg(seed) for seed in range(12)]
    expected = predictor.predict(images)
    replies = [server.post_image(image).json for image in images]
    batch = (
        server.post_form(images[:8]).json
        + server.post_json({"inputs": [b64(image) for image in images[8:]]}).json
    )
    for one, other, probs in zip(replies, batch, expected, strict=True):
        assert isinstance(probs, np.ndarray)
        for answer in (one, other):
            found = {entry["label"]: entry["score"] for entry in answer}
            np.testing.assert_allclose([found[c] for c in CLASSES], probs, atol=1e-4)


@pytest.mark.parametrize("name", list(odd_but_good()))
def test_awkward_but_good_files(server: Server, name: str) -> None:
    check_classes(server.post_image(odd_but_good()[name]).json)


@pytest.mark.parametrize(
    ("query", "count"), [("", 3), ("?top_k=1", 1), ("?top_k=2", 2), ("?top_k=50", 3)]
)
def test_top_k(server: Server, query: str, count: int) -> None:
    check_classes(server.post_image(jpeg(1), f"/predict{query}").json, count)
    check_classes(server.post_form([jpeg(1)], f"/predict{query}").json, count)
    check_classes(server.post_json({"inputs": b64(jpeg(1))}, f"/predict{query}").json, count)


def test_top_k_inside_the_body(server: Server) -> None:
    body = {"inputs": b64(jpeg(1)), "parameters": {"top_k": 1, "function_to_apply": "softmax"}}
    check_classes(server.post_json(body).json, 1)
    check_classes(server.post_form([jpeg(1)], top_k="2").json, 2)


@pytest.mark.parametrize("preamble", ["\r\n", "\n", "Read it - by MIME.\r\n", "a\r\nb\n", "--\r\n"])
def test_a_form_may_have_text_before_and_after_its_parts(server: Server, preamble: str) -> None:
    """RFC 2046, 5.1.1: a preamble and an epilogue, which are ignored. Lines may end as on Unix."""
    body, kind = form([jpeg(1), jpeg(2)], top_k="1")
    body = preamble.encode() + body + b"\r\nand this is the end"
    reply = server.call("POST", "/predict", body, {"Content-Type": kind})
    assert reply.status == 200
    assert_same(reply.json, server.post_form([jpeg(1), jpeg(2)], top_k="1").json)


@pytest.mark.parametrize("wrong", ["0", "-1", "x", "1.5", "", "1e3", "%F0", "³"])
def test_a_wrong_top_k_is_a_422(server: Server, wrong: str) -> None:
    path = f"/predict?top_k={wrong if wrong != '³' else '%C2%B3'}"
    reply = server.post_image(jpeg(1), path)
    assert reply.status == 422
    assert "top_k" in reply.error


def test_a_batch_keeps_its_order_and_survives_a_bad_image(server: Server) -> None:
    bad = broken()["cut.jpg"][0]
    alone = [server.post_image(jpeg(seed)).json for seed in (1, 2)]
    for reply in (
        server.post_form([jpeg(1), bad, jpeg(2)]),
        server.post_json({"inputs": [b64(jpeg(1)), b64(bad), b64(jpeg(2))]}),
        server.post_json({"inputs": [b64(jpeg(1)), "no base64!", b64(jpeg(2))]}),
    ):
        assert reply.status == 200
        first, second, third = reply.json
        assert_same([first, third], alone)
        assert list(second) == ["error"]
        assert reply.headers["x-model-version"] == VERSION


def test_a_list_of_one_is_a_batch_and_a_form_of_one_is_not(server: Server) -> None:
    assert len(server.post_json({"inputs": [b64(jpeg(1))]}).json[0]) == 3
    check_classes(server.post_form([jpeg(1)]).json)


@pytest.mark.parametrize("name", list(broken()))
def test_a_bad_image_is_a_4xx_that_says_why(server: Server, name: str) -> None:
    data, reason = broken()[name]
    reply = server.post_image(data)
    assert reply.status == (413 if reason == "too_many_pixels" or len(data) > 200_000 else 400)
    if data and len(data) <= 200_000:
        assert reply.error.startswith(reason)


def test_too_many_pixels_bytes_and_images_are_413s(server: Server) -> None:
    large = encoded(picture(1, 1200, 900), "JPEG", quality=20)
    assert server.post_image(large).status == 413
    assert server.post_image(bomb(2000, 2000)).status == 413
    assert server.post_image(bytes(200_001)).status == 413
    assert server.post_form([jpeg(1)] * 9).status == 413
    assert server.post_json({"inputs": [b64(jpeg(1))] * 9}).status == 413
    batch = server.post_form([jpeg(1), large])
    assert batch.status == 200
    assert "too_many_pixels" in batch.json[1]["error"]


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("text/plain", b"hello", 415),
        ("application/x-www-form-urlencoded", b"a=b", 400),
        ("application/json", b"{", 400),
        ("application/json", b"[" * 500, 400),
        ("application/json", b"[" * 50_000, 413),
        ("application/json", b'{"a":' * 500, 400),
        ("application/json", b'{"a":' * 30_000, 413),
        ("application/json", b"[]", 400),
        ("application/json", b"\xff\xfe", 400),
        ("application/json", b'{"inputs": "%%%"}', 400),
        ("application/json", b'{"inputs": ""}', 400),
        ("application/json", b"{}", 422),
        ("application/json", b'{"inputs": []}', 422),
        ("application/json", b'{"inputs": [1]}', 422),
        ("application/json", b'{"inputs": {"url": "http://localhost/x.jpg"}}', 422),
        ("application/json", b'{"input": "aa"}', 422),
        ("application/json", b'{"inputs": "aa", "parameters": []}', 422),
        ("application/json", b'{"inputs": "aa", "parameters": {"topk": 1}}', 422),
        ("application/json", b'{"inputs": "aa", "parameters": {"top_k": true}}', 422),
        ("application/json", b'{"inputs": "aa", "parameters": {"function_to_apply": "x"}}', 422),
        ("multipart/form-data", b"x", 400),
        ("multipart/form-data; boundary=x", b"no form", 400),
        ("multipart/form-data; boundary=x", b"", 400),
        ("multipart/form-data; boundary=x", form([jpeg(1)])[0], 400),
        ("multipart/form-data; boundary=----ns-ray-test", form([jpeg(1)])[0][:-30], 400),
        ("multipart/form-data; boundary=----ns-ray-test", form([])[0], 422),
        ("multipart/form-data; boundary=----ns-ray-test", form([], top_k="1")[0], 422),
        ("multipart/form-data; boundary=----ns-ray-test", form([jpeg(1)], url="x")[0], 422),
        ("multipart/form-data; boundary=----ns-ray-test", form([jpeg(1)], top_k="x")[0], 422),
    ],
)
def test_wrong_bodies(server: Server, kind: str, body: bytes, status: int) -> None:
    reply = server.call("POST", "/predict", body, {"Content-Type": kind})
    assert (reply.status, bool(reply.error)) == (status, True)


def test_an_unknown_key_suggests_the_right_one(server: Server) -> None:
    assert "did you mean 'inputs'" in server.post_json({"imputs": "x"}).error


def test_json_may_begin_with_a_byte_order_mark(server: Server) -> None:
    """As PowerShell writes it."""
    body = codecs.BOM_UTF8 + json.dumps({"inputs": b64(jpeg(1))}).encode()
    check_classes(server.call("POST", "/predict", body, JSON).json)


def test_a_compressed_body_is_refused(server: Server) -> None:
    headers = {"Content-Type": "image/jpeg", "Content-Encoding": "gzip"}
    assert server.call("POST", "/predict", jpeg(1), headers).status == 415


def test_unknown_paths_and_methods(server: Server) -> None:
    assert server.get("/nothing").status == 404
    assert server.get("/nothing").error
    reply = server.get("/predict")
    assert reply.status == 405
    assert reply.error
    assert set(reply.headers["allow"].split(", ")) == {"POST", "PUT"}


def test_a_request_id_is_echoed_or_made(server: Server) -> None:
    assert server.get("/livez", **{"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = server.get("/livez").headers["x-request-id"]
    assert len(made) >= 16
    assert (
        server.get("/livez", **{"X-Request-ID": "a b" * 99}).headers["x-request-id"] != "a b" * 99
    )


def test_health_before_and_after_the_model_is_there(server: Server) -> None:
    with serving(None) as loading:
        assert loading.get("/livez").status == 200
        assert loading.get("/v2/health/live").status == 200
        for path in ("/readyz", "/healthz", "/ping", "/v2/health/ready", "/info"):
            reply = loading.get(path)
            assert reply.status == 503
            assert reply.error
            assert int(reply.headers["retry-after"]) > 0
        assert loading.post_image(jpeg(1)).status == 503
        assert loading.get("/metrics").status == 200
    for path in ("/livez", "/readyz", "/healthz", "/ping", "/v2/health/ready"):
        assert server.get(path).status == 200


def test_info_says_what_the_model_is(server: Server) -> None:
    info = server.get("/info").json
    assert info["version"] == VERSION
    assert info["labels"] == list(CLASSES)
    assert info["origin"] == {
        "run": "tiny",
        "generation": 1,
        "role": "student",
        "git_sha": info["origin"]["git_sha"],
    }
    assert info["input_size"] == 32
    assert info["limits"]["bytes"] == 200_000


def test_the_aliases_answer_as_the_originals(server: Server) -> None:
    assert_same(
        [server.post_image(jpeg(3), "/invocations").json], [server.post_image(jpeg(3)).json]
    )
    assert server.post_image(jpeg(3), "/invocations", "application/x-image").status == 200


def test_open_inference_protocol(server: Server) -> None:
    images = [jpeg(1), jpeg(2)]
    plain = [server.post_image(image).json for image in images]
    tensor = {"name": "image", "shape": [2], "datatype": "BYTES", "data": [b64(i) for i in images]}
    path = "/v2/models/classifier/infer"
    reply = server.post_json({"id": "7", "inputs": [tensor]}, path)
    assert reply.status == 200
    answer = reply.json
    assert (answer["id"], answer["model_name"], answer["model_version"]) == (
        "7",
        "classifier",
        VERSION,
    )
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert outputs["label"]["shape"] == outputs["score"]["shape"] == [2, 3]
    assert outputs["label"]["data"] == [entry["label"] for row in plain for entry in row]
    scores = [entry["score"] for row in plain for entry in row]
    np.testing.assert_allclose(outputs["score"]["data"], scores, atol=1e-4)

    rows = {"shape": [2, 1], "data": [[b64(image)] for image in images]}
    nested = server.post_json({"inputs": [tensor | rows]}, path).json
    assert nested["outputs"][0] == answer["outputs"][0]

    only = {"inputs": [tensor], "outputs": [{"name": "label"}], "parameters": {"top_k": 1}}
    (output,) = server.post_json(only, path).json["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("label", "BYTES", [2, 1])

    facts = server.get("/v2/models/classifier").json
    assert facts["versions"] == [VERSION]
    assert facts["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert server.get("/v2/models/classifier/ready").json == {"name": "classifier", "ready": True}
    assert server.get("/v2").json["name"] == "ns-ray"
    for other in ("/v2/models/x", "/v2/models/x/ready"):
        assert server.get(other).status == 404
    assert server.post_json({}, "/v2/models/x/infer").status == 404
    for change, status in (
        ({"data": [b64(jpeg(1)), b64(broken()["cut.jpg"][0])]}, 400),
        ({"data": ["?", "?"]}, 400),
        ({"shape": [3]}, 422),
        ({"datatype": "FP32"}, 422),
        ({"name": "x"}, 422),
        ({"data": []}, 422),
        ({"data": "x"}, 422),
    ):
        assert server.post_json({"inputs": [tensor | change]}, path).status == status
    wrong: dict[str, Any]
    for wrong in (
        {},
        {"inputs": []},
        {"inputs": [1]},
        {"inputs": [tensor], "outputs": [{"name": "x"}]},
    ):
        assert server.post_json(wrong, path).status == 422


def binary(images: Sequence[bytes], **change: Any) -> tuple[bytes, dict[str, str]]:
    """A request with binary tensors, as Triton's clients send it."""
    data = b"".join(len(image).to_bytes(4, "little") + image for image in images)
    tensor: dict[str, Any] = {"name": "image", "shape": [len(images)], "datatype": "BYTES"}
    tensor["parameters"] = {"binary_data_size": len(data)}
    asked = {"inputs": [tensor | change], "parameters": {"binary_data_output": True}}
    text = json.dumps(asked).encode()
    return text + data, {"Inference-Header-Content-Length": str(len(text))}


def test_binary_tensors_of_triton_are_read(server: Server) -> None:
    path, images = "/v2/models/classifier/infer", [jpeg(1), jpeg(2)]
    assert server.get("/v2").json["extensions"] == ["binary_tensor_data"]
    body, headers = binary(images)
    reply = server.call("POST", path, body, headers)
    assert reply.status == 200
    outputs = {output["name"]: output for output in reply.json["outputs"]}
    plain = [entry["label"] for image in images for entry in server.post_image(image).json]
    assert outputs["label"]["data"] == plain
    assert outputs["label"]["shape"] == [2, 3]

    for wrong, status in (
        ((body[:-1], headers), 400),
        ((body + b"x", headers), 400),
        ((body, {"Inference-Header-Content-Length": "x"}), 400),
        ((body, {"Inference-Header-Content-Length": "9" * 30}), 400),
        ((body, {"Inference-Header-Content-Length": "0"}), 400),
        (binary(images, parameters={"binary_data_size": 3}), 400),
        (binary(images, parameters=[]), 422),
        (binary(images, shape=[3]), 422),
        (binary([]), 422),
        (binary([b"x"] * 65), 413),
        ((b" " * 300_000, {"Inference-Header-Content-Length": "300000"}), 413),
    ):
        assert server.call("POST", path, *wrong).status == status, wrong[1]


def test_curl_without_a_type_is_taken_for_an_image(server: Server) -> None:
    reply = server.post_image(jpeg(1), kind="application/x-www-form-urlencoded")
    assert reply.json == server.post_image(jpeg(1)).json


def test_what_curl_puts_is_answered(server: Server) -> None:
    reply = server.call("PUT", "/predict?top_k=2", jpeg(1), {"Expect": "100-continue"})
    assert reply.status == 200
    assert reply.json == server.post_image(jpeg(1), "/predict?top_k=2").json
    assert server.call("PUT", "/predict", jpeg(1), {"Content-Type": "image/jpeg"}).status == 200
    assert "not_an_image" in server.call("PUT", "/predict", b"a text, with a zero: \0").error
    assert "empty" in server.call("PUT", "/predict", b"").error
    assert server.call("PUT", "/predict/a.jpg", jpeg(1)).status == 404


@pytest.mark.parametrize(
    "body",
    [
        jpeg(1).translate(None, b"\0\r\n"),  # what is left of it with `curl -d @photo.jpg`
        b'{"inputs": "aa"}',
        b"file=photo.jpg",
    ],
    ids=["-d of a file", "JSON", "form"],
)
def test_a_text_that_says_it_is_a_form_gets_advice(server: Server, body: bytes) -> None:
    kind = "application/x-www-form-urlencoded"
    reply = server.post_image(body, kind=kind)
    assert reply.status == 400
    for word in ("--data-binary", "-T", "'Content-Type: application/json'"):
        assert word in reply.error
    assert "curl" not in server.post_image(body).error
    assert "curl" not in server.post_image(jpeg(1)[:500], kind=kind).error
    text_but_an_image = b"P2 4 4 255" + b" 200" * 16
    assert server.post_image(text_but_an_image, kind=kind).status == 200


def test_pages_of_other_origins_may_ask_where_it_is_set(folder: Path) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "X-API-Key"}
    with serving(folder, keys=["secret"], allow_origins=["https://shop.example"]) as shop:
        for origin, allowed in (("https://shop.example", True), ("https://other.example", False)):
            told = shop.call("OPTIONS", "/predict", None, {"Origin": origin, **asks})
            answer = shop.call(
                "POST", "/predict", jpeg(1), {"Origin": origin, "X-API-Key": "secret"}
            )
            for reply in (told, answer):
                found = reply.headers.get("access-control-allow-origin")
                assert found == (origin if allowed else None)
            assert answer.status == 200
        refused = shop.call("POST", "/predict", jpeg(1), {"Origin": "https://shop.example"})
        assert refused.status == 401
        assert refused.headers["access-control-allow-origin"] == "https://shop.example"


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        (["https://shop.example/"], "https://shop.example"),
        ("HTTPS://Shop.example:443", "https://shop.example"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("http://shop.example:1080", "http://shop.example:1080"),
        ("*", "*"),
    ],
)
def test_origins_are_compared_as_browsers_send_them(written: Any, sent: str) -> None:
    assert validate(ServeConfig, {"allow_origins": written}).allow_origins == (sent,)


@pytest.mark.parametrize(
    "wrong",
    [
        "shop.example",
        "https://shop.example/path",
        "https://*.example",
        "null",
        "ftp://a",
        "",
        "//a",
    ],
)
def test_what_no_browser_sends_is_no_origin(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"allow_origins.*such as https://shop\.example"):
        validate(ServeConfig, {"allow_origins": [wrong]})


def test_without_a_key_only_health_and_pages_answer(locked: Server) -> None:
    open_paths = ("/", "/docs", "/openapi.json", "/livez", "/readyz", "/healthz", "/ping")
    for path in (*open_paths, "/v2/health/live", "/v2/health/ready"):
        assert locked.get(path).status == 200
    for path in ("/info", "/metrics", "/v2", "/v2/models/classifier", "/nothing"):
        reply = locked.get(path)
        assert reply.status == 401
        assert reply.error
        assert reply.headers["www-authenticate"] == "Bearer"
    assert locked.post_image(jpeg(1)).status == 401
    assert locked.post_image(jpeg(1), "/invocations").status == 401


@pytest.mark.parametrize("key", KEYS)
def test_every_key_opens_in_both_headers(locked: Server, key: str) -> None:
    assert locked.get("/info", Authorization=f"Bearer {key}").status == 200
    assert locked.get("/info", Authorization=f"bearer {key}").status == 200
    assert locked.get("/info", **{"X-API-Key": key}).status == 200
    for wrong in (key[:-1], key + "x", "", key.upper(), "k\xe9y"):
        assert locked.get("/info", **{"X-API-Key": wrong}).status == 401
    assert locked.get("/info", Authorization=f"Basic {key}").status == 401


def test_metrics_count_what_happened(folder: Path) -> None:
    with serving(folder) as fresh:
        fresh.post_image(jpeg(1))
        fresh.post_form([jpeg(1), jpeg(2), broken()["cut.jpg"][0]])
        fresh.post_image(b"no image")
        fresh.get("/not-there")
        reply = fresh.get("/metrics")
        assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
        text = reply.body.decode()
    for line in (
        'ns_ray_requests_total{code="200",path="/predict"} 2.0',
        'ns_ray_requests_total{code="400",path="/predict"} 1.0',
        'ns_ray_requests_total{code="404",path="other"} 1.0',
        'ns_ray_images_total{outcome="ok"} 3.0',
        'ns_ray_images_total{outcome="truncated"} 1.0',
        'ns_ray_images_total{outcome="not_an_image"} 1.0',
        "ns_ray_request_latency_seconds_count 4.0",
        "ns_ray_batch_size_sum 3.0",
        "ns_ray_queue_images 0.0",
        f'ns_ray_model_version{{version="{VERSION}"}} 1.0',
    ):
        assert line in text.splitlines(), text
    assert re.search(r'^ns_ray_prediction_total\{label="\w+"\} \d', text, flags=re.M)


def test_the_pages_load_nothing_from_elsewhere(server: Server) -> None:
    for path in ("/", "/docs"):
        page = server.get(path)
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert not re.search(rb"(src|href)\s*=\s*[\"']?(https?:)?//", page.body)


def test_one_class_of_a_thousand(tmp_path: Path) -> None:
    from ns_ray.serving.responses import rank

    probs = np.zeros(1000, np.float32)
    probs[[7, 500, 999]] = 0.2, 0.5, 0.3
    names = [str(i) for i in range(1000)]
    assert [entry["label"] for entry in rank(probs, names, 3)] == ["500", "999", "7"]
    assert len(rank(probs, names, 5000)) == 1000


def test_gray_16_bit_goes_through(server: Server) -> None:
    pixels = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    check_classes(server.post_image(encode_png(pixels), kind="image/png").json)


def test_json_headers_are_json(server: Server) -> None:
    assert server.get("/info").headers["content-type"] == JSON["Content-Type"]
