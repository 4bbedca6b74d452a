"""A whole run in an object store: an S3 server of moto's on this machine, which can be stopped."""

import json
import logging
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer
from tiny import flat_folder, folder_per_class, user_environment, write_config

from ns_ray import store
from ns_ray.config.loading import load_config
from ns_ray.errors import StageError
from ns_ray.planning.status import run_status
from ns_ray.store.layout import RunLayout

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PROGRAM = """
import sys
from ns_ray import commands
from ns_ray.store import mirror, owner
mirror.COPY_SECONDS = 0.5
if node := sys.argv.pop(1):
    owner._machine, owner.HEARTBEAT_SECONDS, owner.STALE_SECONDS = lambda: node, 1.0, 20.0
commands.run_app()
"""


class Store:
    """An S3 server that keeps its objects while it is down."""

    def __init__(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def down(self) -> None:
        self._server.stop()

    def up(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()


logging.getLogger("werkzeug").setLevel(logging.ERROR)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anybody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    made = Store()
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    bucket = f"http://127.0.0.1:{made.port}/bucket"
    urllib.request.urlopen(urllib.request.Request(bucket, method="PUT")).close()
    yield made
    made.down()


def start(config: Path, node: str = "") -> subprocess.Popen[str]:
    """A run, on this machine or as if on another node."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, node, "--config", str(config)],
        env=user_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait(run: subprocess.Popen[str], until: Callable[[], bool]) -> None:
    while not until():
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.2)


@pytest.mark.trial
def test_a_run_in_an_object_store_survives_a_kill_and_an_outage(
    bucket: Store, tmp_path: Path
) -> None:
    path = write_config(
        tmp_path / "run.yaml",
        {
            "data.labeled": str(folder_per_class(tmp_path / "labeled", 20)),
            "data.unlabeled": [str(flat_folder(tmp_path / "pile", 30, start=500))],
            "storage": f"s3://bucket/a folder?endpoint_override=http://127.0.0.1:{bucket.port}",
            "train.epochs": 100,
            "train.checkpoint_seconds": 1,
        },
    )
    config = load_config(str(path), [])
    layout = RunLayout.of(config)

    def metrics() -> list[dict[str, Any]]:
        if not store.exists(layout.metrics):
            return []
        return [json.loads(line) for line in store.read_bytes(layout.metrics).splitlines()]

    def training() -> str:
        return next(row.detail for row in run_status(config).lines if row.name == "gen-00 train")

    with start(path) as run:
        wait(run, lambda: "checkpoint saved" in training())
        wait(run, lambda: "step" in training() and not training().startswith("step 0"))
        run.send_signal(signal.SIGKILL)
    killed = metrics()
    assert killed

    with start(path) as run:
        wait(run, lambda: len(metrics()) > len(killed))
        bucket.down()
        text, _ = run.communicate()
    assert run.returncode == StageError.exit_code, text
    *_, last = [line for line in text.splitlines() if line.startswith("error: ")]
    assert (
        f"s3://bucket?endpoint_override=http:%2F%2F127.0.0.1:{bucket.port}/a folder/tiny/" in last
    )
    assert last.endswith("run the same command again, which goes on")
    assert "Traceback" not in text

    bucket.up()
    known = metrics()
    with start(path) as run:
        text, _ = run.communicate()
    assert run.returncode in (0, 5), text
    rows = metrics()
    assert rows[: len(known)] == known
    assert known[: len(killed)] == killed
    steps = [row["step"] for row in rows if row["stage"] == "gen-00/train"]
    assert steps[-1] == 300
    assert {row["stage"] for row in rows} == {"gen-00/train", "gen-01/train"}
    names = store.list_files(layout.root, recursive=True)
    assert "ray.log" in names
    assert len([name for name in names if name.startswith("tensorboard/")]) >= 2


@pytest.mark.trial
def test_of_two_drivers_of_a_run_on_two_nodes_one_works(
    bucket: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{bucket.port}")
    path = write_config(
        tmp_path / "run.yaml",
        {
            "data.labeled": str(folder_per_class(tmp_path / "labeled", 20)),
            "data.unlabeled": [str(flat_folder(tmp_path / "pile", 30, start=500))],
            "storage": "s3://bucket/runs",
            "train.epochs": 10_000,
        },
    )
    layout = RunLayout.of(load_config(str(path), []))

    def owner() -> int | None:
        try:
            return int(store.read_json(f"{layout.root}/owner.json")["pid"])
        except FileNotFoundError:
            return None

    with start(path, "a") as a, start(path, "b") as b:
        both = {a, b}
        while all(run.poll() is None for run in both):
            time.sleep(0.2)
        refused = a if a.poll() is not None else b
        (working,) = both - {refused}
        text = refused.communicate()[0]
        assert refused.returncode == StageError.exit_code, text
        assert f"process {working.pid} on" in text
        assert "is at work here" in text
        wait(working, lambda: store.exists(layout.metrics))
        assert owner() == working.pid
        working.send_signal(signal.SIGKILL)

    with start(path, "c") as after:
        wait(after, lambda: owner() == after.pid)
        after.send_signal(signal.SIGKILL)
        text = after.communicate()[0]
    assert f"taking over from process {working.pid}" in text
