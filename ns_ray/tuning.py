"""What a training finds out about the machine in its first steps: whether compiling the model pays,
and how many CPUs it should leave to the loaders.
"""

import time
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ns_ray.config import TrainConfig

COMPILE_PAYS_SECONDS = 1800.0
"""torch.compile takes one to three minutes for a forward and a backward pass of the larger models
and gains a tenth or more: worth it above this."""


class Threads:
    """The torch threads of the model on a CPU: all that the worker has, or half of them where the
    first steps are faster so. Loaders work on the same CPUs, and a thread that has to wait for one
    keeps the others waiting at the end of each layer: with a small model, whose steps are short
    beside the making of their batches, that costs more than the second half brings
    (docs/performance.md).

    Attributes:
        count: threads now.
        settled: threads for the rest of the training; None as long as that is open.
    """

    WARM, MEASURED = 4, 8
    """Steps before and while each number is measured: the first ones have batches ready."""
    FASTER = 1.05
    """How much faster half must be, so that equally good numbers don't change places by chance."""

    def __init__(self, most: int, steps: int, device: torch.device, adapts: bool) -> None:
        self.count = self._most = most
        self._steps, self._first = steps, 0
        self._started = self._seconds = 0.0
        self._on_cpu = device.type == "cpu"
        undecided = self._on_cpu and adapts and most > 1
        self.settled: int | None = None if undecided else most
        self._use(self.count)
        self._skip_if_short()

    def go_on(self, step: int, settled: int | None) -> None:
        """Continue after so many steps, with what was settled then."""
        self._first = step
        if settled is not None and self.settled is None:
            self.settled = settled
            self._use(settled)
        self._skip_if_short()

    def after(self, done: int) -> bool:
        """Call after each step with the number of steps done. Returns whether half of the threads
        were just found to be faster."""
        if self.settled is not None:
            return False
        trial = self.WARM + self.MEASURED
        at, now = done - self._first, time.monotonic()
        if at % trial == self.WARM:
            self._started = now
        elif at == trial:
            self._seconds = now - self._started
            self._use(self._most // 2)
        elif at == 2 * trial:
            faster = (now - self._started) * self.FASTER < self._seconds
            self.settled = self._most // 2 if faster else self._most
            self._use(self.settled)
            return faster
        return False

    def facts(self) -> dict[str, Any]:
        """For the bundle."""
        return {"torch_threads": self.count} if self._on_cpu else {}

    def _skip_if_short(self) -> None:
        """Where the trial would be a large part of the training, leave things as they are."""
        if self.settled is None and self._steps - self._first < 8 * self.MEASURED:
            self.settled = self._most

    def _use(self, count: int) -> None:
        self.count = count
        if self._on_cpu:
            torch.set_num_threads(count)


class Compiling:
    """Compiles the model in the middle of a training, once it is known to pay: after some steps
    have been measured, all workers take rank 0's time."""

    WARM, MEASURED = 10, 20

    def __init__(
        self,
        model: nn.Module,
        train: TrainConfig,
        steps: int,
        first: int,
        world: int,
        device: torch.device,
    ) -> None:
        self._model, self._steps, self._first = model, steps, first
        self._world, self._device = world, device
        self._waiting = train.compile == "auto" and device.type == "cuda"
        self._started = 0.0
        if train.compile == "always":
            model.compile()

    def after(self, done: int) -> float | None:
        """Call after each step with the number of steps done. Returns the seconds of work that are
        left when it has just decided to compile."""
        if not self._waiting or done - self._first not in (self.WARM, self.WARM + self.MEASURED):
            return None
        torch.cuda.synchronize(self._device)
        now = time.monotonic()
        if done - self._first == self.WARM:
            self._started = now
            return None
        self._waiting = False
        left = (now - self._started) / self.MEASURED * (self._steps - done)
        if self._world > 1:
            shared = torch.tensor([left], device=self._device)
            dist.broadcast(shared, 0)
            left = shared.item()
        if left < COMPILE_PAYS_SECONDS:
            return None
        self._model.compile()
        return left
