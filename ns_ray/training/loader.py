"""Makes training batches ahead of need, and brings them to the worker's device.

Which rows make a batch is said by rows.py. Chunks of encoded images are read once, into the object
store, and shared by the Ray tasks that decode and augment their rows; without loader processes, a
thread of the worker does it all. Pixels follow from the rows and their seed, whoever makes them.
They travel as uint8; on CUDA they are copied from pinned memory on a stream of their own, the next
batch while the current one is worked on.

Knows nothing about models. torch is imported where a worker needs it: loader processes import this
module too, and do without.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
from PIL import Image

from ns_ray.config import NoiseConfig, TrainConfig
from ns_ray.data import Augment, decode, seeded
from ns_ray.store import Corpus, open_corpus, open_labels, open_selection
from ns_ray.training.examples import Examples
from ns_ray.training.job import Job, lane_sizes
from ns_ray.training.rows import BatchRows, Chunk, Sizes, batches

if TYPE_CHECKING:
    import torch

AHEAD = 3
"""Batches per process that are made before they are asked for."""
ROUND, ROUND_BYTES = 16, 16 * 2**20
"""Most batches that a process makes in its turn, and bytes of them where there are more than
`AHEAD`."""
CHUNKS = 4
"""Chunks of a stream that are kept at hand."""
SMALL_PIXELS = 48 * 48
"""Most pixels of an image that is kept as such: 9 KiB, and its padding."""
KEPT = 2**14
"""Images that a process keeps, 100 MiB of 32 px. Of many more, few would come again soon."""


@dataclass(frozen=True)
class Batch:
    """What one forward pass needs.

    Attributes:
        images: uint8 [n + m, size, size, 3], the labeled images first.
        labels: int64 [n].
        targets: float32 [m, classes] (soft), int64 [m] (hard), or None without pseudo-labels.
        weights: float32 [m], or None where all pseudo-labeled images count alike.
    """

    images: np.ndarray[Any, np.dtype[np.uint8]]
    labels: np.ndarray[Any, np.dtype[np.int64]]
    targets: np.ndarray[Any, Any] | None
    weights: np.ndarray[Any, Any] | None = None


def make_batch(rows: BatchRows, tables: Sequence[pa.Table], noise: NoiseConfig, size: int) -> Batch:
    """Decode and augment: the same rows give the same pixels.

    Args:
        rows: which ones.
        tables: the chunk of each of their segments, those of the labeled images first.
        noise: input noise.
        size: side of the images in pixels.
    """
    augments = _augments(noise, size)
    images: list[np.ndarray[Any, Any]] = []
    targets: list[list[np.ndarray[Any, Any]]] = [[], []]
    weights: list[np.ndarray[Any, Any]] = []
    chunks = iter(tables)
    with seeded(rows.seed):
        for which, segments in enumerate((rows.labeled, rows.pseudo)):
            for segment in segments:
                stop = segment.start + segment.stride * segment.count
                taken = pa.array(np.arange(segment.start, stop, segment.stride))
                table = next(chunks).take(taken)
                targets[which].append(_targets(table["target"]))
                if "weight" in table.column_names:
                    weights.append(table["weight"].to_numpy())
                for image in table["image"]:
                    begun = _begun(image.as_buffer().to_pybytes(), augments[which])
                    images.append(augments[which].finish(begun))
    labels = np.concatenate(targets[0])
    pseudo, weighed = (np.concatenate(some) if some else None for some in (targets[1], weights))
    return Batch(np.stack(images), labels, pseudo, weighed)


_small: dict[tuple[bytes, int, int], Image.Image] = {}


def _begun(data: bytes, augment: Augment) -> Image.Image:
    """An encoded image, as `augment` goes on from it. As many small ones as there is room for are
    made once by each process."""
    size = augment.size
    if augment.crop is not None or size * size > SMALL_PIXELS:
        return augment.begin(decode(data, shrink_to=2 * size))
    key = (data, size, augment.padding)
    image = _small.get(key)
    if image is None:
        image = augment.begin(decode(data, shrink_to=2 * size))
        if len(_small) < KEPT:
            _small[key] = image
    return image


@lru_cache(maxsize=8)
def _augments(noise: NoiseConfig, size: int) -> tuple[Augment, Augment]:
    return Augment(noise, size, noise.off_labeled), Augment(noise, size, noise.off_unlabeled)


def _targets(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    array = column.combine_chunks()
    values: np.ndarray[Any, Any]
    if pa.types.is_fixed_size_list(array.type):
        flat = array.flatten().to_numpy(zero_copy_only=False)
        values = flat.reshape(len(array), array.type.list_size)
    else:
        values = array.to_numpy(zero_copy_only=False).astype(np.int64)
    return values


def _make(
    noise: NoiseConfig, size: int, asked: list[BatchRows], *tables: pa.Table
) -> list[Batch] | Batch:
    """What a loader process does: batches one after the other, of the tables in their order."""
    _yield_to_training()
    left = iter(tables)
    made = [
        make_batch(rows, list(islice(left, len(rows.labeled) + len(rows.pseudo))), noise, size)
        for rows in asked
    ]
    return made if len(made) > 1 else made[0]  # Ray takes several results, or one


@cache
def _yield_to_training() -> None:
    """Leave the threads of the forward pass most of the CPU: one of them that waits for its turn
    keeps all others waiting at the end of each layer. Not the lowest priority: they spin where they
    wait, and batches would be late (docs/performance.md)."""
    if hasattr(os, "nice"):
        os.nice(10)


_make_task = ray.remote(num_cpus=1, scheduling_strategy="DEFAULT")(_make)
_load_task = ray.remote(num_cpus=1, scheduling_strategy="DEFAULT")(Examples.load)


def from_tasks(
    examples: Sequence[Examples],
    asked: Iterator[BatchRows],
    noise: NoiseConfig,
    size: int,
    *,
    processes: int,
    in_turn: int,
) -> Generator[Batch, None, None]:
    """The batches that are asked for, made in Ray tasks ahead of need.

    Args:
        examples: the labeled images, and the pseudo-labeled ones if there are any.
        asked: the rows of the batches.
        noise: input noise.
        size: side of the images in pixels.
        processes: tasks that work at a time.
        in_turn: so many batches are made by each task while the model waits, and while it works
            on them none is: faster where both are on the same CPUs
            (docs/decisions/0015-training-in-turn.md). 0: each makes one, beside the model.
    """
    load = [lru_cache(CHUNKS)(partial(_load_task.remote, ray.put(one))) for one in examples]

    def next_ones() -> list[tuple[list[BatchRows], list[Any]]]:
        """What the next tasks make: the rows of their batches, and the chunks of these rows."""
        some = list(islice(asked, in_turn * processes or 1))
        each = max(1, -(-len(some) // processes) if in_turn else 1)
        parts = [some[at : at + each] for at in range(0, len(some), each)]
        return [(part, [t for rows in part for t in _tables(rows, load)]) for part in parts]

    pending: deque[Any] = deque()
    coming = next_ones()
    while coming or pending:
        if not (in_turn and pending):
            while coming and len(pending) < (1 if in_turn else AHEAD * processes):
                for part, tables in coming:
                    make = _make_task.options(num_returns=len(part))
                    made = make.remote(noise, size, part, *tables)
                    pending.extend(made if len(part) > 1 else [made])
                coming = next_ones()  # its chunks are loaded beside the batches before it
            if in_turn:
                ray.wait(list(pending), num_returns=len(pending))
        yield ray.get(pending.popleft())


def round_of(sizes: Sizes) -> int:
    """Batches that a loader makes in its turn: many small ones, since a round costs 40 ms beside
    them, and few large ones."""
    batch = (sizes.labeled + sizes.pseudo) * sizes.image**2 * 3
    return max(AHEAD, min(ROUND, ROUND_BYTES // batch))


def from_thread(
    examples: Sequence[Examples], asked: Iterator[BatchRows], noise: NoiseConfig, size: int
) -> Generator[Batch, None, None]:
    """The same, made in a thread of this process. Closing waits for it: a thread that is in C++
    code when the interpreter ends takes the process down with it."""
    load = [lru_cache(CHUNKS)(one.load) for one in examples]
    pool = ThreadPoolExecutor(1, thread_name_prefix="loader")

    def begin(rows: BatchRows) -> Future[Batch]:
        return pool.submit(lambda: make_batch(rows, _tables(rows, load), noise, size))

    try:
        pending = deque(begin(rows) for rows in islice(asked, AHEAD))
        while pending:
            batch = pending.popleft().result()
            pending.extend(begin(rows) for rows in islice(asked, 1))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


def _tables(rows: BatchRows, load: Sequence[Callable[[Chunk], Any]]) -> list[Any]:
    """The chunks of the rows' segments, those of the labeled images first."""
    return [
        load[which](segment.chunk)
        for which, segments in enumerate((rows.labeled, rows.pseudo))
        for segment in segments
    ]


