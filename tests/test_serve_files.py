"""What is handed to Ray Serve, KubeRay and Grafana, checked strictly: Serve ignores keys that it
doesn't know, and nothing imports these files."""

import ast
import copy
import inspect
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel
from test_cluster_files import check_manifest

from ns_ray.config.validation import validate
from ns_ray.errors import ConfigError
from ns_ray.serving import ServeConfig, build_app
from ns_ray.serving.launch import environment
from ns_ray.serving.totals import Totals, render

SERVE = Path(__file__).resolve().parent.parent / "serve"


def manifest() -> dict[str, Any]:
    return dict(yaml.safe_load((SERVE / "rayservice.yaml").read_text()))


def configs() -> dict[str, dict[str, Any]]:
    """Both Serve configs: the file, and the one inside the Kubernetes manifest."""
    return {
        "config.yaml": yaml.safe_load((SERVE / "config.yaml").read_text()),
        "rayservice.yaml": yaml.safe_load(manifest()["spec"]["serveConfigV2"]),
    }


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Pydantic models that a type names, at any depth."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in models_in(inner)]


def unknown(value: Any, model: type[BaseModel], place: str = "") -> list[str]:
    """Keys that a Serve model would silently ignore."""
    if isinstance(value, list):
        return [
            key for i, item in enumerate(value) for key in unknown(item, model, f"{place}[{i}]")
        ]
    if not isinstance(value, dict):
        return []
    found = []
    for key, inner in value.items():
        field = model.model_fields.get(key)
        if field is None:
            found.append(f"{place}.{key}")
            continue
        for nested in models_in(field.annotation)[:1]:
            found += unknown(inner, nested, f"{place}.{key}")
    return found


def check(config: dict[str, Any]) -> None:
    """Everything that must be right about a Serve config."""
    from ray.serve.schema import ServeDeploySchema

    assert unknown(config, ServeDeploySchema) == []
    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    module, _, name = application["import_path"].partition(":")
    assert getattr(import_module(module), name) is build_app
    validate(ServeConfig, application["args"])
    (deployment,) = application["deployments"]
    assert deployment["name"] == "classifier"
    assert set(deployment["user_config"]) == {"bundle"}
    assert "bundle" not in application["args"], "a bundle in args restarts replicas"


@pytest.mark.parametrize("name", ["config.yaml", "rayservice.yaml"])
def test_the_serve_configs_are_right(name: str) -> None:
    check(configs()[name])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("http_option",), {}),
        (("http_options", "prot"), 1),
        (("applications", 0, "arg"), {}),
        (("applications", 0, "import_path"), "ns_ray.serving:build"),
        (("applications", 0, "args", "max_bach"), 8),
        (("applications", 0, "args", "max_batch"), "many"),
        (("applications", 0, "deployments", 0, "num_replica"), 2),
        (("applications", 0, "deployments", 0, "name"), "clasifier"),
        (("applications", 0, "deployments", 0, "user_config", "model"), "x"),
    ],
)
def test_a_mistake_in_a_serve_config_is_found(path: tuple[Any, ...], value: Any) -> None:
    config = copy.deepcopy(configs()["config.yaml"])
    node: Any = config
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises((AssertionError, AttributeError, ConfigError)):
        check(config)


