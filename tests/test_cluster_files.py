"""What is handed to clusters, checked offline: by Ray itself, and by the fields KubeRay knows."""

import copy
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import ns_ray
from ns_ray.config import loading

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = ROOT / "cluster"
SCHEMA = json.loads((ROOT / "tests" / "crd" / "ray.io-v1.json").read_text())
LAUNCHERS = ["aws", "gcp", "on-prem"]
MANIFESTS = ["raycluster", "rayjob"]


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


@pytest.mark.parametrize("name", MANIFESTS)
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
    command = job["spec"]["entrypoint"].split()
    assert command[:3] == ["python", "-m", "ns_ray.run"]
    folder, name = command[command.index("--config") + 1].rsplit("/", 1)
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert folder in {mount["mountPath"] for mount in head["volumeMounts"]}
    assert name in config_map["data"]


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
