"""What one task packs: images listed one by one, or rows of a packed corpus -> shards, a record.

Every image is decoded whole before it is packed. A shard is a file that appears whole; the record
beside it, written last, says that the chunk is done.
"""

import base64
import hashlib
import io
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from ns_ray import store
from ns_ray.data import images, spans
from ns_ray.data.in_place import read_groups, stays_in
from ns_ray.data.leaks import Signatures, thumbnail
from ns_ray.data.sources.items import Item, Items, Pixels, Range, Row, read_rows, unread
from ns_ray.data.sources.streams import Stream, Streamed
from ns_ray.data.spans import Cut, Span
from ns_ray.errors import DamagedFileError, ImageError
from ns_ray.store import Shard, schema

SHARD_BYTES = 128 * 2**20
"""A shard is cut off when its images reach this many bytes."""
GUESSED_BYTES = 100_000
"""Size of an image whose source doesn't tell it."""
READ_THREADS = 8
WEB_THREADS = 32
"""Images of the web that are fetched at once: each may be of another, slow server."""
READ_AHEAD = 64
"""Images read in parallel ahead of the decoder (an object store answers slowly, but many)."""
COMPARED = 64
"""Images that are compared with the held-out ones at a time."""
PICTURES, PICTURE_SIDE = 4, 112
"""Of how many copies in a chunk a small picture is kept for the report, and its longest side."""

COPIES = "copies.parquet"
"""The file of the rows that are copies of others."""
MOST_PICTURES = 24
"""In that file."""

LEFT_OUT = ("leak", "near_leak", "duplicate")
"""Reasons for which images are rejected that could be read."""

Chunk = Sequence[Item] | Span


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
    near: Signatures | None = None
    """Of the images whose copies are left out, besides the excluded ones."""


@dataclass(frozen=True)
class Part:
    """What packing one chunk gave; its record on disk."""

    fingerprint: str
    shards: list[Shard] = field(default_factory=list)
    class_counts: dict[str, int] = field(default_factory=dict)
    rejected: list[dict[str, str]] = field(default_factory=list)
    copies: list[dict[str, str]] = field(default_factory=list)
    """Of the rejected rows, those of `schema.COPIES`; pictures in base64."""

    @property
    def broken(self) -> int:
        """Number of images that could not be read."""
        return sum(row["reason"] not in LEFT_OUT for row in self.rejected)


def rows_in(chunk: Chunk) -> int:
    """Number of images."""
    return chunk.rows if isinstance(chunk, Span) else len(chunk)


def bytes_in(chunk: Chunk) -> int:
    """About how many bytes they have."""
    if isinstance(chunk, Span):
        return chunk.bytes
    sizes = np.asarray(Items.of(chunk).table["size"])
    return int(np.where(sizes >= 0, sizes, GUESSED_BYTES).sum())


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
    stays = None if isinstance(chunk, Span) else stays_in(chunk)
    for item, row in _without_copies(job, part, _usable(job, part, chunk)):
        if item.label is not None and label_of:
            row["label"] = label_of[item.label]
            part.class_counts[item.label] = part.class_counts.get(item.label, 0) + 1
        rows.append(row)
        size += len(row["image"])
        if size >= SHARD_BYTES or len(rows) >= most:
            part.shards.append(_write_shard(job, index, len(part.shards), rows, stays))
            rows, size = [], 0
    if rows:
        part.shards.append(_write_shard(job, index, len(part.shards), rows, stays))
    write_record(job, index, part)
    return part


def write_record(job: Job, index: int, part: Part) -> None:
    """Say that a chunk is done."""
    store.write_json(store.join(job.out, record_name(job, index)), asdict(part))


def _usable(
    job: Job, part: Part, chunk: Chunk
) -> Iterator[tuple[Item, dict[str, Any], np.ndarray[Any, Any] | None]]:
    """Rows of the images of a chunk, and what is compared of them; the other ones are rejected."""
    for item, data in _read_chunk(job, chunk):
        try:
            row, small = _verified(job, item, data)
        except ImageError as error:
            _reject(part, item, error)
        else:
            yield item, row, small


