"""What `pip install` leaves in an environment of its own: what runs, reports and serves."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import time
import tomllib
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from conftest import free_ports
from test_packaging import ROOT, source_copy, wheel_of
from tiny import flat_folder, folder_per_class, given_teacher, user_environment, write_config

TRAINS = {"matplotlib", "scikit-learn", "scipy", "tensorboard"}
"""Packages that labeling and serving do without."""
WITHOUT = """
import os, sys
for name in os.environ.get("NOT_INSTALLED", "").split():
    sys.modules[name] = None
"""


def alone() -> dict[str, str]:
    """The environment of a user who has no checkout on Python's path."""
    return {name: value for name, value in user_environment().items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def bin_(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel of the source distribution, and what it
    needs from this one."""
    work = tmp_path_factory.mktemp("installed")
    build = "from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", f"import sys; {build}", str(work)],
        cwd=source_copy(work / "source"),
        check=True,
        capture_output=True,
    )
    (packed,) = work.glob("*.tar.gz")
    safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since 3.11.4
    with tarfile.open(packed) as archive:
        archive.extractall(work / "unpacked", **safely)  # type: ignore[arg-type]
    (unpacked,) = (work / "unpacked").iterdir()
    wheel = wheel_of(unpacked, work)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", work / "venv"], check=True)
    python = work / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    install = [*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, env=alone(), check=True)
    (site,) = (work / "venv" / "lib").glob("python*/site-packages")
    (site / "needed.pth").write_text(sysconfig.get_path("purelib") + "\nimport not_installed\n")
    (site / "not_installed.py").write_text(WITHOUT)
    return python.parent


def call(bin_: Path, folder: Path, *command: object, **environ: str) -> Any:
    program, *arguments = (str(part) for part in command)
    path = f"{bin_}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [bin_ / program, *arguments],
        cwd=folder,
        env={**alone(), "PATH": path, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.ray
@pytest.mark.slow
def test_it_runs_and_reports(bin_: Path, tmp_path: Path) -> None:
    where = call(bin_, tmp_path, "python", "-c", "import ns_ray; print(ns_ray.__file__)")
    assert str(bin_.parent) in where.stdout, where.stderr
    folder_per_class(tmp_path / "labeled", 20)
    flat_folder(tmp_path / "pile", 90, start=500)
    data = {"data.labeled": "labeled", "data.unlabeled": ["pile"], "storage": "runs"}
    write_config(tmp_path / "run.yaml", {**data, "train.epochs": 2, "label.teachers": 1})
    run = call(bin_, tmp_path, "python", "-m", "ns_ray.run", "--config", "run.yaml")
    assert run.returncode in (0, 5), run.stdout + run.stderr
    report = tmp_path / "runs" / "tiny" / "report.html"
    report.unlink()
    assert call(bin_, tmp_path, "ns-ray", "report", "runs/tiny").returncode == 0
    assert report.read_text().rstrip().endswith("</html>")


@pytest.mark.ray
@pytest.mark.slow
def test_labeling_and_serving_do_without_what_trains(bin_: Path, tmp_path: Path) -> None:
    """The packages of serve/requirements.txt alone."""
    given_teacher(tmp_path / "bundle")
    pile = flat_folder(tmp_path / "pile", 10)
    slim = {"NOT_INSTALLED": "matplotlib sklearn scipy tensorboard"}
    model = ("--bundle", "bundle", "--data", "pile", "--out")
    done = call(bin_, tmp_path, "ns-ray", "label", *model, "labels", **slim)
    assert "10 images labeled" in done.stdout, done.stderr
    seen = call(bin_, tmp_path, "ns-ray", "predict", "--bundle", "bundle", "pile", **slim)
    assert seen.stdout.count("0003.png") == 1, seen.stderr
    answer = served(bin_, tmp_path, "bundle", pile / "0000.png", **slim)
    assert {one["label"] for one in answer} == {"blue", "green", "red"}
    labeled = folder_per_class(tmp_path / "labeled", 2)
    scores = ["evaluate", "--bundle", "bundle", "--data", labeled, "--out", "scores"]
    for command in (scores, ["run", "--recipe", "digits"]):
        refused = call(bin_, tmp_path, "ns-ray", *command, **slim)
        assert refused.returncode == 2, refused.stdout + refused.stderr
        assert refused.stderr.startswith("error: the Python module "), refused.stderr
        assert "pip install ns-ray brings all" in refused.stderr


def served(bin_: Path, folder: Path, bundle: str, image: Path, **environ: str) -> Any:
    """What a server says of an image."""
    (port,) = free_ports(1)
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/predict?top_k=3",
        image.read_bytes(),
        {"Content-Type": "image/png"},
    )
    log = (folder / "serve.log").open("w")
    server = subprocess.Popen(
        [bin_ / "ns-ray", "serve", "--bundle", bundle, "--port", str(port)],
        cwd=folder,
        env={**alone(), **environ},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        while server.poll() is None:
            try:
                with urllib.request.urlopen(request, timeout=60) as reply:
                    return json.load(reply)
            except OSError:
                time.sleep(0.5)
        raise AssertionError((folder / "serve.log").read_text())
    finally:
        server.terminate()
        server.wait()
        log.close()


def test_the_short_list_of_requirements_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {line for line in project["dependencies"] if line.split(">")[0] not in TRAINS}
    lines = (ROOT / "serve" / "requirements.txt").read_text().splitlines()
    assert {line for line in lines if line and not line.startswith("#")} == needed
