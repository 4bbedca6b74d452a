"""The HTTP interface: a contract with clients that nobody here wrote.

`create_app` makes it around a `Service`; it knows nothing about Ray. Every error is
`{"error": ...}`. Requests pass `Front` first, which deals with what all of them share.
"""

import asyncio
import base64
import hashlib
import hmac
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ns_ray import __version__
from ns_ray.errors import ImageError
from ns_ray.serving import inference_protocol, openapi
from ns_ray.serving.metrics import render
from ns_ray.serving.requests import question, read_body
from ns_ray.serving.responses import HttpError, answer, failure, require_ready, within
from ns_ray.serving.service import Overloaded, Ranked, Service

log = logging.getLogger("ray.serve")

HEALTH = ("/livez", "/readyz", "/healthz", "/ping", "/v2/health/live", "/v2/health/ready")
OPEN = frozenset(("/", "/docs", "/openapi.json", *HEALTH))
"""Paths that ask for no key: health checks, the page, and the documents."""

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
RETRY_SECONDS = 1
"""What Retry-After says: a full queue of default size is worked off in about a second."""

Totals = Callable[[], Awaitable[Sequence[tuple[Any, bool]]]]


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
        self, app: ASGIApp, service: Service, keys: Sequence[bytes], names_requests: bool
    ) -> None:
        self._app, self._service, self._keys = app, service, keys
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
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self._service.totals.request(path, status, time.perf_counter() - start)
        return None

    def _has_key(self, headers: Headers) -> bool:
        given = headers.get("x-api-key", "")
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if not given and scheme.lower() == "bearer":
            given = token.strip()
        # Every key is compared, each in constant time.
        matches = [hmac.compare_digest(given.encode("latin-1", "replace"), k) for k in self._keys]
        return any(matches)


def create_app(
    service: Service,
    keys: Sequence[bytes] = (),
    totals: Totals | None = None,
    *,
    names_requests: bool = True,
) -> FastAPI:
    """The ASGI application around a service.

    Args:
        service: it may still be loading its model.
        keys: API keys; without any, none is asked.
        totals: what all replicas have counted; None: this one alone.
        names_requests: whether to answer with X-Request-ID; Ray Serve does that by itself.
    """
    app = FastAPI(
        title="ns-ray",
        version=__version__,
        description=openapi.DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.add_middleware(Front, service=service, keys=keys, names_requests=names_requests)
    _errors(app)
    _health(app, service)
    _classify(app, service)
    inference_protocol.add_routes(app, service)
    _about(app, service, totals)
    return app


def _errors(app: FastAPI) -> None:
    @app.exception_handler(HttpError)
    async def ours(request: Request, error: HttpError) -> Response:
        return failure(error.status, error.message, error.headers)

    @app.exception_handler(Overloaded)
    async def overloaded(request: Request, error: Overloaded) -> Response:
        return failure(
            429,
            "the queue is full; try again",
            {"Retry-After": str(RETRY_SECONDS), "Connection": "close"},
        )

    @app.exception_handler(HTTPException)
    async def theirs(request: Request, error: HTTPException) -> Response:
        messages = {
            404: f"there is no {request.url.path[:200]}; see /docs",
            405: f"{request.method} is not allowed here; see /docs",
        }
        message = messages.get(error.status_code, str(error.detail))
        return failure(error.status_code, message, dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return failure(422, f"{where}: {first['msg']}")


def _health(app: FastAPI, service: Service) -> None:
    async def alive() -> Response:
        return answer({"status": "ok"})

    async def ready() -> Response:
        require_ready(service)
        return answer({"status": "ok"})

    for path, check in (
        ("/livez", alive),
        ("/readyz", ready),
        ("/healthz", ready),
        ("/ping", ready),
    ):
        app.add_api_route(path, check, methods=["GET"], **openapi.health(path))


def _classify(app: FastAPI, service: Service) -> None:
    async def predict(request: Request) -> Response:
        require_ready(service)
        service.admit(1)
        body = await read_body(request, service)
        service.busy_bytes += len(body)
        try:
            asked = await question(request, body, service.config)
            version, answers = await within(service, service.classify(asked.images, asked.top_k))
        finally:
            service.busy_bytes -= len(body)
        headers = {"X-Model-Version": version}
        if asked.batch:
            return answer([item_or_error(item) for item in answers], 200, headers)
        only = answers[0]
        if isinstance(only, ImageError):
            status = 413 if only.reason == "too_many_pixels" else 400
            return failure(status, str(only), headers)
        return answer(only, 200, headers)

    for path in ("/predict", "/invocations"):
        app.add_api_route(path, predict, methods=["POST"], **openapi.predict(path))


def item_or_error(item: Ranked | ImageError) -> Any:
    """One entry of the answer to a batch."""
    return {"error": str(item)} if isinstance(item, ImageError) else item


def _about(app: FastAPI, service: Service, totals: Totals | None) -> None:
    async def info() -> Response:
        require_ready(service)
        return answer(service.info())

    async def metrics() -> Response:
        if service.ready:
            service.totals.queue = service.waiting()
        replicas = [(service.totals, True)] if totals is None else await totals()
        text = render(replicas)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def document() -> Response:
        return answer(openapi.document(app))

    app.add_api_route("/info", info, methods=["GET"], **openapi.INFO)
    app.add_api_route("/metrics", metrics, methods=["GET"], **openapi.METRICS)
    app.add_api_route("/openapi.json", document, methods=["GET"], include_in_schema=False)
    for path, name in (("/", "page.html"), ("/docs", "docs.html")):
        _static(app, path, name)


def _static(app: FastAPI, path: str, name: str) -> None:
    """A page that may run its own script and nothing else, and load nothing from elsewhere."""
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    script = text.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    headers = {
        "Content-Security-Policy": f"default-src 'none'; script-src 'sha256-{digest}'; "
        "style-src 'unsafe-inline'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }

    async def page() -> Response:
        return HTMLResponse(text, headers=headers)

    app.add_api_route(path, page, methods=["GET"], include_in_schema=False)
