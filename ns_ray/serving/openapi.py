"""What /openapi.json says. Bodies are read by hand (see requests.py), so they are described by
hand as well; a test calls every operation by this document."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

DESCRIPTION = (
    "Classifies images. POST an image file to /predict and get the most probable classes. "
    'Every error is {"error": "..."}. Where the server asks for an API key, send it as '
    "Authorization: Bearer KEY or X-API-Key: KEY."
)

SCHEMAS: dict[str, Any] = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string"}},
    },
    "Class": {
        "type": "object",
        "required": ["label", "score"],
        "properties": {
            "label": {"type": "string"},
            "score": {"type": "number", "minimum": 0, "maximum": 1},
        },
    },
    "Classes": {
        "type": "array",
        "description": "The most probable classes, highest score first.",
        "items": {"$ref": "#/components/schemas/Class"},
    },
    "Batch": {
        "type": "array",
        "description": "One entry per image, in the order of the request.",
        "items": {
            "anyOf": [
                {"$ref": "#/components/schemas/Classes"},
                {"$ref": "#/components/schemas/Error"},
            ]
        },
    },
    "Status": {
        "type": "object",
        "required": ["status"],
        "properties": {"status": {"const": "ok"}},
    },
    "Inputs": {
        "type": "object",
        "required": ["inputs"],
        "additionalProperties": False,
        "properties": {
            "inputs": {
                "description": "An image file in base64, or a list of them.",
                "anyOf": [
                    {"type": "string", "format": "byte"},
                    {"type": "array", "minItems": 1, "items": {"type": "string"}},
                ],
            },
            "parameters": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "top_k": {"type": "integer", "minimum": 1, "maximum": 999999999},
                    "function_to_apply": {"const": "softmax"},
                },
            },
        },
    },
    "Form": {
        "type": "object",
        "required": ["file"],
        "additionalProperties": False,
        "properties": {
            "file": {"type": "array", "items": {"type": "string", "format": "binary"}},
            "top_k": {"type": "integer", "minimum": 1, "maximum": 999999999},
        },
    },
    "InferRequest": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {
                "type": "object",
                "properties": {"top_k": {"type": "integer", "minimum": 1, "maximum": 999999999}},
            },
            "inputs": {
                "type": "array",
                "minItems": 1,
                "maxItems": 1,
                "items": {
                    "type": "object",
                    "required": ["name", "shape", "datatype", "data"],
                    "properties": {
                        "name": {"const": "image"},
                        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}},
                        "datatype": {"const": "BYTES"},
                        "data": {
                            "type": "array",
                            "description": "Image files in base64.",
                            "items": {"type": "string"},
                        },
                    },
                },
            },
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": {"enum": ["label", "score"]}},
                },
            },
        },
    },
    "InferResponse": {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": {"type": "object"}},
        },
    },
}

ERRORS = {
    400: "Not an image, or bad base64",
    401: "API key",
    404: "No such model",
    408: "The body came too slowly",
    413: "Too many bytes, pixels or images",
    415: "Content type",
    422: "Parameter",
    429: "The queue is full; see Retry-After",
    503: "The model is still loading; see Retry-After",
    504: "Deadline",
}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def failures(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Error responses of an operation."""
    return {code: _json(ERRORS[code], _ref("Error")) for code in codes}


def operation(
    name: str, summary: str, success: dict[str, Any], *codes: int, **extra: Any
) -> dict[str, Any]:
    """Arguments of `add_api_route` for a described operation."""
    return {
        "summary": summary,
        "operation_id": name,
        "response_model": None,
        "responses": {200: success, **failures(*codes)},
        "openapi_extra": extra,
    }


def health(path: str) -> dict[str, Any]:
    """A health check."""
    words = {"/livez": "The process runs", "/ping": "Ready (SageMaker's name for it)"}
    codes = () if path == "/livez" else (503,)
    return operation(
        path.strip("/"),
        words.get(path, "The model has answered a warm-up inference"),
        _json("Yes", _ref("Status")),
        *codes,
        security=[],
        tags=["health"],
    )


def predict(path: str) -> dict[str, Any]:
    """/predict, or an alias of it."""
    file = {"schema": {"type": "string", "format": "binary"}}
    return operation(
        path.strip("/"),
        "Classify one image, or several"
        + ("" if path == "/predict" else " (what SageMaker and MLflow call)"),
        _json(
            "One image: its classes. A batch: one entry per image.",
            {"anyOf": [_ref("Classes"), _ref("Batch")]},
        ),
        *(400, 401, 408, 413, 415, 422, 429, 503, 504),
        tags=["predict"],
        parameters=[
            {
                "name": "top_k",
                "in": "query",
                "description": "Classes in the answer.",
                "schema": {"type": "integer", "minimum": 1, "maximum": 999999999},
            }
        ],
        requestBody={
            "required": True,
            "content": {
                "image/*": file,
                "application/octet-stream": file,
                "multipart/form-data": {"schema": _ref("Form")},
                "application/json": {"schema": _ref("Inputs")},
            },
        },
    )


INFO = operation(
    "info",
    "The model, where it came from, and the limits of the server",
    _json("Facts", {"type": "object"}),
    *(401, 503),
    tags=["about"],
)

METRICS = operation(
    "metrics",
    "Counters in Prometheus' text form, summed over the replicas",
    {"description": "Metrics", "content": {"text/plain": {"schema": {"type": "string"}}}},
    401,
    tags=["about"],
)


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document."""
    made = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    components = made.setdefault("components", {})
    components["schemas"] = SCHEMAS
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    made["security"] = [{}, {"bearer": []}, {"header": []}]
    return made
