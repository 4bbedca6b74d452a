"""What a training finds out in its first steps, with a clock that is told how long they take."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from ns_ray import tuning
from ns_ray.config import TrainConfig
from ns_ray.tuning import Compiling, Threads

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def train(threads: Threads, clock: list[float], cost: dict[int, float], steps: range) -> list[int]:
    """Steps after which half of the threads were found to be faster."""
    found = []
    for done in steps:
        clock[0] += cost[torch.get_num_threads()]
        if threads.after(done):
            found.append(done)
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(tuning.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(("half", "settled"), [(0.8, 2), (0.97, 4), (2.0, 4)])
def test_half_of_the_threads_are_kept_where_that_is_clearly_faster(
    half: float, settled: int, clock: list[float]
) -> None:
    threads = Threads(4, 1000, CPU, adapts=True)
    found = train(threads, clock, {4: 1.0, 2: half}, range(1, 1001))
    assert threads.settled == threads.count == torch.get_num_threads() == settled
    assert found == ([24] if settled == 2 else [])
    assert threads.facts() == {"torch_threads": settled}


def test_a_continued_training_keeps_what_was_settled(clock: list[float]) -> None:
    threads = Threads(4, 1000, CPU, adapts=True)
    threads.go_on(500, 2)
    assert train(threads, clock, {4: 0.1, 2: 1.0}, range(501, 1001)) == []
    assert torch.get_num_threads() == 2
    undecided = Threads(4, 1000, CPU, adapts=True)
    undecided.go_on(10, None)
    assert train(undecided, clock, {4: 1.0, 2: 0.5}, range(11, 1001)) == [34]


@pytest.mark.parametrize(
    ("most", "steps", "device", "adapts"),
    [(4, 1000, CPU, False), (1, 1000, CPU, True), (4, 40, CPU, True), (4, 1000, CUDA, True)],
)
def test_nothing_is_tried_where_there_is_no_choice(
    most: int, steps: int, device: torch.device, adapts: bool, clock: list[float]
) -> None:
    threads = Threads(most, steps, device, adapts)
    cost: Any = dict.fromkeys(range(1, 65), 1.0) | {most // 2: 0.1}
    assert train(threads, clock, cost, range(1, steps + 1)) == []
    assert threads.count == most
    assert threads.facts() == ({"torch_threads": most} if device == CPU else {})


@pytest.mark.parametrize(
    ("setting", "device", "seconds", "compiled"),
    [
        ("auto", CUDA, 1.0, True),  # 9,970 s are left
        ("auto", CUDA, 0.1, False),
        ("auto", CPU, 1.0, False),
        ("never", CUDA, 1.0, False),
        ("always", CPU, 0.1, True),
    ],
)
def test_a_long_training_is_compiled(
    setting: str,
    device: torch.device,
    seconds: float,
    compiled: bool,
    monkeypatch: pytest.MonkeyPatch,
    clock: list[float],
) -> None:
    class Model(nn.Module):
        calls = 0

        def compile(self) -> None:
            Model.calls += 1

    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    config = TrainConfig.model_validate({"compile": setting})
    compiling = Compiling(Model(), config, 20_000, 10_000, 1, device)
    left = []
    for done in range(10_001, 10_101):
        clock[0] += 20 * seconds if done <= 10_005 else seconds  # the first steps are slow
        left.append(compiling.after(done))
    assert Model.calls == int(compiled)
    told = [value for value in left if value is not None]
    assert told == ([pytest.approx(9_970)] if compiled and setting == "auto" else [])