def _without_copies(
    job: Job,
    part: Part,
    rows: Iterable[tuple[Item, dict[str, Any], np.ndarray[Any, Any] | None]],
) -> Iterator[tuple[Item, dict[str, Any]]]:
    """The rows that are no copies of images that are held out; the other ones are rejected."""
    coming = iter(rows)
    while some := list(islice(coming, COMPARED if job.near else 1)):
        of, alike = [-1] * len(some), [0.0] * len(some)
        if job.near is not None:
            found = job.near.copies(np.stack([small for _, _, small in some if small is not None]))
            of, alike = found[0].tolist(), found[1].tolist()
        for (item, row, _), held, correlation in zip(some, of, alike, strict=True):
            if job.near is None or held < 0:
                yield item, row
                continue
            name = job.near.names[held]
            text = f"{correlation:.4f}"
            _reject(part, item, ImageError("near_leak", f"correlation {text} with {name}"))
            picture = _picture(row["image"]) if len(part.copies) < PICTURES else ""
            about = {"of": name, "correlation": text, "picture": picture}
            part.copies.append({"key": item.key, "sha256": row["sha256"], **about})


def _reject(part: Part, item: Item, error: ImageError) -> None:
    part.rejected.append(rejection(item.key, item.uri, error.reason, error.detail))


def rejection(key: str, uri: str, reason: str, detail: str) -> dict[str, str]:
    """A row of `rejected.parquet`."""
    return {"key": key, "uri": uri, "reason": reason, "detail": detail}


def _picture(data: bytes) -> str:
    """A small WebP file of an image that can be decoded, in base64."""
    image = images.decode(data, shrink_to=PICTURE_SIDE)
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90)
    return base64.b64encode(buffer.getvalue()).decode()


def copies_table(copies: Sequence[Mapping[str, str]]) -> pa.Table:
    """Rows of `schema.COPIES`, the first pictures of them only."""
    rows: list[dict[str, Any]] = []
    shown = 0
    for row in sorted(copies, key=lambda row: row["key"]):
        picture = base64.b64decode(row["picture"]) if shown < MOST_PICTURES else b""
        shown += bool(picture)
        alike = float(row["correlation"]) if row["correlation"] else None
        rows.append({**row, "correlation": alike, "picture": picture or None})
    return pa.Table.from_pylist(rows, schema.COPIES)


def read_copies(out: str) -> dict[str, dict[str, str]]:
    """The rows of a corpus's `copies.parquet` by key, as records have them; none where it has none.

    Raises:
        DamagedFileError: it is not as it was written.
    """
    path = store.join(out, COPIES)
    if not store.exists(path):
        return {}
    return {
        row["key"]: {
            **{name: row[name] for name in ("key", "sha256", "of")},
            "correlation": "" if row["correlation"] is None else f"{row['correlation']:.4f}",
            "picture": base64.b64encode(row["picture"] or b"").decode(),
        }
        for row in store.read_table(path, schema.COPIES.names).to_pylist()
    }


def read_record(job: Job, index: int) -> Part | None:
    """What packing a chunk gave, unless the record is of other inputs, or damaged, or a shard of it
    is gone."""
    path = store.join(job.out, record_name(job, index))
    raw = store.read_intact(path)
    if raw is None:
        return None
    try:
        part = store.holding(Part, raw, path)
    except DamagedFileError as error:
        store.give_up(error)
        return None
    if part.fingerprint != job.fingerprint:
        return None
    there = (store.exists(store.join(job.out, shard.file)) for shard in part.shards)
    return part if all(there) else None


