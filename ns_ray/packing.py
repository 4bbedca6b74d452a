"""Items -> corpus: Parquet shards of the original encoded images, each image verified once.

    order by a hash of the keys -> one Ray task per shard -> manifest, rejected.parquet, _DONE.json

Every image is decoded whole before it is packed; one that cannot be is a row in
`rejected.parquet`. A shard is a file that appears whole, with a small record beside it: a killed
run redoes only the shards without one. The records go when the corpus is published.
"""

import hashlib
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

import pyarrow as pa
import ray
import xxhash

from ns_ray import images, schema, storage, values
from ns_ray.errors import DataError, ImageError, NsRayError, StageError
from ns_ray.log import Meter, progress, say
from ns_ray.sources import list_source
from ns_ray.sources.items import Item, Listing, Pixels, Range, Row, ordered, read_rows
from ns_ray.values import Corpus, Shard, open_corpus

SHARD_BYTES = 128 * 2**20
"""A shard is cut off when its images reach this many bytes."""
INLINE_BYTES = 8 * 2**20
"""Less work than this is done here: sending it to Ray would take longer."""
GUESSED_BYTES = 100_000
"""Size of an image whose source doesn't tell it."""
READ_THREADS = 8
READ_AHEAD = 64
"""Images read in parallel ahead of the decoder (an object store answers slowly, but many)."""
GONE = ("missing", "unreadable")
"""Reasons that may have passed by the next run; records with them are not kept after a failure."""


@dataclass(frozen=True)
class _Job:
    """What all shards of a corpus have in common."""

    out: str
    fingerprint: str
    classes: tuple[str, ...]
    max_pixels: int
    excluded: frozenset[str]


@dataclass(frozen=True)
class _Part:
    """What packing one chunk of items gave; its record on disk."""

    fingerprint: str
    shards: list[Shard] = field(default_factory=list)
    class_counts: dict[str, int] = field(default_factory=dict)
    rejected: list[dict[str, str]] = field(default_factory=list)


# -------------------------------------------------------------------------------------- adopting


def adopt(
    listing: Listing, *, out: str, classes: Sequence[str], excluded: frozenset[str]
) -> Corpus | None:
    """Point to a packed corpus instead of copying it. None when it must be packed again: it is no
    corpus, a part of one is asked for, its classes differ, or it holds excluded images."""
    if listing.corpus is None:
        return None
    corpus = open_corpus(listing.corpus)
    if len(listing.items) != corpus.rows or (classes and tuple(classes) != corpus.classes):
        return None
    if not excluded.isdisjoint(digests_of([corpus]) if excluded else ()):
        return None
    mark = storage.fingerprint("adopt", corpus.path, corpus.fingerprint)
    if storage.already(out, mark) is None:
        start = time.monotonic()
        storage.write_json(storage.join(out, "pointer.json"), {"corpus": corpus.path})
        storage.publish(
            out,
            stage="pack",
            fingerprint=mark,
            files=["pointer.json"],
            facts={"rows": corpus.rows, "rejected": corpus.rejected, "adopted": corpus.path},
            inputs={"source": listing.name, "fingerprint": corpus.fingerprint},
            seconds=time.monotonic() - start,
        )
    return open_corpus(out)


def digests_of(corpora: Sequence[Corpus]) -> frozenset[str]:
    """sha256 of every image of some (small) corpora."""
    found: set[str] = set()
    for corpus in corpora:
        for _, table in corpus.scan(["sha256"]):
            found.update(table.column("sha256").to_pylist())
    return frozenset(found)


# --------------------------------------------------------------------------------------- packing


