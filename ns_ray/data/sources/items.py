"""One image of a source that is not read yet."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ns_ray import store
from ns_ray.data import images
from ns_ray.store import schema


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes inside a file: a member of an uncompressed tar."""

    path: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Row:
    """An encoded image in a Parquet file. Reading one means reading its row group, so `pack` lays
    these out as ranges first."""

    path: str
    column: str
    group: int
    row: int
    """Within the row group."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """uint8 pixels of a named set; they become a PNG file when read."""

    data: bytes
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source, not read yet."""

    key: str
    """Stable id, unique in its listing."""
    uri: str
    """Where it comes from, for people."""
    label: str | None = None
    size: int = -1
    """About how many bytes it has, or -1 when only reading tells."""
    place: Range | Row | Pixels | None = None
    """Where the bytes are; None: the whole file at `uri`."""

    @property
    def file(self) -> str:
        """The file that `read` opens."""
        return self.place.path if isinstance(self.place, Range | Row) else self.uri

    def read(self) -> bytes:
        """The encoded file.

        Raises:
            OSError: it is missing or cannot be read.
        """
        if self.place is None:
            return store.read_bytes(self.uri)
        if isinstance(self.place, Range):
            return _read_range(self.place)
        if isinstance(self.place, Row):
            return read_rows([self.place])[0]
        flat = np.frombuffer(self.place.data, dtype=np.uint8)
        return images.encode_png(flat.reshape(self.place.shape))


def natural(name: str) -> tuple[Any, ...]:
    """Sort key that puts `class10` after `class9`."""
    parts = re.split(r"(\d+)", name.lower())
    return (tuple(int(p) if i % 2 else p for i, p in enumerate(parts)), name)


def allocate(counts: Sequence[int], total: int, least: int, most: Sequence[int]) -> list[int]:
    """Shares of `total` proportional to `counts`, by largest remainder.

    Args:
        counts: images per class.
        total: the sum to reach; it is reached when sum(least) <= total <= sum(most).
        least: each class gets at least this many (but no more than its `most`).
        most: each class gets at most this many.
    """
    quota = np.asarray(counts, dtype=np.float64) * (total / max(sum(counts), 1))
    high = np.asarray(most, dtype=np.int64)
    low = np.minimum(least, high)
    shares = np.clip(np.floor(quota).astype(np.int64), low, high)
    while shares.sum() < min(total, high.sum()):
        shares[np.argmax(np.where(shares < high, quota - shares, -np.inf))] += 1
    while shares.sum() > max(total, low.sum()):
        shares[np.argmin(np.where(shares > low, quota - shares, np.inf))] -= 1
    return [int(share) for share in shares]


def ordered(items: Sequence[Item], seed: int) -> list[Item]:
    """Items in an order that only their keys and the seed decide."""
    if not items:
        return []
    keys = [item.key for item in items]
    hashes = schema.hash_keys(pa.array(keys, pa.string()), seed)
    order = sorted(range(len(items)), key=lambda i: (int(hashes[i]), keys[i]))
    return [items[i] for i in order]


def read_rows(rows: Sequence[Row]) -> list[bytes]:
    """Encoded images of one row group of one Parquet file.

    Raises:
        OSError: the file cannot be read.
    """
    fs, inner = store.filesystem(rows[0].path)
    with pq.ParquetFile(inner, filesystem=fs) as file:
        root, *_ = rows[0].column.split(".")
        table = file.read_row_group(rows[0].group, columns=[rows[0].column])
    values = table.column(root).combine_chunks()
    if pa.types.is_struct(values.type):
        values = values.field("bytes")
    return [values[row.row].as_py() or b"" for row in rows]


def classes_of(items: Iterable[Item]) -> tuple[str, ...]:
    """Names of the labels, in natural order."""
    return tuple(sorted({item.label for item in items if item.label is not None}, key=natural))


def _read_range(place: Range) -> bytes:
    if not store.is_uri(place.path):
        with open(place.path, "rb") as local:
            local.seek(place.start)
            return local.read(place.length)
    fs, inner = store.filesystem(place.path)
    with fs.open_input_file(inner) as remote:
        remote.seek(place.start)
        return bytes(remote.read(place.length))
