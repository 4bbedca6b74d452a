"""Images of a source that are not read yet: one, or millions of them in columns."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ns_ray import store
from ns_ray.data import images
from ns_ray.data.sources.members import Member, unpacked
from ns_ray.data.sources.opened import Opened
from ns_ray.data.sources.streams import Stream, Streamed
from ns_ray.errors import ImageError
from ns_ray.store import schema

Array = np.ndarray[Any, Any]

TEXT = pa.large_string()
COLUMNS = pa.schema([("key", TEXT), ("uri", TEXT), ("label", TEXT), ("size", pa.int64())])
BATCH = 65_536
"""Images that are objects at a time, on the way into columns and out of them."""


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes inside a file: a member of an uncompressed tar, or of a zip archive."""

    path: str
    start: int
    length: int
    member: Member | None = None
    """Of a zip archive: what the bytes are unpacked to."""


@dataclass(frozen=True, slots=True)
class Row:
    """An encoded image in a Parquet file. Reading one means reading its row group, so `pack` lays
    these out as ranges first."""

    path: str
    column: str
    group: int
    row: int
    """Within the row group."""
    stays: bool = False
    """Whether it is packed without being copied."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """uint8 pixels of a named set; they become a PNG file when read."""

    data: bytes
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Encoded:
    """The bytes of an image file that are here already."""

    data: bytes


Place = Range | Streamed | Row | Pixels | Encoded | Opened


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
    place: Place | None = None
    """Where the bytes are; None: the whole file at `uri`."""

    @property
    def file(self) -> str:
        """The file that `read` opens."""
        return self.place.path if isinstance(self.place, Range | Streamed | Row) else self.uri

    def read(self, stream: Stream | None = None) -> bytes:
        """The encoded file.

        Args:
            stream: what has read others of the same file; see `Streamed`.

        Raises:
            OSError: it is missing or cannot be read.
            ImageError: it is a PIL image that is of no use, or damaged in its zip archive.
        """
        if self.place is None:
            read = store.fetch if store.is_web(self.uri) else store.read_bytes
            return read(self.uri)
        if isinstance(self.place, Range):
            return unpacked(_read_range(self.place), self.place.member)
        if isinstance(self.place, Row):
            return read_rows([self.place])[0]
        if isinstance(self.place, Streamed):
            return unpacked((stream or Stream()).read(self.place), self.place.member)
        if isinstance(self.place, Encoded):
            return self.place.data
        if isinstance(self.place, Opened):
            return self.place.read()
        flat = np.frombuffer(self.place.data, dtype=np.uint8)
        return images.encode_png(flat.reshape(self.place.shape))


class Items(Sequence[Item]):
    """Images of a source as columns. A million with keys of 50 characters take 0.15 GB, where as
    many objects take 0.45.

    Attributes:
        table: a row per image, with COLUMNS; no label is null.
        places: where the bytes of each are, object [n]; None: all are whole files.
    """

    def __init__(self, table: pa.Table, places: Array | None = None) -> None:
        self.table, self.places = table, places

    @classmethod
    def of(cls, items: Iterable[Item]) -> "Items":
        """Images in columns; those that are already stay as they are.

        Raises:
            UnicodeEncodeError: a name is no text.
        """
        if isinstance(items, Items):
            return items
        coming = iter(items)
        return cls.joined([cls._few(few) for few in iter(lambda: list(islice(coming, BATCH)), [])])

    @classmethod
    def _few(cls, items: Sequence[Item]) -> "Items":
        columns: list[list[Any]] = [
            [item.key for item in items],
            [item.uri for item in items],
            [item.label for item in items],
            [item.size for item in items],
        ]
        places = None
        if any(item.place is not None for item in items):
            places = np.fromiter((item.place for item in items), dtype=object, count=len(items))
        return cls.columns(columns, places)

    @classmethod
    def columns(cls, columns: Sequence[Sequence[Any]], places: Array | None = None) -> "Items":
        """Images by what COLUMNS names, each a sequence with a value per image."""
        return cls(pa.table([*columns], schema=COLUMNS), places)

    @classmethod
    def joined(cls, parts: Sequence["Items"]) -> "Items":
        """Images of several listings, one after the other."""
        places = None
        if any(part.places is not None for part in parts):
            places = np.concatenate([part._all_places() for part in parts])
        table = pa.concat_tables([COLUMNS.empty_table(), *(part.table for part in parts)])
        return cls(table, places)

    def stored(self) -> Sequence[Place]:
        """Where the bytes are of those that are no whole files."""
        return [] if self.places is None else [p for p in self.places if p is not None]

    def which(self, chosen: Callable[[Place | None], bool]) -> Array:
        """Of which images the place is chosen, bool [n]."""
        if self.places is None:
            return np.full(len(self), chosen(None))
        return np.fromiter(map(chosen, self.places), dtype=bool, count=len(self))

    def _all_places(self) -> Array:
        return np.full(len(self), None) if self.places is None else self.places

    def take(self, rows: Array) -> "Items":
        """The images of some rows, int [n], in their order."""
        places = None if self.places is None else self.places[rows]
        return Items(self.table.take(pa.array(rows, pa.int64())).combine_chunks(), places)

    def prefixed(self, prefix: str) -> "Items":
        """The same images under longer keys."""
        before, between = pa.scalar(prefix, pa.large_string()), pa.scalar("", pa.large_string())
        keys = pc.binary_join_element_wise(before, self.table["key"], between)
        return Items(self.table.set_column(0, COLUMNS.field("key"), keys), self.places)

    def twice(self) -> list[str]:
        """Keys that more than one image has, in the order of their first."""
        return repeated(self.table["key"])

    def labeled(self, classes: Sequence[str]) -> Array:
        """Index of each image's label among the classes, int32 [n], -1 for none."""
        found = pc.index_in(self.table["label"], value_set=pa.array(classes, pa.large_string()))
        return np.asarray(found.fill_null(-1))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Items):
            return NotImplemented
        same = self.table.equals(other.table)
        return bool(same and np.array_equal(self._all_places(), other._all_places()))

    __hash__ = None  # type: ignore[assignment]  # as of lists

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[Item]:
        for first in range(0, len(self), BATCH):
            rows = self.table.slice(first, BATCH)
            columns = [rows[name].to_pylist() for name in COLUMNS.names]
            places = repeat(None) if self.places is None else self.places[first : first + BATCH]
            yield from map(Item, *columns, places)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> "Items": ...
    def __getitem__(self, index: int | slice) -> "Item | Items":
        if isinstance(index, int):
            row = range(len(self))[index]
            return next(iter(self[row : row + 1]))
        first, end, step = index.indices(len(self))
        if step != 1:
            return self.take(np.arange(len(self))[index])
        places = None if self.places is None else self.places[first:end]
        return Items(self.table.slice(first, max(end - first, 0)), places)


