"""Nodes whose clocks are an hour apart: nothing that two of them tell is compared."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ns_ray import store
from ns_ray.errors import StageError
from ns_ray.labeling.inference import span, steady_rate
from ns_ray.store import owner
from ns_ray.training.checkpoints import Checkpoints

HOUR = 3600.0

OWNING = """
import sys, time
from ns_ray.store import owner
shift, now, calendar = float(sys.argv[2]), time.time, time.gmtime
time.time = lambda: now() + shift
time.gmtime = lambda *of: calendar(*(of or [time.time()]))
owner._machine = lambda: "another"
owner.HEARTBEAT_SECONDS = owner.SETTLE_SECONDS = 0.02
with owner.owned(sys.argv[1]):
    print("owned", flush=True)
    time.sleep(600)
"""
"""An owner on another machine, whose clock differs by so many seconds."""


@pytest.mark.parametrize("ahead", [HOUR, -HOUR])
def test_neither_does_a_live_owner_look_ended_nor_a_dead_one_alive(
    ahead: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(owner, "SETTLE_SECONDS", 0.02)
    monkeypatch.setattr(owner, "STALE_SECONDS", 600.0)
    command = [sys.executable, "-c", OWNING, str(tmp_path), str(ahead)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as there:
        try:
            assert there.stdout is not None
            assert there.stdout.readline() == "owned\n"
            beats = tmp_path / "owner.json"
            then = store.read_json(str(beats))
            with pytest.raises(StageError, match="is at work here"), store.owned(str(tmp_path)):
                pass
            os.utime(beats, (beats.stat().st_mtime + ahead,) * 2)
        finally:
            there.kill()
    monkeypatch.setattr(owner, "STALE_SECONDS", 0.2)
    with store.owned(str(tmp_path)):
        mine = store.read_json(str(beats))
    assert mine["pid"] == os.getpid()
    assert (then["heartbeat"] > mine["heartbeat"]) == (ahead > 0)


def test_the_checkpoint_of_more_steps_is_taken_whatever_the_clocks_say(tmp_path: Path) -> None:
    """A worker writes, and another one goes on, on a node whose clock is an hour behind."""
    cpu, path = torch.device("cpu"), tmp_path / "last.pt"
    first = Checkpoints(str(path))
    first.write({"step": 1})
    os.utime(path, (path.stat().st_mtime + HOUR,) * 2)
    for step in (2, 3, 4):
        next_one = Checkpoints(str(path))
        state, _ = next_one.read(cpu)
        assert state is not None
        assert state["step"] == step - 1
        next_one.write({"step": step})


def test_the_rate_of_actors_is_that_of_their_work_not_of_their_clocks() -> None:
    """Two actors at ten images/s each, a shard of ten in each second."""
    spans = []
    for number in range(8):
        for clock in (0.0, HOUR):
            began = clock + number
            row = {"rows": 9, "rejected": 1, "began": began, "ended": began + 1, "now": began + 1.5}
            spans.append(span(row, 100.0 + number + 1.5))
    assert steady_rate(spans, 2) == pytest.approx(20.0)
    assert min(began for began, _, _ in spans) == 100.0
