"""The replicas as a Ray Serve application.

`user_config` names the bundle. When a config with another one is deployed, the replicas exchange
their model and go on (docs/serving.md).
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from starlette.applications import Starlette

from ns_ray.compute import WORKER_ENVIRONMENT, cpus
from ns_ray.config import validate
from ns_ray.errors import ConfigError
from ns_ray.serving.settings import ServeConfig
from ns_ray.serving.totals import Board, Totals

MAX_CPUS = 8
"""Most CPUs of a replica where the settings don't say: more threads add little to one forward."""
MANY = 100_000
"""Requests that Serve lets through to a replica at once: so many that it never refuses one. The
replica does, by counting images."""
REPORT_SECONDS = 2.0
"""Between two reports of a replica's totals."""


class Classifier:
    """One replica, as Ray Serve sees it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        # Here, where torch is needed: building the application and the board do without.
        from ns_ray.serving.app import read_keys
        from ns_ray.serving.replica import Replica

        self._config = validate(ServeConfig, settings)
        self._replica = Replica(self._config)
        self._keys = read_keys(self._config.api_key_file)
        self._board: Any = None
        self._reporting: asyncio.Task[None] | None = None

    def __serve_build_asgi_app__(self) -> Starlette:
        """The HTTP interface."""
        from ns_ray.serving.paths import create_app

        return create_app(self._replica, self._keys, self._totals, names_requests=False)

    async def reconfigure(self, user_config: dict[str, Any] | None) -> None:
        """Serve the bundle that a config names; requests under way end on the one before."""
        bundle = (user_config or {}).get("bundle") or self._config.bundle
        if bundle is None:
            raise ConfigError("no bundle: set `bundle` in args, or `user_config.bundle`")
        await self._replica.load(bundle)
        if self._reporting is None:
            self._reporting = asyncio.get_running_loop().create_task(self._report_for_ever())

    async def _totals(self) -> Sequence[tuple[Totals, bool]]:
        """What all replicas have counted."""
        try:
            async with asyncio.timeout(2):
                await self._report()
                found: Sequence[tuple[Totals, bool]] = await self._board.all.remote()
                return found
        except (TimeoutError, ray.exceptions.RayError):
            self._board = None
            return [(self._replica.totals, True)]

    async def _report(self) -> None:
        context = serve.get_replica_context()
        if self._board is None:
            self._board = (
                ray.remote(Board)
                .options(
                    name=f"ns-ray-board:{context.app_name}",
                    namespace="serve",
                    lifetime="detached",
                    get_if_exists=True,
                    num_cpus=0,
                    max_restarts=-1,
                )
                .remote()
            )
        await self._board.report.remote(context.replica_id.unique_id, self._replica.totals)

    async def _report_for_ever(self) -> None:
        while True:
            with contextlib.suppress(ray.exceptions.RayError):
                await self._report()
            await asyncio.sleep(REPORT_SECONDS)


def build_app(args: ServeConfig) -> Application:
    """The application for Ray Serve: `import_path: ns_ray.serving:build_app`, with the settings as
    `args`. (The annotation is how Serve knows to validate them: it must stay a class.)"""
    args = args.model_copy(update={"cpus": args.cpus or min(cpus(), MAX_CPUS)})
    resources = {
        "num_cpus": args.cpus,
        "num_gpus": args.gpus,
        "runtime_env": {"env_vars": WORKER_ENVIRONMENT},
    }
    scale: dict[str, Any] = {"num_replicas": args.replicas}
    if args.max_replicas is not None:
        scale = {
            "autoscaling_config": {
                "min_replicas": args.replicas,
                "max_replicas": args.max_replicas,
                "target_ongoing_requests": args.target_ongoing_requests,
            }
        }
    deployment = serve.deployment(
        name="classifier",
        ray_actor_options=resources,
        max_ongoing_requests=MANY,
        graceful_shutdown_timeout_s=args.deadline + 10,
        user_config={"bundle": args.bundle} if args.bundle else {},
        **scale,
    )(serve.ingress()(Classifier))
    return deployment.bind(args.model_dump(mode="json"))
