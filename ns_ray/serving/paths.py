"""The HTTP interface: which path does what. `openapi.yaml` beside this file says it to clients.

Every request passes `Front`, which does what all of them share. Knows nothing about Ray.
"""

import base64
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import yaml
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ns_ray import __version__
from ns_ray.serving.app import Front, classify_routes, named_model, ready_model
from ns_ray.serving.encodings import HEADER
from ns_ray.serving.replica import Replica
from ns_ray.serving.requests import INPUT
from ns_ray.serving.responses import failure
from ns_ray.serving.totals import Totals, render

HERE = Path(__file__).parent
AllTotals = Callable[[], Awaitable[Sequence[tuple[Totals, bool]]]]


def create_app(
    replica: Replica,
    keys: Sequence[bytes] = (),
    totals: AllTotals | None = None,
    *,
    names_requests: bool = True,
) -> Starlette:
    """The ASGI application of a replica.

    Args:
        replica: it may still be loading its model.
        keys: API keys; without any, none is asked.
        totals: what all replicas have counted; None: this one alone.
        names_requests: whether to answer with X-Request-ID; Ray Serve does that by itself.
    """
    routes = [
        *_health(replica),
        *classify_routes(replica),
        *_models(replica),
        *_about(replica, totals),
        _page("/", "page.html"),
        _page("/docs", "docs.html"),
    ]
    front = Middleware(
        Front, routes=routes, totals=replica.totals, keys=keys, names_requests=names_requests
    )
    middleware = [*_other_origins(replica.config.allow_origins), front]
    return Starlette(
        routes=routes, middleware=middleware, exception_handlers={HTTPException: _refused}
    )


def _other_origins(allowed: Sequence[str]) -> list[Middleware]:
    """What lets scripts of other pages ask and read answers; before the key, which a browser does
    not send when it asks whether it may."""
    if not allowed:
        return []
    named = ["Content-Type", "Authorization", "X-API-Key", "X-Request-ID", HEADER]
    shown = ["X-Request-ID", "X-Model-Version", "Retry-After"]
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=allowed,
            allow_methods=["GET", "POST", "PUT"],
            allow_headers=named,
            expose_headers=shown,
            allow_private_network=True,
        )
    ]


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if error.status_code == 404 and "endpoint" not in request.scope:
        message = f"there is no {request.url.path[:200]}; see /docs"
    elif error.status_code == 405:
        message = f"{request.method} is not allowed here; see /docs"
    return failure(error.status_code, message, dict(error.headers or {}))


def _health(replica: Replica) -> list[Route]:
    async def alive(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(request: Request) -> Response:
        ready_model(replica)
        return JSONResponse({"status": "ok"})

    async def v2_alive(request: Request) -> Response:
        return JSONResponse({"live": True})

    async def v2_ready(request: Request) -> Response:
        ready_model(replica)
        return JSONResponse({"ready": True})

    return [
        Route("/livez", alive),
        *(Route(path, ready) for path in ("/readyz", "/healthz", "/ping")),
        Route("/v2/health/live", v2_alive),
        Route("/v2/health/ready", v2_ready),
    ]


def _models(replica: Replica) -> list[Route]:
    """What the Open Inference Protocol says of the server and its model."""

    async def server(request: Request) -> Response:
        return JSONResponse(
            {"name": "ns-ray", "version": __version__, "extensions": ["binary_tensor_data"]}
        )

    async def ready(request: Request) -> Response:
        name = named_model(replica, request)
        ready_model(replica)
        return JSONResponse({"name": name, "ready": True})

    async def facts(request: Request) -> Response:
        name = named_model(replica, request)
        return JSONResponse(
            {
                "name": name,
                "versions": [ready_model(replica).version],
                "platform": "ns-ray",
                "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
                "outputs": [
                    {"name": "label", "datatype": "BYTES", "shape": [-1, -1]},
                    {"name": "score", "datatype": "FP32", "shape": [-1, -1]},
                ],
            }
        )

    return [
        Route("/v2", server),
        Route("/v2/models/{model}/ready", ready),
        Route("/v2/models/{model}", facts),
    ]


def _about(replica: Replica, totals: AllTotals | None) -> list[Route]:
    document = yaml.safe_load((HERE / "openapi.yaml").read_text(encoding="utf-8"))
    document["info"]["version"] = __version__

    async def openapi(request: Request) -> Response:
        return JSONResponse(document)

    async def info(request: Request) -> Response:
        return JSONResponse(ready_model(replica).facts(replica.config))

    async def metrics(request: Request) -> Response:
        replicas = [(replica.totals, True)] if totals is None else await totals()
        return Response(render(replicas), media_type="text/plain; version=0.0.4; charset=utf-8")

    return [
        Route("/info", info),
        Route("/metrics", metrics),
        Route("/openapi.json", openapi),
    ]


def _page(path: str, name: str) -> Route:
    """A page that may run its own script and nothing else, and load nothing from elsewhere."""
    text = (HERE / name).read_text(encoding="utf-8")
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

    async def page(request: Request) -> Response:
        return HTMLResponse(text, headers=headers)

    return Route(path, page)
