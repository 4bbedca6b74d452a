"""The Open Inference Protocol (KServe v2) over REST: health, metadata, and `infer` with one BYTES
input of shape [N]: image files in base64, as the protocol writes bytes in JSON.

The protocol has no place for an error of one image, so a bad one fails the request.
"""

from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from ns_ray import __version__
from ns_ray.errors import ImageError
from ns_ray.serving import openapi
from ns_ray.serving.requests import decode_all, parse_json, read_body, too_many, top_k
from ns_ray.serving.responses import HttpError, answer, require_ready, within
from ns_ray.serving.service import Service

INPUT = "image"
OUTPUTS = ("label", "score")


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the protocol's paths."""

    def check(name: str) -> None:
        if name != service.config.model_name:
            raise HttpError(
                404, f"there is no model {name[:100]!r}; its name is {service.config.model_name}"
            )

    async def live() -> Response:
        return answer({"live": True})

    async def ready() -> Response:
        require_ready(service)
        return answer({"ready": True})

    async def server() -> Response:
        return answer({"name": "ns-ray", "version": __version__, "extensions": []})

    async def model_ready(model: str) -> Response:
        check(model)
        require_ready(service)
        return answer({"name": model, "ready": True})

    async def model_facts(model: str) -> Response:
        check(model)
        require_ready(service)
        return answer(
            {
                "name": model,
                "versions": [service.model.version],
                "platform": "ns-ray",
                "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
                "outputs": [
                    {"name": "label", "datatype": "BYTES", "shape": [-1, -1]},
                    {"name": "score", "datatype": "FP32", "shape": [-1, -1]},
                ],
            }
        )

    async def infer(model: str, request: Request) -> Response:
        check(model)
        require_ready(service)
        service.admit(1)
        body = await read_body(request, service)
        service.busy_bytes += len(body)
        try:
            asked = await parse_json(body)
            wanted = _outputs(asked)
            count = _top_k(asked, service)
            images = await decode_all(_data(asked, service), "inputs[0].data")
            version, answers = await within(service, service.classify(images, count))
        finally:
            service.busy_bytes -= len(body)
        for i, item in enumerate(answers):
            if isinstance(item, ImageError):
                status = 413 if item.reason == "too_many_pixels" else 400
                raise HttpError(status, f"inputs[0].data[{i}]: {item}")
        rows: list[Any] = answers
        width = len(rows[0])
        outputs = [
            {
                "name": name,
                "datatype": "BYTES" if name == "label" else "FP32",
                "shape": [len(rows), width],
                "data": [entry[name] for row in rows for entry in row],
            }
            for name in wanted
        ]
        reply: dict[str, Any] = {"model_name": model, "model_version": version}
        if isinstance(asked.get("id"), str):
            reply["id"] = asked["id"]
        reply["outputs"] = outputs
        return answer(reply, 200, {"X-Model-Version": version})

    _add(app, live, ready, server, model_ready, model_facts, infer)


def _add(
    app: FastAPI, live: Any, ready: Any, server: Any, facts_ready: Any, facts: Any, infer: Any
) -> None:
    yes = {"description": "Yes", "content": {"application/json": {"schema": {"type": "object"}}}}
    tags = {"tags": ["open inference protocol"]}
    for path, function, words, codes, extra in (
        ("/v2/health/live", live, "The process runs", (), {"security": []}),
        ("/v2/health/ready", ready, "The model is ready", (503,), {"security": []}),
        ("/v2", server, "The server", (401,), {}),
        ("/v2/models/{model}/ready", facts_ready, "The model is ready", (401, 404, 503), {}),
        ("/v2/models/{model}", facts, "Inputs and outputs", (401, 404, 503), {}),
    ):
        name = path.strip("/").replace("/", "_").replace("{model}", "model")
        described = openapi.operation(name, words, yes, *codes, **tags, **extra)
        app.add_api_route(path, function, methods=["GET"], **described)
    described = openapi.operation(
        "v2_infer",
        "Classify images in base64",
        {
            "description": "Labels and scores, both of shape [N, top_k]",
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/InferResponse"}}
            },
        },
        *(400, 401, 404, 408, 413, 415, 422, 429, 503, 504),
        **tags,
        requestBody={
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}}
            },
        },
    )
    app.add_api_route("/v2/models/{model}/infer", infer, methods=["POST"], **described)


def _outputs(asked: dict[str, Any]) -> list[str]:
    """Names of the outputs that a request wants: all of them by default."""
    wanted = asked.get("outputs")
    if wanted is None or wanted == []:
        return list(OUTPUTS)
    if not isinstance(wanted, list) or not all(isinstance(item, dict) for item in wanted):
        raise HttpError(422, "outputs must be a list of objects with a name")
    names = [item.get("name") for item in wanted]
    for name in names:
        if name not in OUTPUTS:
            raise HttpError(422, f"unknown output {str(name)[:100]!r}; known: {', '.join(OUTPUTS)}")
    return [str(name) for name in names]


def _top_k(asked: dict[str, Any], service: Service) -> int:
    parameters = asked.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise HttpError(422, "parameters must be an object")
    return top_k(parameters.get("top_k"), service.config)


def _data(asked: dict[str, Any], service: Service) -> list[Any]:
    """The base64 texts of a request's one input."""
    inputs = asked.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise HttpError(422, f"inputs must be a list with one input, {INPUT!r}")
    tensor = inputs[0]
    if tensor.get("name") != INPUT:
        raise HttpError(422, f"unknown input {str(tensor.get('name'))[:100]!r}; known: {INPUT}")
    if tensor.get("datatype") != "BYTES":
        raise HttpError(
            422, f"datatype {str(tensor.get('datatype'))[:50]!r} of {INPUT!r} must be BYTES"
        )
    data = tensor.get("data")
    if not isinstance(data, list) or not data:
        raise HttpError(422, "inputs[0].data must be a list of base64 strings, at least one")
    too_many(len(data), service.config)
    if tensor.get("shape") not in ([len(data)], [len(data), 1]):
        raise HttpError(
            422,
            f"inputs[0].shape must be [{len(data)}], the number of its data, "
            f"not {str(tensor.get('shape'))[:100]}",
        )
    return data
