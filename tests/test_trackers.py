"""What a run tells MLflow and Weights & Biases: a real server, and the files of an offline run."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import free_ports
from reported import config, write_run
from tiny import flat_folder, folder_per_class, interrupted_at, write_config
from typer.testing import CliRunner

from ns_ray import store, trackers
from ns_ray.commands import run_app
from ns_ray.config import RunConfig, config_hash, dump
from ns_ray.store import RunLayout


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of MLflow."""
    folder, (port,) = tmp_path_factory.mktemp("mlflow"), free_ports(1)
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{folder}/runs.db"]
    stores += ["--artifacts-destination", str(folder / "artifacts")]
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, *stores],
            env=environment,
            stdout=log,
            stderr=log,
            cwd=folder,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            with suppress(OSError), urllib.request.urlopen(f"{url}/health"):
                break
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(1)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(autouse=True)
def told_here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where wandb writes, which it asks once of a process."""
    folder = tmp_path_factory.getbasetemp() / "told"
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(folder))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "birds")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    return folder


def records(folder: Path, run: str) -> list[Any]:
    """What wandb has written of a run, in order: a log as LevelDB has it, of protobufs."""
    from wandb.proto import wandb_internal_pb2

    record: Any = vars(wandb_internal_pb2)["Record"]
    found = []
    for path in sorted(folder.glob(f"wandb/offline-run-*-{run}/*.wandb")):
        data, at, whole = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if (left := 32768 - at % 32768) < 7:
                at += left
                continue
            size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
            whole += data[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):
                found.append(record.FromString(whole))
                whole = b""
    return found


def history(found: list[Any], name: str) -> list[dict[str, Any]]:
    """Rows that have a value of this name."""
    rows = [
        {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in r.history.item
        }
        for r in found
        if r.WhichOneof("record_type") == "history"
    ]
    return [row for row in rows if name in row]


def made(folder: Path, **changes: Any) -> tuple[RunConfig, RunLayout]:
    """A finished run."""
    root = write_run(folder, **changes)
    (root / "model").mkdir()
    (root / "model" / "config.json").write_text("{}")
    settings = config(folder, "made", **changes)
    return settings, RunLayout(str(root))


def told_ids(layout: RunLayout) -> dict[str, Any]:
    found = store.read_json(store.join(layout.root, "trackers.json"))
    return {name: what["id"] for name, what in found.items() if name != "config_hash"}


# -------------------------------------------------------------------------------------- settings


def test_who_is_told_changes_no_run(tmp_path: Path) -> None:
    plain = config(tmp_path, "made")
    assert "trackers" not in dump(plain)
    told = config(tmp_path, "made", trackers="wandb")
    assert told.trackers == ("wandb",)
    assert config_hash(told) == config_hash(plain)


def test_mistakes_end_with_one_line_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = write_config(
        tmp_path / "run.yaml", {"storage": str(tmp_path / "runs"), "data.labeled": "nowhere"}
    )
    monkeypatch.setitem(trackers.PACKAGES, "wandb", "no-such-package")
    for value, words in (
        (
            "[mlflow,wandb]",
            "trackers=wandb needs the package no-such-package; install it with: pip",
        ),
        ("[mlfow]", "trackers"),
    ):
        arguments = ["--config", str(settings), "--set", f"trackers={value}"]
        found = CliRunner().invoke(run_app, arguments)
        assert (found.exit_code, found.output.count("\n")) == (2, 1), found.output
        assert words in found.output
    assert not (tmp_path / "runs").exists()


# ------------------------------------------------------------------------------------- whole runs


@pytest.mark.slow
def test_a_run_that_goes_on_goes_on_at_its_trackers(
    tmp_path: Path,
    told_here: Path,
    server: str,
    without_ray: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    folder_per_class(tmp_path / "labeled", 12)
    flat_folder(tmp_path / "pile", 40, start=500)
    changes = {
        "storage": str(tmp_path / "runs"),
        "data.labeled": str(tmp_path / "labeled"),
        "data.unlabeled": [str(tmp_path / "pile")],
        "data.validation_size": 0.25,
        "train.epochs": 2,
        "resources.loaders": 0,
        "trackers": ["mlflow", "wandb"],
    }
    settings = str(write_config(tmp_path / "tiny.yaml", changes))

    with interrupted_at("gen-01 train"):
        assert CliRunner().invoke(run_app, ["--config", settings]).exit_code == 130

    from mlflow import MlflowClient

    client, layout = MlflowClient(server), RunLayout(str(tmp_path / "runs" / "tiny"))
    ids = told_ids(layout)
    assert client.get_run(ids["mlflow"]).info.status == "KILLED"
    for _ in range(2):  # the second time there is nothing to do, and nothing is told again
        assert CliRunner().invoke(run_app, ["--config", settings]).exit_code == 0
    assert told_ids(layout) == ids

    rows = [json.loads(line) for line in Path(layout.metrics).read_text().splitlines()]
    result = store.read_json(layout.result)
    experiment = client.get_experiment_by_name("birds")
    assert experiment is not None
    assert [run.info.run_id for run in client.search_runs([experiment.experiment_id])] == [
        ids["mlflow"]
    ]
    run = client.get_run(ids["mlflow"])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "tiny")
    assert run.data.params["train.batch_size"] == "10"
    assert run.data.params["students.0.model"] == "test_resnet"
    assert run.data.metrics["val_top1"] == result["generations"][-1]["val_top1"]
    files = {file.path for file in client.list_artifacts(ids["mlflow"])}
    files |= {file.path for file in client.list_artifacts(ids["mlflow"], "model")}
    assert {"report.html", "model/config.json", "model/model.safetensors"} <= files
    offline = records(told_here, ids["wandb"])
    assert offline[-1].exit.exit_code == 0
    assert [r.artifact.name for r in offline if r.WhichOneof("record_type") == "artifact"] == [
        "tiny-report",
        "tiny-model",
    ]
    for stage in ("gen-00/train", "gen-01/train"):
        name = f"{stage}/train_loss"
        written = [(r["step"], r["train_loss"]) for r in rows if r["stage"] == stage]
        assert written
        told = client.get_metric_history(ids["mlflow"], name)
        assert sorted((one.step, one.value) for one in told) == written
        told_wandb = history(offline, name)
        assert [(row[f"{stage}/step"], row[name]) for row in told_wandb] == written


@pytest.mark.slow
def test_steps_that_are_done_again_are_not_told_again(tmp_path: Path, told_here: Path) -> None:
    settings, layout = made(tmp_path, trackers=["wandb"])
    for steps, ends in (((10, 20), RuntimeError), ((20, 30), None)):
        time.sleep(1)  # wandb names its folders by the second
        with suppress(RuntimeError), trackers.tracked(settings, layout) as told:
            for step in steps:
                told.write("gen-00/train", step, {"loss": step / 8})
                row = {"stage": "gen-00/train", "step": step}
                with Path(layout.metrics).open("a") as file:
                    file.write(json.dumps(row) + "\n")
            if ends is not None:
                raise ends("killed")
    found = records(told_here, told_ids(layout)["wandb"])
    rows = history(found, "gen-00/train/loss")
    assert [(row["gen-00/train/step"], row["gen-00/train/loss"]) for row in rows] == [
        (10, 1.25),
        (20, 2.5),
        (30, 3.75),
    ]
    assert [r.exit.exit_code for r in found if r.WhichOneof("record_type") == "exit"] == [1, 0]


def test_a_run_with_other_settings_is_another_run_there(tmp_path: Path, told_here: Path) -> None:
    ids: list[str] = []
    for epochs in (3, 4):
        settings, layout = made(
            tmp_path / str(epochs), train={"epochs": epochs}, trackers=["wandb"]
        )
        if ids:  # --overwrite
            before = tmp_path / "3" / "made" / "trackers.json"
            Path(layout.root, "trackers.json").write_text(before.read_text())
        with trackers.tracked(settings, layout) as told:
            told.write("gen-00/train", 10, {"loss": 1.0})
        ids.append(told_ids(layout)["wandb"])
    assert len(set(ids)) == 2


# ---------------------------------------------------------------------------------- what fails


@pytest.mark.slow
def test_a_server_that_is_away_is_mentioned_once_and_told_the_outcome_later(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, layout = made(tmp_path, trackers=["mlflow"])
    result = store.read_json(layout.result)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_ports(1)[0]}")
    capsys.readouterr()
    with trackers.tracked(settings, layout) as told:
        for step in (10, 20):
            told.write("gen-00/train", step, {"loss": 1.0})
        told.deliver(result)
    said = capsys.readouterr().out.splitlines()
    assert len([line for line in said if line.startswith("mlflow is told nothing more")]) == 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    with trackers.tracked(settings, layout) as told:
        told.deliver(result)

    from mlflow import MlflowClient

    run = MlflowClient(server).get_run(told_ids(layout)["mlflow"])
    assert run.data.metrics["gen-01/test_top1"] == 0.8
    assert run.data.params["name"] == "made"
    assert run.info.status == "FINISHED"


def test_a_damaged_record_of_ids_ends_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, layout = made(tmp_path, trackers=["wandb"])
    Path(layout.root, "trackers.json").write_text('{"wandb"')
    capsys.readouterr()
    with trackers.tracked(settings, layout):
        pass
    assert capsys.readouterr().out.rstrip().endswith("trackers are told of a new run")


def test_wandb_asks_nothing_where_it_has_no_key(tmp_path: Path) -> None:
    settings, layout = made(tmp_path, trackers=["wandb"])
    path = tmp_path / "run.yaml"
    path.write_text(dump(settings))
    code = f"""
from ns_ray import trackers
from ns_ray.config.loading import load_config
from ns_ray.store import RunLayout
with trackers.tracked(load_config({str(path)!r}), RunLayout({layout.root!r})) as told:
    told.write("gen-00/train", 10, {{"loss": 1.0}})
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("WANDB_MODE", "WANDB_DIR")}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "HOME": str(tmp_path), "WANDB_BASE_URL": "http://127.0.0.1:9"},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.splitlines() == [
        "wandb is told nothing more of this run: there is no API key; set WANDB_API_KEY, or "
        "WANDB_MODE=offline"
    ]