@dataclass(frozen=True)
class DeviceBatch:
    """A batch on the device: uint8 images [n + m, size, size, 3], int64 labels [n], and targets of
    the other m (see `losses.mixed_loss`), with their weights float32 [m] if they have any."""

    images: "torch.Tensor"
    labels: "torch.Tensor"
    targets: "torch.Tensor | None"
    weights: "torch.Tensor | None" = None


class Loader:
    """This worker's share of the batches of each step, on its device.

    Attributes:
        sizes: of one forward pass.
        waited: seconds spent waiting for batches so far.
    """

    def __init__(
        self,
        job: Job,
        train: TrainConfig,
        corpus: Corpus,
        *,
        size: int,
        rank: int,
        world: int,
        first: int,
        device: "torch.device",
    ) -> None:
        """
        Args:
            job, train, corpus: what is trained on.
            size: side of the images in pixels.
            rank, world: which worker of how many.
            first: the first step.
            device: where the batches go.
        """
        examples = [Examples(corpus)]
        if job.selection is not None:
            selection = open_selection(job.selection)
            labels = open_labels(selection.labels) if job.soft else None
            pile = open_corpus(selection.corpus)
            examples.append(Examples(pile, selection, labels, job.soft))
        workers = job.lanes // train.accumulate
        self.sizes = Sizes(*lane_sizes(train, workers, len(examples) > 1), size)
        self.waited = 0.0
        self._temperature = job.temperature
        self._classes, self._smoothing = len(corpus.classes), train.label_smoothing
        streams = [one.stream(job.lanes, job.seed + which) for which, one in enumerate(examples)]
        self._lanes: list[Generator[Batch, None, None]] = []
        for lane in range(rank, job.lanes, world):
            asked = batches(streams, self.sizes, lane=lane, start=first, seed=job.seed)
            what = (examples, islice(asked, job.steps - first), train.noise, size)
            in_turn = round_of(self.sizes) if job.in_turn else 0
            self._lanes.append(
                from_tasks(*what, processes=job.loaders, in_turn=in_turn)
                if job.loaders
                else from_thread(*what)
            )
        copying = copied_ahead if device.type == "cuda" else copied
        self._batches = copying(self._made(), device)

    def step(self) -> Iterator[DeviceBatch]:
        """The batches of the next step, one after the other; where images have weights, their
        targets are multiplied by them."""
        from ns_ray.training.losses import dense, sharpen

        for _ in self._lanes:
            batch = next(self._batches)
            targets, weights = batch.targets, batch.weights
            if targets is not None and targets.is_floating_point():
                targets = sharpen(targets, self._temperature)
            if targets is not None and weights is not None:
                targets = dense(targets, self._classes, self._smoothing) * weights[:, None]
            yield DeviceBatch(batch.images, batch.labels, targets)

    def close(self) -> None:
        """Stop making batches."""
        for lane in self._lanes:
            lane.close()

    def _made(self) -> Iterator[Batch]:
        """Batches of all steps, lane after lane."""
        while True:
            for lane in self._lanes:
                start = time.monotonic()
                batch = next(lane, None)
                self.waited += time.monotonic() - start
                if batch is None:
                    return
                yield batch