def pack(
    source: str | Listing,
    *,
    out: str,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    rows_per_shard: int = 1024,
    max_pixels: int = images.MAX_PIXELS,
    max_rejected: float = 0.1,
    excluded: frozenset[str] = frozenset(),
    setting: str = "data",
) -> Corpus:
    """Pack a source, or a part of one, into a corpus. The same inputs again return at once.

    Args:
        source: what the user named, or a listing of it.
        out: folder or URI of the corpus.
        classes: names in the order of their indices; None: the source's own; empty: no labels.
        seed: decides the order of the images.
        rows_per_shard: most images in a shard; one of 128 MiB is cut off earlier.
        max_pixels: reject larger images.
        max_rejected: fraction of the images that may be rejected, leaks not counted.
        excluded: sha256 of images to leave out, with the reason `leak`.
        setting: where `source` comes from, for messages.

    Raises:
        DataError: nothing can be packed, too much is rejected, or a label is not in `classes`.
        StageError: a fault of the machine or the storage; the same call continues.
    """
    start = time.monotonic()
    listing = list_source(source, setting=setting) if isinstance(source, str) else source
    names = tuple(listing.classes if classes is None else classes)
    unknown = sorted({i.label for i in listing.items if i.label is not None} - set(names))
    if names and unknown:
        raise DataError(
            f"{setting}={listing.name!r} has the label {unknown[0]!r}, which is none of the "
            f"{len(names)} classes"
        )
    items = ordered(listing.items, seed)
    mark = storage.fingerprint(
        "pack",
        schema.FORMAT,
        listing.fingerprint,
        _items_digest(items),
        names,
        seed,
        rows_per_shard,
        max_pixels,
        hashlib.sha256("".join(sorted(excluded)).encode()).hexdigest(),
    )
    out = storage.absolute(out)
    done = storage.already(out, mark)
    if done is not None:
        if "pointer.json" not in done.files:  # left by a crash between publishing and clearing up
            storage.remove_files(out, ["pointer.json"])
        return open_corpus(out)

    job = _Job(out, mark, names, max_pixels, excluded)
    with progress(f"pack {os.path.basename(out)}", len(items)) as meter:
        parts = _pack_chunks(job, _chunks(items, rows_per_shard), meter)
    rejected = [row for part in parts for row in part.rejected]
    storage.write_table(storage.join(out, "rejected.parquet"), _rejected_table(rejected))
    _check_rejected(job, parts, len(items), max_rejected, f"{setting}={listing.name!r}")
    reasons = dict(Counter(row["reason"] for row in rejected))
    if reasons:
        say(f"{setting}: left out {reasons_text(reasons)}; see {out}/rejected.parquet")
    _publish(job, parts, reasons, listing, time.monotonic() - start)
    return open_corpus(out)


def _publish(
    job: _Job, parts: list[_Part], reasons: dict[str, int], listing: Listing, seconds: float
) -> None:
    """Write the manifest and `_DONE.json`, then clear up what was only needed to resume."""
    shards = [shard for part in parts for shard in part.shards]
    counts = [sum(part.class_counts.get(name, 0) for part in parts) for name in job.classes]
    manifest = values.corpus_manifest(shards, list(job.classes), counts, reasons, listing.name)
    storage.write_json(storage.join(job.out, "manifest.json"), manifest)
    files = [*(shard.file for shard in shards), "manifest.json", "rejected.parquet"]
    storage.publish(
        job.out,
        stage="pack",
        fingerprint=job.fingerprint,
        files=files,
        facts={
            "rows": sum(shard.rows for shard in shards),
            "bytes": sum(shard.bytes for shard in shards),
            "classes": len(job.classes),
            "rejected": reasons,
        },
        inputs={"source": listing.name, "fingerprint": listing.fingerprint},
        seconds=seconds,
    )
    storage.remove_files(job.out, _leftovers(job.out, files))


def _items_digest(items: Sequence[Item]) -> str:
    digest = xxhash.xxh3_128()
    for item in items:
        digest.update(f"{item.key}\t{item.label}\n".encode())
    return digest.hexdigest()


