"""Batches on the device: the same pixels, and on CUDA copied while the one before is worked on.

Streams and events are stood in for by ones that write down what is asked of them: the order is all
that matters, and it can be wrong on a machine without a GPU just as well.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ns_ray import loop
from ns_ray.config import TrainConfig
from ns_ray.feed import Copier, CudaCopier, DeviceBatch
from ns_ray.loop import Compiling
from ns_ray.stream import Batch

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def batches(count: int) -> Iterator[Batch]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        images = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
        images.flags.writeable = False  # as Ray hands them over
        yield Batch(images, np.arange(2), rng.random((2, 5), dtype=np.float32))


def test_what_arrives_is_what_was_sent() -> None:
    for sent, found in zip(batches(3), Copier(CPU).each(batches(3)), strict=True):
        np.testing.assert_array_equal(found.images, sent.images)
        np.testing.assert_array_equal(found.labels, sent.labels)
        np.testing.assert_array_equal(found.targets, sent.targets)
        assert found.images.dtype == torch.uint8


class Recorded:
    """CUDA's streams and events, of which only the order of calls is kept."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.events = 0
        recorded = self

        class Stream:
            def __init__(self, name: Any = None) -> None:
                self.name = name if isinstance(name, str) else "copy"

            def wait_stream(self, other: Any) -> None:
                recorded.calls.append(f"{self.name} waits for {other.name}")

        class Event:
            def __init__(self) -> None:
                self.number = recorded.events
                recorded.events += 1

            def record(self, stream: Any) -> None:
                recorded.calls.append(f"event {self.number} after what {stream.name} has")

            def synchronize(self) -> None:
                recorded.calls.append(f"host waits for event {self.number}")

        self.stream_class, self.event_class = Stream, Event
        self.compute = Stream("compute")

    @contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        self.calls.append(f"on {stream.name}:")
        yield


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    found = Recorded()
    monkeypatch.setattr(torch.cuda, "Stream", found.stream_class)
    monkeypatch.setattr(torch.cuda, "Event", found.event_class)
    monkeypatch.setattr(torch.cuda, "stream", found.on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: found.compute)
    return found


def test_a_copy_starts_while_the_batch_before_is_worked_on(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(_self: CudaCopier, batch: Batch) -> Any:
        recorded.calls.append("copy")
        return type("Moved", (), {"tensors": lambda self: [self], "record_stream": used})()

    def used(_self: Any, stream: Any) -> None:
        recorded.calls.append(f"kept for {stream.name}")

    monkeypatch.setattr(CudaCopier, "_moved", moved)
    for _ in CudaCopier(CUDA).each(batches(3)):
        recorded.calls.append("work")
    copying = ["on copy:", "copy", "compute waits for copy", "kept for compute", "work"]
    assert recorded.calls == [
        "event 0 after what compute has",
        *copying,
        # Nothing to wait for yet: the second copy overlaps with the work on the first batch.
        "host waits for event 0",
        "event 1 after what compute has",
        *copying,
        # The third needs the first batch to be done with.
        "host waits for event 1",
        "event 2 after what compute has",
        *copying,
    ]


def test_copies_come_from_pinned_memory_and_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, bool]] = []
    empty, to = torch.empty, torch.Tensor.to
    pinned: list[bool] = []

    def fake_empty(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        pinned.append(pin_memory)
        return empty(*args, **kwargs)

    def fake_to(tensor: torch.Tensor, device: torch.device, non_blocking: bool) -> torch.Tensor:
        asked.append((device == CUDA, non_blocking))
        return to(tensor, CPU)

    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: None)
    monkeypatch.setattr(torch, "empty", fake_empty)
    monkeypatch.setattr(torch.Tensor, "to", fake_to)
    sent = next(batches(1))
    found: DeviceBatch = CudaCopier(CUDA)._moved(sent)
    assert pinned == [True] * 3
    assert asked == [(True, True)] * 3
    np.testing.assert_array_equal(found.images, sent.images)
    np.testing.assert_array_equal(found.targets, sent.targets)


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
) -> None:
    class Model(nn.Module):
        calls = 0

        def compile(self) -> None:
            Model.calls += 1

    now = 0.0
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    monkeypatch.setattr(loop.time, "monotonic", lambda: now)
    train = TrainConfig.model_validate({"compile": setting})
    compiling = Compiling(Model(), train, 20_000, 10_000, 1, device)
    left = []
    for done in range(10_001, 10_101):
        now += 20 * seconds if done <= 10_005 else seconds  # the first steps are slow
        left.append(compiling.after(done))
    assert Model.calls == int(compiled)
    told = [value for value in left if value is not None]
    assert told == ([pytest.approx(9_970)] if compiled and setting == "auto" else [])
