"""What people and machines read of a run."""

import io
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.util.tensor_util import make_ndarray

from ns_ray import log, store


class Clock:
    """Time that moves only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Lines written to an output that is no terminal."""
    output = io.StringIO()
    console = Console(
        file=output, highlight=False, markup=False, emoji=False, width=log.PLAIN_WIDTH
    )
    monkeypatch.setattr(log, "console", console)
    return lambda: output.getvalue().splitlines()


def test_without_a_terminal_there_is_a_line_now_and_then(
    clock: Clock, plain: Callable[[], list[str]]
) -> None:
    with log.progress("label gen-01", 1000) as meter:
        for _ in range(10):
            clock.now += 3
            meter.add(100)
    assert plain() == [
        "label gen-01: 400/1,000 33 images/s, 18 s left",
        "label gen-01: 800/1,000 33 images/s, 6 s left",
        "label gen-01: 1,000 images in 30.0 s, 33 images/s",
    ]


def test_plain_output_has_no_escape_codes(clock: Clock, plain: Callable[[], list[str]]) -> None:
    log.say("done")
    with log.progress("train", 10, "steps") as meter:
        clock.now += 60
        meter.add(5)
    assert plain()[0] == "done"
    assert plain()[1].startswith("train: 5/10 ")
    assert not any("\x1b" in line or "\r" in line for line in plain())


def test_what_is_said_is_printed_as_it_is(plain: Callable[[], list[str]]) -> None:
    long = "/runs/" + "x" * 300
    log.say("data.unlabeled=[rest] [/red] :art: [bold]")
    log.say(long)
    assert plain() == ["data.unlabeled=[rest] [/red] :art: [bold]", long]


def test_a_terminal_gets_a_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=100, markup=False)
    monkeypatch.setattr(log, "console", console)
    with log.progress("label gen-01", 1000) as meter:
        meter.add(1000)
    assert "label gen-01" in output.getvalue()
    assert "1,000/1,000" in output.getvalue()
    assert "\x1b[" in output.getvalue()


def test_the_rate_ignores_work_of_earlier_runs(
    clock: Clock, plain: Callable[[], list[str]]
) -> None:
    with log.progress("label", 1000) as meter:
        meter.skip(900)
        clock.now += 10
        meter.add(50)
        assert meter.done == 950
        assert meter.rate == pytest.approx(5.0)
        clock.now += 10
        meter.add(50)
    assert plain()[0] == "label: 950/1,000 5 images/s, 10 s left"
    assert plain()[-1] == "label: 1,000 images in 20.0 s, 5 images/s"


def test_waiting_is_shown_when_it_matters(clock: Clock, plain: Callable[[], list[str]]) -> None:
    with log.progress("train", 100, "steps") as meter:
        clock.now += 10
        meter.add(50, waited=4.0)
        assert meter.note() == "5 steps/s, 40% waiting for input"
        clock.now += 90
        meter.add(50, waited=0.5)
        assert meter.note() == "1 steps/s"  # 4.5 %
    assert plain()[0].endswith("5 steps/s, 40% waiting for input, 10 s left")


@pytest.mark.parametrize(
    ("steps", "said"), [(2, "0.02"), (23, "0.23"), (145, "1.4"), (999, "10"), (123456, "1,235")]
)
def test_a_slow_rate_is_not_said_to_be_none(clock: Clock, steps: int, said: str) -> None:
    with log.progress("train", 123456, "steps") as meter:
        clock.now += 100
        meter.add(steps)
        assert meter.note() == f"{said} steps/s"


def test_nothing_to_do_is_no_error(clock: Clock, plain: Callable[[], list[str]]) -> None:
    with log.progress("label", 0) as meter:
        meter.skip(0)
    assert plain() == ["label: 0 images in 0.0 s, 0 images/s"]


# ------------------------------------------------------------------------------------- metrics


def test_metrics_can_be_read_back_by_line_and_by_tensorboard(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    metrics = log.Metrics(path)
    metrics.write("gen-00/train", 10, {"train_loss": 2.5, "lr": 0.1})
    metrics.write("gen-00/train", 20, {"train_loss": 1.5, "lr": 0.05})
    metrics.close()
    metrics.close()

    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["stage"], row["step"], row["train_loss"]) for row in rows] == [
        ("gen-00/train", 10, 2.5),
        ("gen-00/train", 20, 1.5),
    ]
    assert all(row["time"] > 1e9 for row in rows)

    events = read_events(path.parent / "tensorboard" / "gen-00" / "train")
    assert set(events.Tags()["scalars"]) == {"train_loss", "lr"}
    assert scalars(events, "train_loss") == [(10, 2.5), (20, 1.5)]