@pytest.mark.parametrize("name", ["config.yaml", "rayservice.yaml"])
def test_the_proxy_gives_up_after_the_replica(name: str) -> None:
    config = configs()[name]
    (application,) = config["applications"]
    deadline = ServeConfig(**application["args"]).deadline
    assert deadline < config["http_options"]["request_timeout_s"] <= 2 * deadline
    cluster = manifest()["spec"]["rayClusterConfig"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        env = {e["name"]: e["value"] for e in group["template"]["spec"]["containers"][0]["env"]}
        assert int(env["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"]) <= 60
        assert int(env["RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S"]) > 40


@pytest.mark.parametrize("place", ["192.0.2.7:8000", "127.0.0.1:8000", "[::1]:8000"])
def test_haproxy_gives_headers_a_time_and_listens_where_it_should(
    tmp_path: Path, place: str
) -> None:
    from ray.serve._private import haproxy_templates

    environ = environment("haproxy", str(tmp_path), 30.5, range(30900, 31000), place)
    assert environ["RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S"] == "51"
    wrapper = Path(environ["RAY_SERVE_HAPROXY_BINARY_PATH"])
    wrapper.write_text(wrapper.read_text().rpartition("exec")[0])
    text = haproxy_templates.HAPROXY_CONFIG_TEMPLATE
    for name, value in (
        ("metrics_port", environ["RAY_SERVE_HAPROXY_METRICS_PORT"]),
        ("stats_port", environ["RAY_SERVE_HAPROXY_STATS_PORT"]),
        ("frontend_host", "127.0.0.1"),
        ("frontend_port", "8000"),
    ):
        assert f"{{{{ config.{name} }}}}" in text
        text = text.replace(f"{{{{ config.{name} }}}}", value)
    (tmp_path / "x.cfg").write_text(text)
    for _ in range(2):  # it is reloaded from the same file
        subprocess.run(["sh", str(wrapper), "-f", str(tmp_path / "x.cfg")], check=True)
    lines = [line.strip() for line in (tmp_path / "x.cfg").read_text().splitlines()]
    assert lines[lines.index("defaults") + 1] == "timeout http-request 10s"
    assert lines.count("timeout http-request 10s") == 1
    bound = [line for line in lines if line.startswith("bind ") and "grpc" not in line]
    assert bound == ["bind 127.0.0.1:30999", f"bind {place}", "bind 127.0.0.1:30998"]


@pytest.mark.parametrize("ingress", ["haproxy", "proxy"])
def test_a_proxy_may_take_as_long_to_start_as_serve_waits_for_it(
    tmp_path: Path, ingress: str
) -> None:
    """Serve kills one that takes longer than three looks, and the start fails with it."""
    from ray.serve._private import constants

    environ = environment(ingress, str(tmp_path), 30.5, range(30900, 31000), "127.0.0.1:8000")
    looks = constants.PROXY_HEALTH_CHECK_UNHEALTHY_THRESHOLD
    wait = float(environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"]) * looks
    assert wait >= constants.HTTP_PROXY_TIMEOUT


def test_only_the_pod_network_reaches_the_server_without_being_told() -> None:
    assert configs()["config.yaml"]["http_options"]["host"] == "127.0.0.1"
    in_pods = configs()["rayservice.yaml"]
    assert in_pods["http_options"]["host"] == "0.0.0.0"
    assert in_pods["applications"][0]["args"]["api_key_file"], "reachable, so with keys"


def test_the_manifest_follows_the_schema_and_has_its_volumes() -> None:
    check_manifest(manifest())
    cluster = manifest()["spec"]["rayClusterConfig"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            assert {m["name"] for m in container.get("volumeMounts", [])} <= volumes
    keys = configs()["rayservice.yaml"]["applications"][0]["args"]["api_key_file"]
    worker = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert str(Path(keys).parent) in {m["mountPath"] for m in worker["volumeMounts"]}
    args = configs()["rayservice.yaml"]["applications"][0]["args"]
    assert int(worker["resources"]["requests"]["cpu"]) >= args["cpus"]


def test_the_builder_takes_settings_as_serve_hands_them_over() -> None:
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as call

    app = call(build_app, {"cpus": 1, "max_replicas": 3})
    deployment = app._bound_deployment
    assert deployment.name == "classifier"
    assert deployment._deployment_config.autoscaling_config.max_replicas == 3
    with pytest.raises(ValueError, match="max_bach"):
        call(build_app, {"max_bach": 8})


def test_the_client_needs_the_standard_library_only() -> None:
    tree = ast.parse((SERVE / "client.py").read_text())
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert all(name.split(".")[0] in sys.stdlib_module_names for name in names)


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    totals = Totals()
    totals.request("/predict", 200, 0.1)
    totals.images["ok"] += 1
    totals.predictions["cat"] += 1
    exist = set(re.findall(r"^(ns_ray_\w+)", render([(totals, True)]).decode(), flags=re.M))
    dashboard = json.loads((SERVE / "grafana.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\bns_ray_\w+", target["expr"])
    }
    assert asked
    assert asked <= exist
    families = {re.sub(r"_(total|bucket|count|sum|created)$", "", name) for name in exist}
    shown = {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in asked}
    assert families == shown, "a metric without a panel"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
