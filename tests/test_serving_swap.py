"""`ns-ray swap` against a stand-in for Ray's dashboard: what it changes, and how it fails. With a
real one it is tested in test_serving_ray.py."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import ray

from ns_ray.errors import ConfigError, StageError
from ns_ray.serving import swap as module
from ns_ray.serving.swap import config_with, swap_bundle


class Dashboard:
    """Answers as Ray's dashboard does.

    Attributes:
        details: what Serve runs, until something is deployed.
        after: what it runs then, one answer after another, the last one for ever. None: no answer.
        refuses: what it says to a deployment; "": nothing, it is taken.
        deployed: the config it was sent.
    """

    def __init__(self, details: dict[str, Any]) -> None:
        self.details = details
        self.after: list[dict[str, Any] | None] = []
        self.refuses = ""
        self.deployed: dict[str, Any] | None = None
        dashboard = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if "version" in self.path:
                    return self._answer(200, {"ray_version": ray.__version__})
                found: dict[str, Any] | None = dashboard.details
                if dashboard.deployed is not None and dashboard.after:
                    later = dashboard.after
                    found = later.pop(0) if len(later) > 1 else later[0]
                return self._answer(200 if found else 503, found or {})

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if dashboard.refuses:
                    return self._answer(400, dashboard.refuses)
                dashboard.deployed = json.loads(body)
                return self._answer(200, {})

            def _answer(self, status: int, value: Any) -> None:
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def details(status: str = "RUNNING", message: str = "", **config: Any) -> dict[str, Any]:
    """Two applications: ours, and somebody else's."""
    ours = {"name": "ns-ray", "import_path": "ns_ray.serving:build_app", **config}
    healthy = "HEALTHY" if status == "RUNNING" else "UNHEALTHY"
    return {
        "proxy_location": "EveryNode",
        "http_options": {"port": 8000},
        "applications": {
            "ns-ray": {
                "status": status,
                "deployed_app_config": ours,
                "deployments": {"classifier": {"status": healthy, "message": message}},
            },
            "theirs": {"status": "RUNNING", "deployed_app_config": {"name": "theirs"}},
        },
    }


SERVED = [{"name": "classifier", "num_replicas": 2, "user_config": {"bundle": "old"}}]


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    monkeypatch.setattr(module, "SEEN_SECONDS", 0.0)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
    made = Dashboard(details(deployments=SERVED))
    yield made
    made.server.shutdown()
    made.server.server_close()


def change(
    dashboard: Dashboard,
    bundle: str | None = "new",
    *,
    back: bool = False,
    app: str = "ns-ray",
    timeout: float = 30,
) -> tuple[str, str | None]:
    return swap_bundle(bundle, back=back, address=dashboard.address, app=app, timeout=timeout)


def test_the_bundle_changes_and_nothing_else(dashboard: Dashboard) -> None:
    assert change(dashboard) == ("new", "old")
    assert dashboard.deployed is not None
    ours, theirs = dashboard.deployed["applications"]
    assert theirs == {"name": "theirs"}, "Serve removes an application that a config leaves out"
    assert ours["import_path"] == "ns_ray.serving:build_app"
    assert ours["deployments"] == [
        {
            "name": "classifier",
            "num_replicas": 2,
            "user_config": {"bundle": "new", "previous": "old"},
        }
    ]
    assert dashboard.deployed["http_options"] == {"port": 8000}


def test_a_bundle_of_the_arguments_is_the_one_to_go_back_to(dashboard: Dashboard) -> None:
    dashboard.details = details(args={"bundle": "first"})
    assert change(dashboard) == ("new", "first")
    dashboard.details = {"applications": {"ns-ray": details()["applications"]["ns-ray"]}}
    changed = config_with(dashboard.details, "ns-ray", {"bundle": "new", "previous": "first"})
    dashboard.details["applications"]["ns-ray"]["deployed_app_config"] = changed["applications"][0]
    assert change(dashboard, None, back=True) == ("first", "new")


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"bundle": None}, "either --bundle or --previous"),
        ({"back": True}, "either --bundle or --previous"),
        ({"bundle": None, "back": True}, "no other bundle"),
        ({"app": "nobody"}, "there is: ns-ray, theirs"),
    ],
)
def test_what_cannot_be_done_changes_nothing(
    dashboard: Dashboard, wrong: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        change(dashboard, **wrong)
    assert dashboard.deployed is None


def test_an_application_without_a_config_is_left_alone(dashboard: Dashboard) -> None:
    dashboard.details["applications"]["ns-ray"]["deployed_app_config"] = None
    with pytest.raises(ConfigError, match="use `serve deploy` first"):
        change(dashboard)
    assert dashboard.deployed is None


def test_a_dashboard_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_DASHBOARD_ADDRESS", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:9 .*set --address"):
        swap_bundle("new", back=False, address=None, app="ns-ray", timeout=1)


def test_a_refused_config_is_said(dashboard: Dashboard) -> None:
    dashboard.refuses = "no such import path"
    with pytest.raises(ConfigError, match="no such import path"):
        change(dashboard)


def test_replicas_that_do_not_take_the_bundle_are_said(dashboard: Dashboard) -> None:
    dashboard.after = [details("DEPLOYING"), details("UNHEALTHY", "Traceback\nno such bundle")]
    with pytest.raises(StageError, match=r"UNHEALTHY: no such bundle; .*--previous"):
        change(dashboard)


def test_a_dashboard_that_restarts_meanwhile_is_waited_for(dashboard: Dashboard) -> None:
    dashboard.after = [None, None, details(deployments=SERVED)]
    assert change(dashboard) == ("new", "old")
    dashboard.deployed, dashboard.after = None, [None]
    with pytest.raises(StageError, match="503"):
        change(dashboard, timeout=0.5)
