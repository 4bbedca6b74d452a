"""Endless, shuffled, exactly resumable streams of training rows, and the batches made of them.

A corpus is read in chunks of a few shards, in an order drawn anew for each pass; the rows of a
chunk are permuted. Everything is decided by (seed, pass, chunk), so the rows of step s are known
without reading those before it: that is the resume position.

A stream is cut into lanes. A lane is one forward pass of a step: with W workers that accumulate A
passes there are W x A lanes, and lane l belongs to worker l mod W. One worker that accumulates two
passes sees just the batches that two workers see.

Knows nothing about models or Ray: the functions here run in Ray tasks (see train.py) or a thread.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ns_ray.augment import Augment, seeded
from ns_ray.errors import DataError
from ns_ray.images import decode
from ns_ray.schema import Corpus, PseudoLabels, Selection, dense_probs

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

    def batches(self, lane: int, size: int, start: int = 0) -> Iterator[list[Segment]]:
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
        for segment in self._segments(lane):
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

    def _segments(self, lane: int) -> Iterator[Segment]:
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
class Source:
    """Where a stream's rows come from: labeled images, or selected pseudo-labeled ones."""

    corpus: Corpus
    selection: Selection | None = None
    labels: PseudoLabels | None = None
    soft: bool = True

    def stream(self, lanes: int, seed: int) -> Stream:
        """The rows of this source as a stream."""
        counts = [
            shard.rows if self.selection is None else self.selection.counts.get(shard.name, 0)
            for shard in self.corpus.shards
        ]
        sizes = tuple(shard.bytes for shard in self.corpus.shards)
        return Stream(tuple(counts), sizes, lanes, seed)

    def load(self, chunk: Chunk) -> pa.Table:
        """Permuted rows of a chunk: key, image, and target (an int32 class, or float32 [classes]).

        Raises:
            DataError: a selected key is missing from the corpus or from the pseudo-labels.
        """
        tables = [self._shard(index) for index in chunk.shards]
        table = pa.concat_tables(tables)
        order = np.random.default_rng(chunk.seed).permutation(table.num_rows)
        return table.take(pa.array(order)).combine_chunks()

    def _shard(self, index: int) -> pa.Table:
        shard = self.corpus.shards[index]
        if self.selection is None:
            table = self.corpus.read(shard, ["key", "image", "label"])
            return table.rename_columns(["key", "image", "target"])
        chosen = self.selection.read(shard.name, ["key", "label", "copies"])
        images = self.corpus.read(shard, ["key", "image"])
        where = _rows_of(chosen["key"], images["key"], f"corpus shard {shard.name}")
        targets: pa.Array = chosen["label"].combine_chunks()
        if self.soft and self.labels is not None:
            probs = self.labels.read(shard.name)
            rows = _rows_of(chosen["key"], probs["key"], f"pseudo-labels of {shard.name}")
            dense = dense_probs(probs.take(rows), len(self.labels.classes))
            targets = pa.FixedSizeListArray.from_arrays(pa.array(dense.reshape(-1)), dense.shape[1])
        table = pa.table({"key": chosen["key"], "image": images["image"].take(where)})
        table = table.append_column("target", targets)
        copies = chosen["copies"].to_numpy()
        return table.take(pa.array(np.repeat(np.arange(len(copies)), copies)))


def _rows_of(keys: pa.ChunkedArray, among: pa.ChunkedArray, what: str) -> pa.Array:
    rows = pc.index_in(keys, value_set=among.combine_chunks())
    if rows.null_count:
        missing = keys.filter(pc.is_null(rows))[0].as_py()
        raise DataError(f"key {missing!r} is missing from the {what}; label and select again")
    return rows.combine_chunks()


@dataclass(frozen=True)
class Batch:
    """What one forward pass needs.

    Attributes:
        images: uint8 [n + m, size, size, 3], the labeled images first.
        labels: int64 [n].
        targets: float32 [m, classes] (soft), int64 [m] (hard), or None without pseudo-labels.
    """

    images: np.ndarray[Any, np.dtype[np.uint8]]
    labels: np.ndarray[Any, np.dtype[np.int64]]
    targets: np.ndarray[Any, Any] | None


def make_batch(
    labeled: Sequence[tuple[pa.Table, Segment]],
    pseudo: Sequence[tuple[pa.Table, Segment]],
    augment_labeled: Augment,
    augment_pseudo: Augment,
    seed: int,
) -> Batch:
    """Decode and augment the rows of a batch; the same seed gives the same pixels."""
    with seeded(seed):
        return _made(labeled, pseudo, augment_labeled, augment_pseudo)


def _made(
    labeled: Sequence[tuple[pa.Table, Segment]],
    pseudo: Sequence[tuple[pa.Table, Segment]],
    augment_labeled: Augment,
    augment_pseudo: Augment,
) -> Batch:
    images: list[np.ndarray[Any, Any]] = []
    targets: list[list[np.ndarray[Any, Any]]] = [[], []]
    for which, (parts, augment) in enumerate(
        [(labeled, augment_labeled), (pseudo, augment_pseudo)]
    ):
        for table, segment in parts:
            stop = segment.start + segment.stride * segment.count
            rows = table.take(pa.array(np.arange(segment.start, stop, segment.stride)))
            targets[which].append(_targets(rows["target"]))
            for image in rows["image"]:
                pixels = decode(image.as_buffer().to_pybytes(), shrink_to=2 * augment.size)
                images.append(augment(pixels))
    labels = np.concatenate(targets[0])
    return Batch(np.stack(images), labels, np.concatenate(targets[1]) if targets[1] else None)


def _targets(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    array = column.combine_chunks()
    values: np.ndarray[Any, Any]
    if pa.types.is_fixed_size_list(array.type):
        flat = array.flatten().to_numpy(zero_copy_only=False)
        values = flat.reshape(len(array), array.type.list_size)
    else:
        values = array.to_numpy(zero_copy_only=False).astype(np.int64)
    return values
