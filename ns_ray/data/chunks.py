"""What one task packs: images listed one by one, or rows of a packed corpus -> shards, a record.

Every image is decoded whole before it is packed. A shard is a file that appears whole; the record
beside it, written last, says that the chunk is done.
"""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
import xxhash

from ns_ray import store
from ns_ray.data import images, spans
from ns_ray.data.sources.items import Item, Pixels, Range, Row, read_rows
from ns_ray.data.spans import Cut, Span
from ns_ray.errors import ImageError
from ns_ray.store import Shard, schema

SHARD_BYTES = 128 * 2**20
"""A shard is cut off when its images reach this many bytes."""
GUESSED_BYTES = 100_000
"""Size of an image whose source doesn't tell it."""
READ_THREADS = 8
READ_AHEAD = 64
"""Images read in parallel ahead of the decoder (an object store answers slowly, but many)."""

Chunk = list[Item] | Span


@dataclass(frozen=True)
class Job:
    """What all shards of a corpus have in common."""

    out: str
    fingerprint: str
    classes: tuple[str, ...]
    max_pixels: int
    excluded: frozenset[str]
    cuts: tuple[Cut, ...] = ()
    """What the spans among the chunks take of their shards."""


@dataclass(frozen=True)
class Part:
    """What packing one chunk gave; its record on disk."""

    fingerprint: str
    shards: list[Shard] = field(default_factory=list)
    class_counts: dict[str, int] = field(default_factory=dict)
    rejected: list[dict[str, str]] = field(default_factory=list)


def rows_in(chunk: Chunk) -> int:
    """Number of images."""
    return chunk.rows if isinstance(chunk, Span) else len(chunk)


def bytes_in(chunk: Chunk) -> int:
    """About how many bytes they have."""
    if isinstance(chunk, Span):
        return chunk.bytes
    return sum(item.size if item.size >= 0 else GUESSED_BYTES for item in chunk)


def record_name(job: Job, index: int) -> str:
    """Of the file that says that a chunk is done."""
    return f"part-{index:05d}.{job.fingerprint[:6]}.json"


def pack_chunk(job: Job, index: int, chunk: Chunk) -> Part:
    """Read, verify and write the images of one chunk; its record is written last."""
    part = Part(job.fingerprint)
    label_of = {name: i for i, name in enumerate(job.classes)}
    rows: list[dict[str, Any]] = []
    size = 0
    most = chunk.limit if isinstance(chunk, Span) else len(chunk)
    for item, data in _read_chunk(job, chunk):
        try:
            row = _verified(job, item, data)
        except ImageError as error:
            about = {"reason": error.reason, "detail": error.detail}
            part.rejected.append({"key": item.key, "uri": item.uri, **about})
            continue
        if item.label is not None and label_of:
            row["label"] = label_of[item.label]
            part.class_counts[item.label] = part.class_counts.get(item.label, 0) + 1
        rows.append(row)
        size += len(row["image"])
        if size >= SHARD_BYTES or len(rows) >= most:
            part.shards.append(_write_shard(job, index, len(part.shards), rows))
            rows, size = [], 0
    if rows:
        part.shards.append(_write_shard(job, index, len(part.shards), rows))
    store.write_json(store.join(job.out, record_name(job, index)), asdict(part))
    return part


def read_record(job: Job, index: int) -> Part | None:
    """What packing a chunk gave, unless the record is of other inputs."""
    raw = store.read_json(store.join(job.out, record_name(job, index)))
    if raw["fingerprint"] != job.fingerprint:
        return None
    return replace(Part(**raw), shards=[Shard(**shard) for shard in raw["shards"]])


def _read_chunk(job: Job, chunk: Chunk) -> Iterator[tuple[Item, bytes | ImageError]]:
    if isinstance(chunk, Span):
        yield from spans.read(chunk, job.cuts[chunk.cut])
    else:
        yield from _read_ahead(chunk)


def _read_ahead(items: Sequence[Item]) -> Iterator[tuple[Item, bytes | ImageError]]:
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for start in range(0, len(items), READ_AHEAD):
            window = items[start : start + READ_AHEAD]
            waits = not isinstance(window[0].place, Pixels)
            yield from zip(
                window, pool.map(_read, window) if waits else map(_read, window), strict=True
            )


def _read(item: Item) -> bytes | ImageError:
    try:
        return item.read()
    except (FileNotFoundError, NotADirectoryError):
        return ImageError("missing", "there is no such file")
    except OSError as error:
        if store.is_uri(item.file):  # the store's fault rather than the image's: try again
            raise
        return ImageError("unreadable", str(error))


def _verified(job: Job, item: Item, data: bytes | ImageError) -> dict[str, Any]:
    """A row of the corpus, its label still null.

    Raises:
        ImageError: it cannot be read or decoded, or is excluded (`leak`).
    """
    if isinstance(data, ImageError):
        raise data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks; rejected.parquet says it better
        image = images.decode(data, max_pixels=job.max_pixels)
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 in job.excluded:
        raise ImageError("leak", "the same file is a validation or test image")
    return {
        "key": item.key,
        "image": data,
        "label": None,
        "width": image.width,
        "height": image.height,
        "sha256": sha256,
        "uri": item.uri,
    }


def _write_shard(job: Job, index: int, cut: int, rows: list[dict[str, Any]]) -> Shard:
    name = f"shard-{index:05d}" + (f"-{cut}" if cut else "")
    file = schema.part_name(name, job.fingerprint)
    store.write_table(store.join(job.out, file), pa.Table.from_pylist(rows, schema=schema.CORPUS))
    return Shard(name, file, len(rows), sum(len(row["image"]) for row in rows))


def write_ranges(job: Job, rows: list[Row]) -> list[Range]:
    """Copy the encoded images of one row group into a file of its own."""
    values = read_rows(rows)
    mark = xxhash.xxh3_64_hexdigest(f"{rows[0].path}\t{rows[0].group}".encode())
    path = store.join(job.out, f"rows-{mark}.{job.fingerprint[:6]}.bin")
    store.write_bytes(path, b"".join(values))
    starts = [0]
    for value in values:
        starts.append(starts[-1] + len(value))
    return [Range(path, a, len(value)) for a, value in zip(starts, values, strict=False)]