def _read_chunk(job: Job, chunk: Chunk) -> Iterator[tuple[Item, bytes | ImageError]]:
    if isinstance(chunk, Span):
        yield from spans.read(chunk, job.cuts[chunk.cut])
    elif stays_in(chunk):
        yield from read_groups(chunk)
    else:
        yield from _read_ahead(chunk)


def _read_ahead(items: Sequence[Item]) -> Iterator[tuple[Item, bytes | ImageError]]:
    web = bool(items) and store.is_web(items[0].file)
    with ThreadPoolExecutor(WEB_THREADS if web else READ_THREADS) as pool:
        for start in range(0, len(items), READ_AHEAD):
            window = items[start : start + READ_AHEAD]
            waits = not isinstance(window[0].place, Pixels)
            yield from zip(
                window, pool.map(_read, window) if waits else map(_read, window), strict=True
            )


def _read(item: Item) -> bytes | ImageError:
    try:
        return item.read()
    except ImageError as error:
        return error
    except OSError as error:
        found = unread(item, error)
        if found.reason == "unreadable" and store.is_uri(item.file) and not store.is_web(item.file):
            raise  # the store's fault rather than the image's: try again
        return found


def _verified(
    job: Job, item: Item, data: bytes | ImageError
) -> tuple[dict[str, Any], np.ndarray[Any, Any] | None]:
    """A row of the corpus, its label still null, and its thumbnail where they are compared.

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
    place = item.place if isinstance(item.place, Row) else None
    row = {
        "key": item.key,
        "image": data,
        "label": None,
        "width": image.width,
        "height": image.height,
        "sha256": sha256,
        "uri": item.uri,
        "group": place.group if place else 0,
        "row": place.row if place else 0,
    }
    return row, None if job.near is None else thumbnail(image)


def _write_shard(
    job: Job, index: int, cut: int, rows: list[dict[str, Any]], stays: Row | None
) -> Shard:
    name = f"shard-{index:05d}" + (f"-{cut}" if cut else "")
    file = schema.part_name(name, job.fingerprint)
    kind = store.left_schema(stays.path, stays.column) if stays else schema.CORPUS
    store.write_table(store.join(job.out, file), pa.Table.from_pylist(rows, schema=kind))
    return Shard(name, file, len(rows), sum(len(row["image"]) for row in rows))


def lay_out(job: Job, places: list[Row | Streamed]) -> list[Range]:
    """Copy some encoded images of one row group, or of one compressed file, into files of their
    own, whose names tell which: what one packing has left to do is not what another has."""
    rows = [place for place in places if isinstance(place, Row)]
    if rows:
        named = f"{rows[0].path}\t{rows[0].column}\t{rows[0].group}\t{[row.row for row in rows]}"
        return _write_ranges(job, _mark(named), read_rows(rows))
    members = sorted({p for p in places if isinstance(p, Streamed)}, key=lambda p: p.start)
    mark = _mark(f"{members[0].path}\t{[(p.start, p.length) for p in members]}")
    found: list[Range] = []
    held: list[bytes] = []
    stream, size = Stream(), 0
    for member in members:
        held.append(stream.read(member))
        size += member.length
        if size >= SHARD_BYTES or member is members[-1]:
            found += _write_ranges(job, f"{mark}-{len(found)}", held)
            held, size = [], 0
    of = dict(zip(members, found, strict=True))
    return [replace(of[p], member=p.member) for p in places if isinstance(p, Streamed)]


def _mark(named: str) -> str:
    return xxhash.xxh3_64_hexdigest(named.encode("utf-8", "surrogateescape"))


def _write_ranges(job: Job, name: str, values: list[bytes]) -> list[Range]:
    path = store.join(job.out, f"rows-{name}.{job.fingerprint[:6]}.bin")
    store.write_bytes(path, b"".join(values))
    starts = [0]
    for value in values:
        starts.append(starts[-1] + len(value))
    return [Range(path, a, len(value)) for a, value in zip(starts, values, strict=False)]
