"""Answers as clients see them: the classes of images, most probable first, in the form of /predict
or of the Open Inference Protocol; and errors, always `{"error": ...}`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from ns_ray.errors import ImageError
from ns_ray.serving.requests import Question

Found = np.ndarray[Any, Any] | ImageError
"""Probabilities of one image, float32 [classes], or why it has none."""


def failure(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """An error as a response."""
    return JSONResponse({"error": message}, status, headers)


def predict_answer(
    question: Question, found: Sequence[Found], classes: Sequence[str], version: str
) -> Response:
    """The answer of /predict: the classes of the only image, or one entry for each of several."""
    headers = {"X-Model-Version": version}
    if question.several:
        entries = [
            {"error": str(item)}
            if isinstance(item, ImageError)
            else rank(item, classes, question.top_k)
            for item in found
        ]
        return JSONResponse(entries, headers=headers)
    only = found[0]
    if isinstance(only, ImageError):
        return failure(_status(only), f"{only}{question.advice}", headers)
    return JSONResponse(rank(only, classes, question.top_k), headers=headers)


def infer_answer(
    question: Question, found: Sequence[Found], classes: Sequence[str], version: str
) -> Response:
    """The answer of the Open Inference Protocol, which has no place for the error of one image.

    Raises:
        HTTPException: 400 or 413 for the first image that cannot be used.
    """
    answers = []
    for i, item in enumerate(found):
        if isinstance(item, ImageError):
            raise HTTPException(_status(item), f"inputs[0].data[{i}]: {item}")
        answers.append(rank(item, classes, question.top_k))
    outputs = [
        {
            "name": name,
            "datatype": "BYTES" if name == "label" else "FP32",
            "shape": [len(answers), len(answers[0])],
            "data": [entry[name] for answer in answers for entry in answer],
        }
        for name in question.outputs
    ]
    named = {} if question.id is None else {"id": question.id}
    content = {"model_name": question.model, "model_version": version, **named, "outputs": outputs}
    return JSONResponse(content, headers={"X-Model-Version": version})


def rank(
    probs: np.ndarray[Any, Any], classes: Sequence[str], top_k: int
) -> list[dict[str, str | float]]:
    """[{"label": str, "score": float}, ...]: the `top_k` most probable classes, highest first; ties
    in the order of the classes."""
    top_k = min(top_k, len(classes))
    if top_k < len(classes) > 64:
        candidates = np.sort(np.argpartition(probs, -top_k)[-top_k:])
        order = candidates[np.argsort(-probs[candidates], kind="stable")]
    else:
        order = np.argsort(-probs, kind="stable")[:top_k]
    return [{"label": classes[i], "score": round(float(probs[i]), 6)} for i in order]


def _status(error: ImageError) -> int:
    return 413 if error.reason == "too_many_pixels" else 400