def ascending(texts: pa.Array | pa.ChunkedArray) -> bool:
    """Whether each text comes behind the one before it, so that none is there twice."""
    return bool(pc.all(pc.less(texts[:-1], texts[1:])).as_py())


def repeated(texts: pa.Array | pa.ChunkedArray) -> list[str]:
    """Texts that are there more than once, in the order of their first."""
    if ascending(texts):
        return []
    hashes = np.sort(schema.hash_keys(texts, 0))  # in half the time of counting the texts
    if (hashes[:-1] < hashes[1:]).all():
        return []
    counted = pa.table(pc.value_counts(texts).flatten(), names=["text", "count"])
    return list(counted.filter(pc.field("count") > 1)["text"].to_pylist())


def in_lines(texts: pa.Array) -> pa.Buffer:
    """The bytes of large strings with line breaks between them."""
    whole = pa.LargeListArray.from_arrays([0, len(texts)], texts)
    return pc.binary_join(whole, pa.scalar("\n", TEXT))[0].as_buffer()


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


def ordered(items: Sequence[Item], seed: int) -> Items:
    """Items in an order that only their keys and the seed decide."""
    found = Items.of(items)
    return found.take(order(found, seed))


def order(items: Items, seed: int) -> Array:
    """Rows, int [n], in the order of their keys' hashes."""
    keys = items.table["key"]
    hashes = schema.hash_keys(keys, seed)
    rows = np.argsort(hashes)
    if (np.diff(hashes[rows]) > 0).all():
        return rows
    hashed = pa.table({"hash": hashes, "key": keys})
    return np.asarray(
        pc.sort_indices(hashed, sort_keys=[("hash", "ascending"), ("key", "ascending")])
    )


def read_rows(rows: Sequence[Row]) -> list[bytes]:
    """Encoded images of one row group of one Parquet file.

    Raises:
        OSError: the file cannot be read.
    """
    fs, inner = store.filesystem(rows[0].path)
    with pq.ParquetFile(inner, filesystem=fs) as file:
        root, *_ = rows[0].column.split(".")
        # Arrow makes no extension type of a part of what it is stored as.
        whole = isinstance(file.schema_arrow.field(root).type, pa.BaseExtensionType)
        table = file.read_row_group(rows[0].group, columns=[root if whole else rows[0].column])
    values = table.column(root).combine_chunks()
    if whole:
        values = values.storage
    if pa.types.is_struct(values.type):
        values = values.field("bytes")
    return [values[row.row].as_py() or b"" for row in rows]


def unread(item: Item, error: OSError) -> ImageError:
    """Why the bytes of an image cannot be had, as what it is rejected for."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        told = str(error) if store.is_web(item.file) else "there is no such file"
        return ImageError("missing", told)
    if not store.is_uri(item.file) and os.path.isdir(item.file):
        return ImageError("unreadable", "it is a folder")
    return ImageError("unreadable", error.strerror or str(error))


def read_with(place: Row | Streamed) -> tuple[str, ...]:
    """What is read in one go with others: a row group, a file that is read from its beginning."""
    if isinstance(place, Streamed):
        return (place.path,)
    return place.path, place.column, str(place.group)


def start_of(item: Item) -> int:
    """Where it starts in a file that is read from its beginning; 0 for others."""
    return item.place.start if isinstance(item.place, Streamed) else 0


def classes_of(items: Iterable[Item]) -> tuple[str, ...]:
    """Names of the labels, in natural order."""
    names = Items.of(items).table["label"].unique().drop_null().to_pylist()
    return tuple(sorted(names, key=natural))


def _read_range(place: Range) -> bytes:
    if not store.is_uri(place.path):
        with open(place.path, "rb") as local:
            local.seek(place.start)
            return local.read(place.length)
    fs, inner = store.filesystem(place.path)
    with fs.open_input_file(inner) as remote:
        remote.seek(place.start)
        return bytes(remote.read(place.length))