def _chunks(items: list[Item], rows: int) -> list[list[Item]]:
    """As few chunks of at most `rows` items as will do, of even size."""
    count = -(-len(items) // rows)
    bounds = [len(items) * i // max(count, 1) for i in range(count + 1)]
    return [items[a:b] for a, b in pairwise(bounds)]


def _rejected_table(rows: list[dict[str, str]]) -> pa.Table:
    ordered_rows = sorted(rows, key=lambda row: row["key"])
    return pa.Table.from_pylist(ordered_rows, schema=schema.REJECTED)


def reasons_text(counts: dict[str, int]) -> str:
    """`truncated: 12, empty: 3`, most frequent first."""
    pairs = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{reason}: {count:,}" for reason, count in pairs) or "none rejected"


def _check_rejected(
    job: _Job, parts: list[_Part], total: int, max_rejected: float, where: str
) -> None:
    """Refuse a corpus that lost too much."""
    reasons = Counter(row["reason"] for part in parts for row in part.rejected)
    broken = sum(reasons.values()) - reasons["leak"]
    usable = total - sum(reasons.values())
    if broken <= max_rejected * total and usable > 0:
        return
    gone = [i for i, p in enumerate(parts) if any(r["reason"] in GONE for r in p.rejected)]
    storage.remove_files(job.out, [_record(job, i) for i in gone])
    listed = f"({reasons_text(dict(reasons))}; see {job.out}/rejected.parquet)"
    if broken <= max_rejected * total:
        raise DataError(
            f"{where}: none of the {total:,} images can be used {listed}; `leak` means that the "
            f"same file is in data.validation or data.test"
        )
    raise DataError(
        f"{where}: {broken:,} of {total:,} images ({broken / total:.1%}) cannot be read {listed}; "
        f"data.max_rejected={max_rejected:g} allows {int(max_rejected * total):,}"
    )


def _record(job: _Job, index: int) -> str:
    return f"part-{index:05d}.{job.fingerprint[:6]}.json"


def _leftovers(out: str, listed: Sequence[str]) -> list[str]:
    """Records, laid-out rows, and shards of interrupted runs with other inputs."""
    ours = ("part-", "rows-", "shard-")
    return [n for n in storage.list_files(out) if n.startswith(ours) and n not in set(listed)]


# ----------------------------------------------------------------------------------- the workers


def _pack_chunks(job: _Job, chunks: list[list[Item]], meter: Meter) -> list[_Part]:
    """Pack every chunk that has no record yet; parts in the order of the chunks."""
    parts: dict[int, _Part] = {}
    present = set(storage.list_files(job.out))
    for i, chunk in enumerate(chunks):
        part = _read_record(job, i) if _record(job, i) in present else None
        if part is not None:
            parts[i] = part
            meter.skip(len(chunk))
    todo = [i for i in range(len(chunks)) if i not in parts]
    work = sum(_bytes(item) for i in todo for item in chunks[i])
    placed = _lay_out(job, {i: chunks[i] for i in todo}, work)
    calls = [(i, placed[i]) for i in todo]
    for n, part in _each(_pack_chunk, job, calls, work):
        parts[todo[n]] = part
        meter.add(len(chunks[todo[n]]))
    return [parts[i] for i in range(len(chunks))]


def _bytes(item: Item) -> int:
    return item.size if item.size >= 0 else GUESSED_BYTES


def _each(
    work: Callable[..., Any], job: _Job, calls: Sequence[tuple[Any, ...]], size: int
) -> Iterator[tuple[int, Any]]:
    """(index of the call, its result) as they finish: here when it is little work, else as Ray
    tasks, a bounded number at a time.

    Raises:
        StageError: a call failed for good. The results of the others stay.
    """
    try:
        if size <= INLINE_BYTES:
            for n, call in enumerate(calls):
                yield n, work(job, *call)
            return
        # OSErrors are an object store's bad moments; what is wrong with an image is no exception.
        task = ray.remote(num_cpus=1, max_retries=3, retry_exceptions=[OSError])(work)
        shared = ray.put(job)
        limit = 2 * max(int(ray.cluster_resources().get("CPU", 1)), 1)
        running: dict[Any, int] = {}
        for n, call in enumerate(calls):
            running[task.remote(shared, *call)] = n
            while len(running) >= (limit if n + 1 < len(calls) else 1):
                ready, _ = ray.wait(list(running), num_returns=1)
                yield running.pop(ready[0]), ray.get(ready[0])
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, NsRayError):
            raise error.cause from None
        raise _interrupted(job, error.cause) from error
    except (ray.exceptions.RayError, OSError) as error:
        raise _interrupted(job, error) from error


def _interrupted(job: _Job, error: BaseException) -> StageError:
    return StageError(
        f"packing {job.out} stopped: {type(error).__name__}: {error}; the same command continues "
        f"with the shards that are left"
    )


def _pack_chunk(job: _Job, index: int, items: list[Item]) -> _Part:
    """Read, verify and write the images of one chunk; its record is written last."""
    part = _Part(job.fingerprint)
    label_of = {name: i for i, name in enumerate(job.classes)}
    rows: list[dict[str, Any]] = []
    size = 0
    for item, data in _read_ahead(items):
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
        if size >= SHARD_BYTES:
            part.shards.append(_write_shard(job, index, len(part.shards), rows))
            rows, size = [], 0
    if rows:
        part.shards.append(_write_shard(job, index, len(part.shards), rows))
    storage.write_json(storage.join(job.out, _record(job, index)), asdict(part))
    return part


def _read_record(job: _Job, index: int) -> _Part | None:
    raw = storage.read_json(storage.join(job.out, _record(job, index)))
    if raw["fingerprint"] != job.fingerprint:
        return None
    return replace(_Part(**raw), shards=[Shard(**shard) for shard in raw["shards"]])


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
        if storage.is_uri(item.file):  # the store's fault rather than the image's: try again
            raise
        return ImageError("unreadable", str(error))


def _verified(job: _Job, item: Item, data: bytes | ImageError) -> dict[str, Any]:
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


def _write_shard(job: _Job, index: int, cut: int, rows: list[dict[str, Any]]) -> Shard:
    name = f"shard-{index:05d}" + (f"-{cut}" if cut else "")
    file = schema.part_name(name, job.fingerprint)
    storage.write_table(
        storage.join(job.out, file), pa.Table.from_pylist(rows, schema=schema.CORPUS)
    )
    return Shard(name, file, len(rows), sum(len(row["image"]) for row in rows))


# ---------------------------------------------------------------- rows of Parquet files as ranges


def _lay_out(job: _Job, chunks: dict[int, list[Item]], work: int) -> dict[int, list[Item]]:
    """Chunks whose Parquet rows have become ranges of plain files beside the shards. A chunk
    takes single rows from row groups all over a source; this way each group is read once."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for chunk in chunks.values():
        for item in chunk:
            if isinstance(item.place, Row):
                groups.setdefault((item.place.path, item.place.group), []).append(item.place)
    if not groups:
        return chunks
    places: dict[Row, Range] = {}
    batches = list(groups.values())
    for n, ranges in _each(_write_ranges, job, [(rows,) for rows in batches], work):
        places.update(zip(batches[n], ranges, strict=True))
    return {
        i: [
            replace(item, place=places[item.place]) if isinstance(item.place, Row) else item
            for item in chunk
        ]
        for i, chunk in chunks.items()
    }


def _write_ranges(job: _Job, rows: list[Row]) -> list[Range]:
    """Copy the encoded images of one row group into a file of its own."""
    values = read_rows(rows)
    mark = xxhash.xxh3_64_hexdigest(f"{rows[0].path}\t{rows[0].group}".encode())
    path = storage.join(job.out, f"rows-{mark}.{job.fingerprint[:6]}.bin")
    storage.write_bytes(path, b"".join(values))
    starts = [0]
    for value in values:
        starts.append(starts[-1] + len(value))
    return [Range(path, a, len(value)) for a, value in zip(starts, values, strict=False)]
