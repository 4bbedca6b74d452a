"""A training worker's batches, on its device.

Pixels travel as uint8. On CUDA they are copied from pinned memory on a stream of their own, the
next batch while the current one is worked on. Knows nothing about models.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ns_ray.config import TrainConfig
from ns_ray.job import Job, lane_sizes
from ns_ray.loader import Loader, Sizes
from ns_ray.losses import sharpen
from ns_ray.schema import Corpus, open_corpus, open_labels, open_selection
from ns_ray.stream import Batch, Source


@dataclass(frozen=True)
class DeviceBatch:
    """A batch on the device: uint8 images [n + m, size, size, 3], int64 labels [n], and targets of
    the other m (see `losses.mixed_loss`)."""

    images: torch.Tensor
    labels: torch.Tensor
    targets: torch.Tensor | None

    def tensors(self) -> list[torch.Tensor]:
        """All of them."""
        return [t for t in (self.images, self.labels, self.targets) if t is not None]


class Feed:
    """This worker's share of the batches of each step.

    Attributes:
        sizes: of one forward pass.
        waited: seconds spent waiting for batches so far.
    """

    def __init__(
        self,
        job: Job,
        train: TrainConfig,
        corpus: Corpus,
        size: int,
        rank: int,
        world: int,
        first: int,
        device: torch.device,
    ) -> None:
        """
        Args:
            job, train, corpus: what is trained on.
            size: side of the images in pixels.
            rank, world: which worker of how many.
            first: the first step.
            device: where the batches go.
        """
        pseudo = None
        if job.selection is not None:
            selection = open_selection(job.selection)
            labels = open_labels(selection.labels) if job.soft else None
            pseudo = Source(open_corpus(selection.corpus), selection, labels, job.soft)
        self.sizes = Sizes(*lane_sizes(train, world, pseudo is not None), size)
        self.waited = 0.0
        self._temperature = job.temperature
        lanes = world * job.accumulate
        self._loaders = [
            Loader(
                Source(corpus),
                pseudo,
                self.sizes,
                train.noise,
                lane=lane,
                lanes=lanes,
                start=first,
                seed=job.seed,
                processes=job.loaders,
                in_turn=job.in_turn,
            )
            for lane in range(rank, lanes, world)
        ]
        copier = CudaCopier(device) if device.type == "cuda" else Copier(device)
        self._batches = copier.each(self._made())

    def step(self) -> Iterator[DeviceBatch]:
        """The batches of the next step, one after the other."""
        for _ in self._loaders:
            batch = next(self._batches)
            if batch.targets is not None and batch.targets.is_floating_point():
                targets = sharpen(batch.targets, self._temperature)
                batch = DeviceBatch(batch.images, batch.labels, targets)
            yield batch

    def close(self) -> None:
        """Stop making batches."""
        for loader in self._loaders:
            loader.close()

    def _made(self) -> Iterator[Batch]:
        """Batches of all steps, lane after lane."""
        while True:
            for loader in self._loaders:
                start = time.monotonic()
                batch = next(loader)
                self.waited += time.monotonic() - start
                yield batch


class Copier:
    """Brings batches to a device that shares the memory they are in."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def each(self, batches: Iterator[Batch]) -> Iterator[DeviceBatch]:
        """The same batches on the device."""
        for batch in batches:
            yield self._moved(batch)

    def _moved(self, batch: Batch) -> DeviceBatch:
        targets = None if batch.targets is None else self._tensor(batch.targets)
        return DeviceBatch(self._tensor(batch.images), self._tensor(batch.labels), targets)

    def _tensor(self, values: np.ndarray[Any, Any]) -> torch.Tensor:
        return torch.tensor(values, device=self._device)


class CudaCopier(Copier):
    """Copies a batch while the one before it is worked on, and never gets further ahead.

    Kernels are only queued by the call that asks for the next batch, so its copy is started while
    they run. Before that, the work on the batch before the last is waited for: at most two batches
    are in the device's memory.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def each(self, batches: Iterator[Batch]) -> Iterator[DeviceBatch]:
        """The same batches on the device."""
        worked_on: torch.cuda.Event | None = None
        for batch in batches:
            if worked_on is not None:
                worked_on.synchronize()
            worked_on = torch.cuda.Event()  # type: ignore[no-untyped-call]
            worked_on.record(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                moved = self._moved(batch)
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for tensor in moved.tensors():
                # Its memory was taken on the other stream: not to be reused before this one is by.
                tensor.record_stream(current)
            yield moved

    def _tensor(self, values: np.ndarray[Any, Any]) -> torch.Tensor:
        kind = torch.from_numpy(np.empty(0, values.dtype)).dtype
        pinned = torch.empty(values.shape, dtype=kind, pin_memory=True)
        np.copyto(pinned.numpy(), values)
        return pinned.to(self._device, non_blocking=True)
