"""One process works in a folder at a time: others are refused, or take over from one that ended."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from broken_files import jpeg
from packed import keys
from tiny import write_config
from typer.testing import CliRunner

from ns_ray import store
from ns_ray.api import whole
from ns_ray.commands import app
from ns_ray.config.loading import load_config
from ns_ray.data.stage import pack
from ns_ray.errors import DataError, StageError
from ns_ray.store import owner
from ns_ray.store.corpora import open_corpus

PACKING = """
import sys, time
from pathlib import Path
from ns_ray.data import packing, stage
work, (source, out) = packing.pack_chunk, sys.argv[1:]
def slowly(job, index, chunk):
    part = work(job, index, chunk)
    while not Path(out + ".go").exists():
        time.sleep(0.01)
    return part
packing.pack_chunk = slowly
print(stage.pack(source, out=out, rows_per_shard=10).rows)
"""
OWNING = """
import sys, time
from ns_ray import store
with store.owned(sys.argv[1]):
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(owner, "STALE_SECONDS", 0.2)
    monkeypatch.setattr(owner, "SETTLE_SECONDS", 0.02)


@contextmanager
def process(program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A program that has written something before this goes on, and is gone in the end."""
    with subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def until(true: Callable[[], bool], running: subprocess.Popen[str]) -> None:
    while not true():
        assert running.poll() is None
        time.sleep(0.01)


def elsewhere(folder: Path, beats: int = 1) -> None:
    """The file of an owner on another machine."""
    there = {"host": "node-7", "pid": 4711, "machine": "another", "token": "theirs"}
    store.write_json(f"{folder}/owner.json", {**there, "heartbeat": "a while ago", "beats": beats})


def here(folder: Path) -> None:
    """The file of an owner that is a living process of this machine."""
    parent = os.getppid()
    facts = {"machine": owner._machine(), "born": owner._born(parent), "token": "theirs"}
    store.write_json(f"{folder}/owner.json", {"host": "here", "pid": parent, **facts})


def test_two_packings_into_one_folder_do_not_destroy_each_other(tmp_path: Path) -> None:
    source, out = tmp_path / "t.parquet", tmp_path / "out"
    data = [jpeg(i) for i in range(30)]
    pq.write_table(pa.table({"image": data}), source, row_group_size=15)
    with process(PACKING, source, out) as first:
        until(lambda: bool([*out.glob("part-*.json")]), first)
        with pytest.raises(StageError, match=rf"process {first.pid} on .*last heartbeat 20"):
            pack(str(source), out=str(out), rows_per_shard=10)
        Path(f"{out}.go").touch()
        assert first.communicate()[0].split()[-1] == "30"
    assert len(keys(open_corpus(str(out)))) == 30
    assert not (out / "owner.json").exists()
    assert pack(str(source), out=str(out), rows_per_shard=10).rows == 30


def test_a_killed_owner_is_followed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(owner, "STALE_SECONDS", 600.0)
    with process(OWNING, tmp_path) as first:
        until((tmp_path / "owner.json").exists, first)
        with pytest.raises(StageError, match="wait until it has ended"), store.owned(str(tmp_path)):
            pass
        assert json.loads((tmp_path / "owner.json").read_text())["pid"] == first.pid
        first.kill()
        os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # a zombie has ended, too
        with store.owned(str(tmp_path)):
            found = json.loads((tmp_path / "owner.json").read_text())
            assert found["pid"] == os.getpid()
    assert f"taking over from process {first.pid}" in capsys.readouterr().out
    assert not (tmp_path / "owner.json").exists()


def test_a_process_that_got_the_id_of_an_owner_is_not_the_owner(tmp_path: Path) -> None:
    here(tmp_path)
    found = json.loads((tmp_path / "owner.json").read_text())
    with pytest.raises(StageError), store.owned(str(tmp_path)):
        pass
    store.write_json(f"{tmp_path}/owner.json", {**found, "born": "earlier"})
    with store.owned(str(tmp_path)):
        pass


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_an_owner_elsewhere_that_stands_still_has_ended(
    scheme: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere(tmp_path)
    with store.owned(f"{scheme}{tmp_path}"):
        assert json.loads((tmp_path / "owner.json").read_text())["pid"] == os.getpid()
    said = capsys.readouterr().out
    assert "process 4711 on node-7" in said
    assert "waiting up to" in said
    assert "taking over" in said


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_an_owner_elsewhere_that_moves_is_at_work(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "STALE_SECONDS", 600.0)
    elsewhere(tmp_path)
    beat = threading.Timer(0.05, elsewhere, (tmp_path, 2))
    beat.start()
    with (
        pytest.raises(StageError, match="process 4711 on node-7"),
        store.owned(f"{scheme}{tmp_path}"),
    ):
        pass
    beat.join()
    assert json.loads((tmp_path / "owner.json").read_text())["token"] == "theirs"


def test_of_two_that_find_nobody_in_a_store_one_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = "ns_ray.store.owner.time.sleep"
    monkeypatch.setattr(later, lambda _: here(tmp_path))  # the other writes, too
    with pytest.raises(StageError, match="is at work here"), store.owned(f"file://{tmp_path}"):
        pass
    assert json.loads((tmp_path / "owner.json").read_text())["token"] == "theirs"


def test_work_ends_when_another_has_taken_over(tmp_path: Path) -> None:
    def work() -> None:
        with store.owned(str(tmp_path)):
            elsewhere(tmp_path)
            time.sleep(600)

    heard = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a script's background is deaf
    try:
        with pytest.raises(StageError, match=r"no longer ours: process 4711 on node-7"):
            work()
    finally:
        signal.signal(signal.SIGINT, heard)
    assert json.loads((tmp_path / "owner.json").read_text())["token"] == "theirs"


def test_nothing_is_published_where_another_has_taken_over(tmp_path: Path) -> None:
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a script
    facts: dict[str, Any] = {"fingerprint": "f", "files": [], "facts": {}, "inputs": {}}

    def work() -> None:
        with store.owned(str(tmp_path)):
            elsewhere(tmp_path)
            while True:
                store.publish(f"{tmp_path}/stage", stage="label", seconds=0.0, **facts)

    try:
        with pytest.raises(StageError, match="no longer ours"):
            work()
    finally:
        signal.signal(signal.SIGINT, ignored)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_folder_is_left_however_the_work_ends(error: type[BaseException], tmp_path: Path) -> None:
    def work() -> None:
        with store.owned(str(tmp_path)):
            assert (tmp_path / "owner.json").exists()
            raise error

    with pytest.raises(error):
        work()
    assert list(tmp_path.iterdir()) == []


def test_stages_of_a_run_own_nothing_themselves(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "run-2"
    with store.owned(str(run)):
        with store.owned(f"{run}/gen-00/bundle"), store.claimed(str(run / "x"), "f") as done:
            assert done is None
            assert [path.name for path in run.rglob("*")] == ["owner.json"]
        with store.owned(str(other)):
            assert (other / "owner.json").exists()


def test_a_verb_is_refused_before_it_starts_anything(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [jpeg(0)]}), tmp_path / "t.parquet")
    here(tmp_path / "out")
    arguments = ["pack", "--data", str(tmp_path / "t.parquet"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == StageError.exit_code
    assert "is at work here; wait until it has ended" in done.output
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["owner.json"]


def test_a_mistake_leaves_no_folder_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError), store.owned(f"{tmp_path}/out"):
        raise DataError("there is no such source")
    assert list(tmp_path.iterdir()) == []


def test_what_is_finished_needs_no_owner(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for i in range(3):
        (tmp_path / "set" / f"{i}.jpg").write_bytes(jpeg(i))
    out = tmp_path / "out"
    pack(str(tmp_path / "set"), out=str(out))
    here(out)
    assert pack(str(tmp_path / "set"), out=str(out)).rows == 3


def test_a_second_driver_of_a_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole, "_work", lambda *_: pytest.fail("it has begun"))
    settings = {"data.labeled": "digits", "storage": str(tmp_path / "runs")}
    path = write_config(tmp_path / "run.yaml", {"data.unlabeled": ["rest"], **settings})
    config = load_config(str(path), [])
    root = tmp_path / "runs" / config.name
    here(root)
    with pytest.raises(StageError, match="is at work here"):
        whole.execute(config)
    assert [file.name for file in root.iterdir()] == ["owner.json"]


def test_the_age_of_a_run_is_not_that_of_a_heartbeat(tmp_path: Path) -> None:
    elsewhere(tmp_path)
    assert store.changed(str(tmp_path)) is None
