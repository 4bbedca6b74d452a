"""Answers: JSON, and errors as `{"error": ...}`."""

import asyncio
import json
from collections.abc import Awaitable, Mapping
from typing import Any

from starlette.responses import Response

from ns_ray.serving.service import Service


class HttpError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})


def answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response."""
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(body, status, headers, "application/json")


def failure(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """An error as a response."""
    return answer({"error": message}, status, headers)


def require_ready(service: Service) -> None:
    """
    Raises:
        HttpError: 503 as long as no model has answered its warm-up.
    """
    if not service.ready:
        raise HttpError(503, "the model is still loading", {"Retry-After": "5"})


async def within(service: Service, work: Awaitable[Any]) -> Any:
    """The result of some work, within the deadline.

    Raises:
        HttpError: 504 when it takes longer.
    """
    seconds = service.config.deadline
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        raise HttpError(504, f"no answer within {seconds:g} s", {"Retry-After": "5"}) from None
