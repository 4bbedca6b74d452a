"""Which rows make which training batch: an endless, shuffled, exactly resumable order of the rows.

A corpus is read in chunks of a few shards, in an order drawn anew for each pass; the rows of a
chunk are permuted. Everything is decided by (seed, pass, chunk), so the rows of step s are known
without reading those before it: that is the resume position.

A stream is cut into lanes. A lane is one forward pass of a step: with W workers that accumulate A
passes there are W x A lanes, and lane l belongs to worker l mod W. One worker that accumulates two
passes sees just the batches that two workers see.

Pure: reads nothing, and knows nothing about images or Ray (see loader.py).
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ns_ray.errors import DataError

CHUNK_ROWS = 8192
"""Rows that are shuffled together."""
CHUNK_BYTES = 128 * 2**20
"""Most encoded bytes of one chunk."""


@dataclass(frozen=True)
class Chunk:
    """Some shards of a corpus, read together in one pass."""

    shards: tuple[int, ...]
    seed: tuple[int, ...]
    """Seeds the permutation of its rows."""
    rows: int


@dataclass(frozen=True)
class Segment:
    """Rows start, start + stride, ... (count of them) of a permuted chunk."""

    chunk: Chunk
    start: int
    stride: int
    count: int


@dataclass(frozen=True)
class Stream:
    """The rows of a corpus, pass after pass.

    Attributes:
        rows: rows of each shard, copies counted.
        bytes: encoded bytes of each shard.
        lanes: how many lanes share the rows.
        seed: decides every order.
    """

    rows: tuple[int, ...]
    bytes: tuple[int, ...]
    lanes: int
    seed: int

    def chunks(self, epoch: int) -> list[Chunk]:
        """The chunks of one pass, in reading order."""
        live = np.flatnonzero(np.asarray(self.rows))
        order = np.random.default_rng([self.seed, epoch]).permutation(live)
        chunks: list[Chunk] = []
        group: list[int] = []
        for shard in order.tolist():
            rows = sum(self.rows[i] for i in group) + self.rows[shard]
            size = sum(self.bytes[i] for i in group) + self.bytes[shard]
            if group and (rows > CHUNK_ROWS or size > CHUNK_BYTES):
                chunks.append(self._chunk(group, epoch, len(chunks)))
                group = []
            group.append(shard)
        if group:
            chunks.append(self._chunk(group, epoch, len(chunks)))
        return chunks

    def _chunk(self, shards: list[int], epoch: int, index: int) -> Chunk:
        rows = sum(self.rows[i] for i in shards)
        return Chunk(tuple(sorted(shards)), (self.seed, epoch, index), rows)

    def segments(self, lane: int, size: int, start: int = 0) -> Iterator[list[Segment]]:
        """The rows of one lane's batches, endlessly.

        Args:
            lane: 0 <= lane < lanes.
            size: rows in a batch.
            start: batches to leave out: the resume position.
        """
        if not any(self.rows):
            raise DataError("the training images are empty; see data.labeled and select.threshold")
        skip = start * size
        batch: list[Segment] = []
        missing = size
        for segment in self._units(lane):
            if skip >= segment.count:
                skip -= segment.count
                continue
            at, skip = skip, 0
            while at < segment.count:
                take = min(missing, segment.count - at)
                first = segment.start + at * segment.stride
                batch.append(Segment(segment.chunk, first, segment.stride, take))
                at, missing = at + take, missing - take
                if missing == 0:
                    yield batch
                    batch, missing = [], size

    def _units(self, lane: int) -> Iterator[Segment]:
        """Units (a chunk, or a part of it when there are fewer chunks than lanes) of one lane."""
        epoch = unit = 0
        while True:
            chunks = self.chunks(epoch)
            parts = -(-self.lanes // len(chunks))
            for chunk in chunks:
                for part in range(parts):
                    if chunk.rows <= part:
                        continue  # not a unit: a lane that got only these would wait for ever
                    if unit % self.lanes == lane:
                        yield Segment(chunk, part, parts, len(range(part, chunk.rows, parts)))
                    unit += 1
            epoch += 1


@dataclass(frozen=True)
class Sizes:
    """One forward pass: labeled images, pseudo-labeled images, and their side in pixels."""

    labeled: int
    pseudo: int
    image: int


@dataclass(frozen=True)
class BatchRows:
    """The rows of one batch.

    Attributes:
        labeled: those of the first stream.
        pseudo: those of the second, if there is one.
        seed: decides the noise of their images.
    """

    labeled: tuple[Segment, ...]
    pseudo: tuple[Segment, ...]
    seed: int


def batches(
    streams: Sequence[Stream], sizes: Sizes, *, lane: int, start: int, seed: int
) -> Iterator[BatchRows]:
    """The rows of one lane's batches, endlessly.

    Args:
        streams: that of the labeled images, and that of the pseudo-labeled ones if there are any.
        sizes: how many rows of each make a batch.
        lane: which of the streams' lanes.
        start: the first step.
        seed: decides, with lane and step, the seed of each batch.

    Raises:
        DataError: a stream has no rows.
    """
    counts = (sizes.labeled, sizes.pseudo)
    segments = [
        stream.segments(lane, count, start) for stream, count in zip(streams, counts, strict=False)
    ]
    for step in itertools.count(start):
        labeled, *pseudo = (tuple(next(each)) for each in segments)
        batch_seed = hash((seed, lane, step)) % 2**63
        yield BatchRows(labeled, pseudo[0] if pseudo else (), batch_seed)
