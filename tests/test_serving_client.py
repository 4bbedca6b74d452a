"""Types that a generator makes of the document, used against a server: what a client of one's own
rests on. That the server keeps to the document is in test_serving_page.py."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from broken_files import jpeg
from pydantic import ValidationError
from served import CLASSES, Server, b64, make_bundle, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(make_bundle(tmp_path_factory.mktemp("bundle")), keys=["key"]) as started:
        started.default_headers["X-API-Key"] = "key"
        yield started


@pytest.fixture(scope="module")
def types(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A module of pydantic models, made of what the server says at /openapi.json."""
    folder = tmp_path_factory.mktemp("client")
    (folder / "openapi.json").write_bytes(server.get("/openapi.json").body)
    command = [sys.executable, "-m", "datamodel_code_generator", "--input-file-type", "openapi"]
    command += ["--input", str(folder / "openapi.json"), "--output", str(folder / "types.py")]
    command += ["--output-model-type", "pydantic_v2.BaseModel"]
    command += ["--extra-fields", "forbid", "--target-python-version", "3.11"]
    subprocess.run(command, check=True, timeout=120)
    spec = importlib.util.spec_from_file_location("types_of_the_document", folder / "types.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its models look each other up
    spec.loader.exec_module(module)
    return module


def plain(model: Any) -> Any:
    return model.model_dump(mode="json", exclude_none=True)


def test_images_are_classified(server: Server, types: Any) -> None:
    asked = types.Inputs(inputs=b64(jpeg(1)), parameters=types.Parameters(top_k=2))
    classes = types.Classes.model_validate(server.post_json(plain(asked)).json).root
    assert [type(one) for one in classes] == [types.Class, types.Class]
    assert classes[0].label in CLASSES
    assert classes[0].score >= classes[1].score

    asked = types.Inputs(inputs=[b64(jpeg(1)), "no image!"])
    good, bad = types.Several.model_validate(server.post_json(plain(asked)).json).root
    assert isinstance(good, types.Classes)
    assert len(good.root) == 3
    assert isinstance(bad, types.Error)
    assert bad.error.startswith("bad_base64")


def test_every_error_is_one_type(server: Server, types: Any) -> None:
    for reply, word in (
        (server.post_image(b"no image"), "not_an_image"),
        (server.post_json({"input": "aa"}), "did you mean 'inputs'"),
        (server.call("PUT", "/predict", b"", {"X-API-Key": "other"}), "no valid API key"),
        (server.get("/v2/models/other"), "there is no model"),
    ):
        assert reply.status >= 400
        assert word in types.Error.model_validate(reply.json).error
    for wrong in ({"input": "aa"}, {"inputs": 5}, {"inputs": "aa", "parameters": {"top_k": 0}}):
        with pytest.raises(ValidationError):
            types.Inputs.model_validate(wrong)
        assert server.post_json(wrong).status == 422


def test_the_model_is_described(server: Server, types: Any) -> None:
    info = types.Info.model_validate(server.get("/info").json)
    assert info.labels == list(CLASSES)
    assert info.limits.images == 64
    assert types.Status.model_validate(server.get("/readyz").json).status == "ok"


def test_the_open_inference_protocol(server: Server, types: Any) -> None:
    image = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [b64(jpeg(1))]}
    asked = types.InferRequest(id="7", inputs=[image], parameters={"top_k": 1})
    reply = server.post_json(plain(asked), "/v2/models/classifier/infer")
    answer = types.InferResponse.model_validate(reply.json)
    assert (answer.id, answer.model_name) == ("7", "classifier")
    assert {output["name"] for output in answer.outputs} == {"label", "score"}