def read_events(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def scalars(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_steps_that_are_done_again_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count(1_800_000_000)  # a file of events is named by the second
    monkeypatch.setattr("time.time", lambda: float(next(seconds)))
    path = tmp_path / "metrics.jsonl"
    told: list[tuple[str, int]] = []
    for start, end in (
        (0, 60),
        (30, 50),
        (40, 80),
    ):  # killed at 60 and 50, checkpoints at 30 and 40
        metrics = log.Metrics(path, lambda stage, step, _: told.append((stage, step)))
        if not start:
            for step in range(10, 101, 10):
                metrics.write("gen-00/train", step, {"loss": 7.0})
        for step in range(start + 10, end + 1, 10):
            metrics.write("gen-01/train", step, {"loss": float(start + step)})
        metrics.close()

    kept = [(10, 10.0), (20, 20.0), (30, 30.0), (40, 70.0), (50, 90.0), (60, 100.0)]
    kept += [(70, 110.0), (80, 120.0)]
    folder = tmp_path / "tensorboard"
    assert scalars(read_events(folder / "gen-01" / "train"), "loss") == kept
    assert len(scalars(read_events(folder / "gen-00" / "train"), "loss")) == 10
    multiplexer = EventMultiplexer(tensor_size_guidance={"scalars": 0})  # what TensorBoard serves
    multiplexer.AddRunsFromDirectory(str(folder)).Reload()
    assert sorted(multiplexer.Runs()) == ["gen-00/train", "gen-01/train"]
    served = multiplexer.Tensors("gen-01/train", "loss")
    assert [(e.step, float(make_ndarray(e.tensor_proto))) for e in served] == kept

    rows: list[dict[str, Any]] = []  # as store/metrics.py says
    for line in path.read_text().splitlines():
        row = json.loads(line)
        rows = [r for r in rows if r["stage"] != row["stage"] or r["step"] < row["step"]] + [row]
    assert [(r["step"], r["loss"]) for r in rows if r["stage"] == "gen-01/train"] == kept
    assert store.last_steps(str(path)) == {"gen-00/train": 100, "gen-01/train": 80}
    assert told[-1] == ("gen-01/train", 80)


def test_a_second_run_appends(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        metrics = log.Metrics(path)
        metrics.write("train", step, {"loss": 1.0})
        metrics.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"ste')
    log.Metrics(path).write("train", 2, {})
    first, torn, last = path.read_text().splitlines()
    assert (json.loads(first)["step"], torn, json.loads(last)["step"]) == (1, '{"ste', 2)


def test_tensorboard_can_follow(tmp_path: Path, clock: Clock) -> None:
    metrics = log.Metrics(tmp_path / "metrics.jsonl")
    metrics.write("train", 1, {"loss": 2.5})
    clock.now += log.FLUSH_SECONDS
    metrics.write("train", 2, {"loss": 1.5})
    assert scalars(read_events(tmp_path / "tensorboard" / "train"), "loss") == [(1, 2.5), (2, 1.5)]
    metrics.close()


def test_events_that_cannot_be_written_cost_no_rows(
    tmp_path: Path, plain: Callable[[], list[str]]
) -> None:
    (tmp_path / "tensorboard").write_text("no folder")
    metrics = log.Metrics(tmp_path / "metrics.jsonl")
    for step in (1, 2):
        metrics.write("train", step, {"loss": 2.5})
    metrics.close()
    assert store.last_steps(str(tmp_path / "metrics.jsonl")) == {"train": 2}
    assert len(plain()) == 1


def test_metrics_that_cannot_be_written_are_mentioned_once(
    tmp_path: Path, plain: Callable[[], list[str]]
) -> None:
    (tmp_path / "file").write_text("no folder")
    metrics = log.Metrics(tmp_path / "file" / "metrics.jsonl")
    metrics.write("train", 1, {"loss": 2.5})
    metrics.write("train", 2, {"loss": 1.5})
    metrics.close()
    assert plain() == [f"metrics are lost: cannot write {tmp_path}/file/metrics.jsonl: File exists"]
