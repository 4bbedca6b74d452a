"""`ns-ray swap`: another bundle for a running application, through the REST interface that
`serve deploy` uses. Replicas load it aside, then exchange it; no request is lost.

`user_config` also keeps the bundle before, for `--previous`.
"""

import os
import time
from collections.abc import Mapping
from typing import Any

from ns_ray.errors import ConfigError, StageError, first_line

DASHBOARD = "http://127.0.0.1:8265"
DEPLOYMENT = "classifier"
POLL_SECONDS = 0.5
SEEN_SECONDS = 3.0
"""How long Serve may take to notice a new config: until then an old "running" proves nothing."""


def swap_bundle(
    bundle: str | None, *, back: bool, address: str | None, app: str, timeout: float
) -> tuple[str, str | None]:
    """Change the bundle of an application and wait until its replicas run it.

    Args:
        bundle: the new one; None with `back`.
        back: return to the bundle before.
        address: of Ray's dashboard; None: from RAY_DASHBOARD_ADDRESS, as for `serve`.
        app: name of the application.
        timeout: seconds to wait.

    Returns:
        The bundle that is served now, and the one before.

    Raises:
        ConfigError: nothing was changed.
        StageError: the replicas did not take it in time.
    """
    client = _client(address)
    details = client.get_serve_details()
    current = _user_config(details, app)
    if (bundle is None) == (not back):
        raise ConfigError("give either --bundle or --previous")
    if back:
        bundle = current.get("previous")
        if bundle is None:
            raise ConfigError(f"application {app!r} has had no other bundle; give --bundle")
    changed = {"bundle": bundle, "previous": current.get("bundle")}
    try:
        client.deploy_applications(config_with(details, app, changed))
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"Ray's dashboard refuses the change: {first_line(error)}") from None
    _wait(client, app, timeout)
    return str(bundle), changed["previous"]


def config_with(
    details: Mapping[str, Any], app: str, user_config: Mapping[str, Any]
) -> dict[str, Any]:
    """The config that Serve runs now, with another `user_config` for the classifier of one
    application. It has to name every application: Serve removes the others.

    Args:
        details: what GET /api/serve/applications/ answered.
    """
    applications = []
    for name, found in details["applications"].items():
        config = {k: v for k, v in found["deployed_app_config"].items() if v is not None}
        if name == app:
            others = [d for d in config.get("deployments", []) if d["name"] != DEPLOYMENT]
            own = [d for d in config.get("deployments", []) if d["name"] == DEPLOYMENT]
            changed = {**(own[0] if own else {"name": DEPLOYMENT}), "user_config": user_config}
            config["deployments"] = [*others, changed]
        applications.append(config)
    config = {"applications": applications}
    for key in ("proxy_location", "http_options", "grpc_options"):
        if details.get(key) is not None:
            config[key] = details[key]
    return config


def _user_config(details: Mapping[str, Any], app: str) -> dict[str, Any]:
    found = details.get("applications", {}).get(app)
    if found is None:
        names = ", ".join(details.get("applications", {})) or "none"
        raise ConfigError(f"there is no application {app!r} on this cluster; there is: {names}")
    config = found.get("deployed_app_config")
    if config is None:
        raise ConfigError(
            f"application {app!r} was not deployed from a config; use `serve deploy` first"
        )
    for deployment in config.get("deployments") or []:
        if deployment["name"] == DEPLOYMENT:
            return dict(deployment.get("user_config") or {})
    return {"bundle": (config.get("args") or {}).get("bundle")}


def _client(address: str | None) -> Any:
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    place = address or os.environ.get("RAY_DASHBOARD_ADDRESS") or DASHBOARD
    try:
        client = ServeSubmissionClient(place)
        client.get_serve_details()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"Ray's dashboard does not answer at {place} ({first_line(error)}); "
            "set --address http://HEAD:8265"
        ) from None
    return client


def _wait(client: Any, app: str, timeout: float) -> None:
    start = time.monotonic()
    status, message = "", ""
    while time.monotonic() - start < timeout:
        time.sleep(POLL_SECONDS)
        try:
            found = client.get_serve_details()["applications"].get(app, {})
        except (OSError, RuntimeError) as error:  # the dashboard may be restarting
            status, message = "unknown", first_line(error)
            continue
        deployment = found.get("deployments", {}).get(DEPLOYMENT, {})
        status = str(deployment.get("status", found.get("status")))
        message = str(deployment.get("message") or found.get("message") or "")
        settled = time.monotonic() - start > SEEN_SECONDS
        if settled and status == "HEALTHY" and found.get("status") == "RUNNING":
            return
        if settled and found.get("status") in ("DEPLOY_FAILED", "UNHEALTHY"):
            break
    reason = message.strip().splitlines()[-1] if message.strip() else "no reason was given"
    raise StageError(
        f"application {app!r} is {status}: {reason}; `ns-ray swap --previous` goes back"
    )
