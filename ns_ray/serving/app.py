"""What every request passes, and the way of a POST behind it, whichever protocol it speaks.

Knows nothing about Ray.
"""

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ns_ray.errors import ImageError
from ns_ray.serving.replica import Model, Replica
from ns_ray.serving.requests import Question, Reader, held, infer_question, predict_question
from ns_ray.serving.responses import Found, failure, infer_answer, predict_answer
from ns_ray.serving.totals import MAX_LABELS, Totals

log = logging.getLogger("ray.serve")

HEALTH = ("/livez", "/readyz", "/healthz", "/ping", "/v2/health/live", "/v2/health/ready")
OPEN = frozenset(("/", "/docs", "/openapi.json", *HEALTH))
"""Paths that ask for no key: health checks, the page, and the documents."""

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

Writer = Callable[[Question, Sequence[Found], Sequence[str], str], Response]
"""Makes the answer to a question of what was found, the names of the classes, and the version."""


def read_keys(path: str | None) -> tuple[bytes, ...]:
    """API keys, one per line; empty lines and lines that begin with # are left out.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no key: nobody could be let in.
    """
    if path is None:
        return ()
    lines = (line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    keys = tuple(line.encode() for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ValueError(f"api_key_file={path} holds no key; write one per line")
    return keys


class Front:
    """What every request passes: its id, its key, its count, and its last resort."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        routes: Sequence[BaseRoute],
        totals: Totals,
        keys: Sequence[bytes],
        names_requests: bool,
    ) -> None:
        self._app, self._routes, self._totals, self._keys = app, routes, totals, keys
        self._names_requests = names_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._names_requests:
                    MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            if self._keys and scope["path"] not in OPEN and not self._has_key(headers):
                refusal = failure(
                    401,
                    "no valid API key; send it as Authorization: Bearer KEY or as X-API-Key: KEY",
                    {"WWW-Authenticate": "Bearer"},
                )
                await refusal(scope, receive, send_with_id)
            else:
                await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = 499
        except asyncio.CancelledError:
            status = 499
            raise
        except Exception:
            if status:
                raise
            log.exception("request %s failed", request_id)
            await failure(500, f"internal error; see the log of request {request_id}")(
                scope, receive, send_with_id
            )
        finally:
            self._totals.request(self._path(scope), status, time.perf_counter() - start)
        return None

    def _path(self, scope: Scope) -> str:
        """The path as the API writes it: its parameters must not become series of metrics."""
        for route in self._routes:
            if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
                return route.path
        return "other"

    def _has_key(self, headers: Headers) -> bool:
        given = headers.get("x-api-key", "")
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if not given and scheme.lower() == "bearer":
            given = token.strip()
        # Every key is compared, each in constant time.
        matches = [hmac.compare_digest(given.encode("latin-1", "replace"), k) for k in self._keys]
        return any(matches)


def ready_model(replica: Replica) -> Model:
    """The model that new requests go to.

    Raises:
        HTTPException: 503 as long as none has answered its warm-up.
    """
    if replica.model is None:
        raise HTTPException(503, "the model is still loading", {"Retry-After": "5"})
    return replica.model


def named_model(replica: Replica, request: Request) -> str:
    """The name of the model in the path.

    Raises:
        HTTPException: 404 when there is none of this name.
    """
    asked, known = request.path_params["model"], replica.config.model_name
    if asked != known:
        raise HTTPException(404, f"there is no model {asked[:100]!r}; its name is {known}")
    return known


async def _classify(replica: Replica, request: Request, read: Reader, write: Writer) -> Response:
    """The way of every POST: requests, batcher, predictor, responses."""
    ready_model(replica)
    totals = replica.totals
    async with held(request, read, replica.config, totals) as question:
        # Not before the body is here: a model that was exchanged meanwhile takes no more images.
        model = ready_model(replica)
        found = await model.batcher.predict(question.images)
        classes = model.predictor.classes
        for item in found:
            totals.images[item.reason if isinstance(item, ImageError) else "ok"] += 1
            if not isinstance(item, ImageError) and len(classes) <= MAX_LABELS:
                totals.predictions[classes[int(item.argmax())]] += 1
        return write(question, found, classes, model.version)


def classify_routes(replica: Replica) -> list[Route]:
    async def predict(request: Request) -> Response:
        return await _classify(replica, request, predict_question, predict_answer)

    async def infer(request: Request) -> Response:
        named_model(replica, request)
        return await _classify(replica, request, infer_question, infer_answer)

    return [
        Route("/predict", predict, methods=["POST", "PUT"]),  # curl -T puts
        Route("/invocations", predict, methods=["POST"]),
        Route("/v2/models/{model}/infer", infer, methods=["POST"]),
    ]