def _moved(batch: Batch, move: "Callable[[np.ndarray[Any, Any]], torch.Tensor]") -> DeviceBatch:
    targets = None if batch.targets is None else move(batch.targets)
    weights = None if batch.weights is None else move(batch.weights)
    return DeviceBatch(move(batch.images), move(batch.labels), targets, weights)


def copied(made: Iterator[Batch], device: "torch.device") -> Iterator[DeviceBatch]:
    """Batches on a device that shares the memory they are in."""
    import torch

    for batch in made:
        yield _moved(batch, partial(torch.tensor, device=device))


def copied_ahead(made: Iterator[Batch], device: "torch.device") -> Iterator[DeviceBatch]:
    """Batches on a CUDA device: each is copied while the one before it is worked on.

    Kernels are only queued by the call that asks for the next batch, so its copy is started while
    they run. Before that, the work on the batch before the last is waited for: at most two batches
    are in the device's memory.
    """
    import torch

    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    worked_on: torch.cuda.Event | None = None
    for batch in made:
        current = torch.cuda.current_stream(device)
        if worked_on is not None:
            worked_on.synchronize()
        worked_on = torch.cuda.Event()  # type: ignore[no-untyped-call]
        worked_on.record(current)
        with torch.cuda.stream(copying):
            moved = _moved(batch, lambda values: _pinned(values).to(device, non_blocking=True))
        current.wait_stream(copying)
        for tensor in (moved.images, moved.labels, moved.targets, moved.weights):
            if tensor is not None:
                # Its memory was taken on the other stream: not to be reused before this one is by.
                tensor.record_stream(current)
        yield moved


def _pinned(values: np.ndarray[Any, Any]) -> "torch.Tensor":
    """A copy that CUDA can fetch by itself."""
    import torch

    kind = torch.from_numpy(np.empty(0, values.dtype)).dtype
    pinned = torch.empty(values.shape, dtype=kind, pin_memory=True)
    np.copyto(pinned.numpy(), values)
    return pinned
