"""Training batches of one lane, made ahead of need: in Ray tasks, or in a thread of the worker.

Chunks of encoded images are read once, into the object store, and shared by the tasks that decode
and augment their rows. Order and pixels follow from (seed, lane, step) alone, whoever makes them.
"""

import os
import queue
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice
from typing import Any

import pyarrow as pa
import ray

from ns_ray.augment import Augment
from ns_ray.config import NoiseConfig
from ns_ray.stream import Batch, Chunk, Segment, Source, make_batch

AHEAD = 3
"""Batches per process that are made before they are asked for."""
CHUNKS = 4
"""Chunks of a stream that are kept at hand."""


Plan = tuple[list[Segment], list[Segment], int]
"""A batch to be made: its labeled and pseudo-labeled rows, and its seed."""


@dataclass(frozen=True)
class Sizes:
    """One forward pass: labeled images, pseudo-labeled images, and their side in pixels."""

    labeled: int
    pseudo: int
    image: int


@lru_cache(maxsize=8)
def _augments(noise: NoiseConfig, size: int) -> tuple[Augment, Augment]:
    return Augment(noise, size, noise.off_labeled), Augment(noise, size, noise.off_unlabeled)


def _make(
    noise: NoiseConfig,
    size: int,
    seed: int,
    labeled: list[Segment],
    pseudo: list[Segment],
    *tables: pa.Table,
) -> Batch:
    first, second = _augments(noise, size)
    split = len(labeled)
    return make_batch(
        list(zip(tables[:split], labeled, strict=True)),
        list(zip(tables[split:], pseudo, strict=True)),
        first,
        second,
        seed,
    )


def _make_politely(
    noise: NoiseConfig, size: int, plans: list[Plan], *tables: pa.Table
) -> list[Batch] | Batch:
    _yield_to_training()
    left = iter(tables)
    made = []
    for labeled, pseudo, seed in plans:
        theirs = islice(left, len(labeled) + len(pseudo))
        made.append(_make(noise, size, seed, labeled, pseudo, *theirs))
    return made if len(made) > 1 else made[0]  # Ray takes several results, or one


@cache
def _yield_to_training() -> None:
    """Leave the threads of the forward pass most of the CPU: one of them that waits for its turn
    keeps all others waiting at the end of each layer. Not the lowest priority: they spin where they
    wait, and batches would be late (docs/performance.md)."""
    if hasattr(os, "nice"):
        os.nice(10)


_make_task = ray.remote(num_cpus=1, scheduling_strategy="DEFAULT")(_make_politely)
_load_task = ray.remote(num_cpus=1, scheduling_strategy="DEFAULT")(Source.load)


class Loader:
    """Iterator over the batches of one lane, from step `start` on, endlessly."""

    def __init__(
        self,
        labeled: Source,
        pseudo: Source | None,
        sizes: Sizes,
        noise: NoiseConfig,
        *,
        lane: int,
        lanes: int,
        start: int,
        seed: int,
        processes: int,
        in_turn: bool,
    ) -> None:
        """
        Args:
            labeled: the labeled images.
            pseudo: the selected pseudo-labeled images, if any.
            sizes: images per batch of each, and their size.
            noise: input noise.
            lane, lanes: which share of the streams.
            start: the first step.
            seed: decides order and augmentation.
            processes: Ray tasks that work at a time; 0 makes batches in a thread.
            in_turn: whether they work while the model waits and rest while it works, which is
                faster where both are on the same CPUs (docs/decisions/0015-training-in-turn.md).
        """
        self._sources = [source for source in (labeled, pseudo) if source is not None]
        self._noise, self._sizes, self._seed = noise, sizes, seed
        self._lane, self._step, self._processes = lane, start, processes
        self._in_turn = in_turn
        counts = [sizes.labeled, sizes.pseudo]
        self._segments = [
            source.stream(lanes, seed + which).batches(lane, counts[which], start)
            for which, source in enumerate(self._sources)
        ]
        self._chunks: list[OrderedDict[Chunk, Any]] = [OrderedDict() for _ in self._sources]
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._iterator = self._from_tasks() if processes else self._from_thread()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def close(self) -> None:
        """Stop making batches. Waits for the thread that makes them: one that is in C++ code when
        the interpreter ends takes the process down with it."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def _next_plan(self) -> Plan:
        segments = [next(iterator) for iterator in self._segments]
        seed = hash((self._seed, self._lane, self._step)) % 2**63
        self._step += 1
        return segments[0], segments[1] if len(segments) > 1 else [], seed

    def _from_tasks(self) -> Iterator[Batch]:
        sources = [ray.put(source) for source in self._sources]
        pending: deque[Any] = deque()
        each = AHEAD if self._in_turn else 1
        make = _make_task.options(num_returns=each)

        def planned() -> tuple[list[Plan], list[Any]]:
            plans = [self._next_plan() for _ in range(each)]
            tables = [
                self._chunk(which, segment.chunk, lambda w, c: _load_task.remote(sources[w], c))
                for plan in plans
                for which, segments in enumerate(plan[:2])
                for segment in segments
            ]
            return plans, tables

        coming = planned()
        while not self._closed.is_set():
            refill = not (self._in_turn and pending)
            while refill and len(pending) < AHEAD * self._processes:
                plans, tables = coming
                coming = planned()  # its chunks are loaded beside the batches before it
                made = make.remote(self._noise, self._sizes.image, plans, *tables)
                pending.extend(made if each > 1 else [made])
            if self._in_turn and refill:
                ray.wait(list(pending), num_returns=len(pending))
            yield ray.get(pending.popleft())

    def _from_thread(self) -> Iterator[Batch]:
        ready: queue.Queue[Batch | BaseException] = queue.Queue(AHEAD)
        self._thread = threading.Thread(target=self._fill, args=(ready,), daemon=True)
        self._thread.start()
        while not self._closed.is_set():
            batch = ready.get()
            if isinstance(batch, BaseException):
                raise batch
            yield batch

    def _fill(self, ready: "queue.Queue[Batch | BaseException]") -> None:
        try:
            while not self._closed.is_set():
                labeled, pseudo, seed = self._next_plan()
                tables = [
                    self._chunk(which, segment.chunk, lambda w, c: self._sources[w].load(c))
                    for which, segments in enumerate((labeled, pseudo))
                    for segment in segments
                ]
                batch = _make(self._noise, self._sizes.image, seed, labeled, pseudo, *tables)
                while not self._closed.is_set():
                    try:
                        ready.put(batch, timeout=0.5)
                        break
                    except queue.Full:
                        continue
        except BaseException as error:  # handed to the worker, which raises it
            ready.put(error)

    def _chunk(self, which: int, chunk: Chunk, load: Any) -> Any:
        """A chunk from the few at hand, or loaded."""
        at_hand = self._chunks[which]
        if chunk not in at_hand:
            at_hand[chunk] = load(which, chunk)
            while len(at_hand) > CHUNKS:
                at_hand.popitem(last=False)
        at_hand.move_to_end(chunk)
        return at_hand[chunk]
