"""Rows of a packed corpus for packing: found in tasks, by shard, and never listed.

    (labels, hashes) of all rows -> the hashes that bound each class's ranks -> rows of each shard
    neighboring shards whose rows fill one -> a span, which one task reads and packs

To find a part of a corpus takes some 40 bytes of memory a row; a whole one takes none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ns_ray import store
from ns_ray.data.sources.items import Item
from ns_ray.data.sources.listing import Packed
from ns_ray.errors import DataError
from ns_ray.store import Corpus, schema

Array = np.ndarray[Any, Any]

SCAN_ROWS = 65_536
"""A task looks at about so many rows for their keys or digests."""


@dataclass(frozen=True)
class Cut:
    """Which rows of a shard belong to the part of a corpus, and what they are called."""

    classes: tuple[str, ...]
    prefix: str
    seed: int = 0
    bounds: tuple[Array, Array] | None = None
    """Lowest and highest hash of each class, uint64. None: all rows."""

    def inside(self, labels: Array, hashes: Array) -> Array:
        """Which rows, bool [n], are in the part.

        Args:
            labels: int32 [n], -1 for none.
            hashes: uint64 [n].
        """
        assert self.bounds is not None
        low, high = self.bounds
        kept: Array = (labels >= 0) & (low[labels] <= hashes) & (hashes <= high[labels])
        return kept


@dataclass(frozen=True)
class Span:
    """Rows of some neighboring shards, packed by one task."""

    cut: int
    """Index of their `Cut`."""
    files: tuple[str, ...]
    rows: int
    bytes: int
    """About."""
    limit: int
    """Most rows in a shard made of them."""


def scans(corpus: Corpus) -> list[list[str]]:
    """Files of a corpus in groups, each for one task that looks at all rows of them."""
    groups: list[list[str]] = []
    rows = SCAN_ROWS
    for shard in corpus.shards:
        if rows >= SCAN_ROWS:
            groups.append([])
            rows = 0
        groups[-1].append(store.join(corpus.path, shard.file))
        rows += shard.rows
    return groups


def ranked(job: object, files: Sequence[str], seed: int) -> list[tuple[Array, Array]]:
    """Labels, int32 [n] with -1 for none, and hashes, uint64 [n], of each file's rows."""
    return [_ranked(columns(file, ["key", "label"]), seed) for file in files]


def columns(file: str, names: list[str]) -> pa.Table:
    """Some columns of all rows of a shard.

    Raises:
        DataError: the file is no shard of a corpus.
    """
    return store.read_table(file, names)


def _ranked(table: pa.Table, seed: int) -> tuple[Array, Array]:
    labels = table.column("label").fill_null(-1).to_numpy().astype(np.int32, copy=False)
    return labels, schema.hash_keys(table.column("key"), seed)


def bounds(part: Packed, rows: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Lowest and highest hash of each class's ranks; an empty range has the lowest above the
    highest.

    Args:
        part: with ranks.
        rows: what `ranked` gives for all its shards.

    Raises:
        DataError: the shards hold other rows than the manifest says.
    """
    assert part.ranks is not None
    labels = np.concatenate([found for found, _ in rows])
    hashes = np.concatenate([found for _, found in rows])
    order = np.lexsort((hashes, labels))
    starts = np.searchsorted(labels[order], np.arange(len(part.ranks) + 1))
    if np.diff(starts).tolist() != list(part.corpus.class_counts):
        raise DataError(
            f"{part.corpus.path}: the shards hold other labels than manifest.json says; pack it "
            f"again"
        )
    low = np.ones(len(part.ranks), np.uint64)
    high = np.zeros(len(part.ranks), np.uint64)
    most = np.iinfo(np.uint64).max
    for c, (start, end) in enumerate(part.ranks):
        if start < end:
            low[c] = hashes[order[starts[c] + start]] if start else 0
            last = starts[c] + end == starts[c + 1]
            high[c] = most if last else hashes[order[starts[c] + end]] - np.uint64(1)
    return low, high


def spans(cut: int, corpus: Corpus, kept: Sequence[int], rows: int) -> list[Span]:
    """Neighboring shards together as long as their rows fit into one new shard.

    Args:
        cut: index of the corpus's `Cut`.
        corpus: whose shards.
        kept: rows of each shard that belong to the part.
        rows: most rows of a new shard; a shard with more of them is divided evenly.
    """
    groups: list[list[int]] = []
    filled = rows
    for i, count in enumerate(kept):
        if not count:
            continue
        if filled + count > rows:
            groups.append([])
            filled = 0
        groups[-1].append(i)
        filled += count
    return [_span(cut, corpus, kept, group, rows) for group in groups]


def _span(cut: int, corpus: Corpus, kept: Sequence[int], group: list[int], rows: int) -> Span:
    shards = [corpus.shards[i] for i in group]
    count = sum(kept[i] for i in group)
    share = sum(kept[i] / max(corpus.shards[i].rows, 1) * corpus.shards[i].bytes for i in group)
    files = tuple(store.join(corpus.path, shard.file) for shard in shards)
    pieces = -(-count // rows)
    return Span(cut, files, count, int(share), -(-count // pieces))


def read(span: Span, cut: Cut) -> Iterator[tuple[Item, bytes]]:
    """The rows of a span with their encoded images, one row group at a time.

    Raises:
        DataError: a file is no shard of a corpus.
    """
    for file in span.files:
        yield from _read_file(file, cut)


def _read_file(file: str, cut: Cut) -> Iterator[tuple[Item, bytes]]:
    with store.open_table(file) as parquet:
        for group in range(parquet.num_row_groups):
            names = store.read_group(parquet, group, ["key", "label", "uri"])
            mask = None
            if cut.bounds is not None:
                mask = cut.inside(*_ranked(names, cut.seed))
                if not mask.any():
                    continue
                names = names.filter(pa.array(mask))
            images = store.read_group(parquet, group, ["image"])
            if mask is not None:
                images = images.filter(pa.array(mask))
            for row, image in zip(names.to_pylist(), images.column("image"), strict=True):
                label = None if row["label"] is None else cut.classes[row["label"]]
                data = image.as_buffer().to_pybytes()
                yield Item(cut.prefix + row["key"], row["uri"], label, len(data)), data
