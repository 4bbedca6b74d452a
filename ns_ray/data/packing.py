"""Listing -> corpus: Parquet shards of the original encoded images, each image verified once.

    order by a hash of the keys -> one Ray task per chunk -> manifest, rejected.parquet, _DONE.json

An image that cannot be decoded is a row in `rejected.parquet`. A killed run redoes only the chunks
without a record; the records go when the corpus is published. Rows of a packed corpus keep the
order of its shards, and are neither listed nor looked at here: its manifest tells whether a corpus
made of them is there already.
"""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import pyarrow as pa
import xxhash

from ns_ray import store
from ns_ray.compute import tasks
from ns_ray.data import images, spans
from ns_ray.data.chunks import (
    Chunk,
    Job,
    Part,
    bytes_in,
    pack_chunk,
    read_record,
    record_name,
    rows_in,
    write_ranges,
)
from ns_ray.data.sources import list_source
from ns_ray.data.sources.items import Item, Range, Row, ordered
from ns_ray.data.sources.listing import Listing, Packed
from ns_ray.data.spans import Cut, Span
from ns_ray.errors import DataError
from ns_ray.log import Meter, progress, say
from ns_ray.store import Corpus, corpus_manifest, open_corpus, schema

BYTES_PER_SECOND = 16 * 2**20
"""What one process packs (measured: 22 MiB/s and more, of JPEGs of 77 kB)."""
KEY_BYTES = 64
"""About what looking at the key or the digest of an image reads."""
GONE = ("missing", "unreadable")
"""Reasons that may have passed by the next run; records with them are not kept after a failure."""

T = TypeVar("T")


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
        seed: decides the order of the images; rows of packed corpora keep theirs.
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
    _check_labels(listing, names, setting)
    items = ordered(listing.items, seed)
    mark = store.fingerprint(
        "pack",
        schema.FORMAT,
        listing.fingerprint,
        _contents(items, listing.packed),
        names,
        seed,
        rows_per_shard,
        max_pixels,
        excluded_digest(excluded),
    )
    out = store.absolute(out)
    done = store.already(out, mark)
    if done is not None:
        if "pointer.json" not in done.files:  # left by a crash between publishing and clearing up
            store.remove_files(out, ["pointer.json"])
        return open_corpus(out)

    job = Job(out, mark, names, max_pixels, excluded)
    with progress(f"pack {os.path.basename(out)}", listing.rows) as meter:
        cuts, found = _find(job, listing.packed, rows_per_shard)
        chunks: list[Chunk] = [*_chunks(items, rows_per_shard), *found]
        parts = _pack_chunks(replace(job, cuts=cuts), chunks, meter)
    _check_rejected(job, parts, listing.rows, max_rejected, f"{setting}={listing.name!r}")
    _publish(job, parts, listing, setting, time.monotonic() - start)
    return open_corpus(out)


def _check_labels(listing: Listing, names: tuple[str, ...], setting: str) -> None:
    unknown = sorted(set(listing.counts) - set(names))
    if names and unknown:
        raise DataError(
            f"{setting}={listing.name!r} has the label {unknown[0]!r}, which is none of the "
            f"{len(names)} classes"
        )


def excluded_digest(excluded: frozenset[str]) -> str:
    """Changes with the images to leave out."""
    return hashlib.sha256("".join(sorted(excluded)).encode()).hexdigest()


def _publish(job: Job, parts: list[Part], listing: Listing, setting: str, seconds: float) -> None:
    """Write the manifest and `_DONE.json`, then clear up what was only needed to resume."""
    reasons = dict(Counter(row["reason"] for part in parts for row in part.rejected))
    if reasons:
        say(f"{setting}: left out {reasons_text(reasons)}; see {job.out}/rejected.parquet")
    shards = [shard for part in parts for shard in part.shards]
    counts = [sum(part.class_counts.get(name, 0) for part in parts) for name in job.classes]
    manifest = corpus_manifest(shards, list(job.classes), counts, reasons, listing.name)
    store.write_json(store.join(job.out, "manifest.json"), manifest)
    files = [*(shard.file for shard in shards), "manifest.json", "rejected.parquet"]
    store.publish(
        job.out,
        stage="pack",
        fingerprint=job.fingerprint,
        files=files,
        facts={
            "rows": sum(shard.rows for shard in shards),
            "bytes": sum(shard.bytes for shard in shards),
            "classes": len(job.classes),
            "rejected": reasons,
            "source": listing.fingerprint,
            "free_of": excluded_digest(job.excluded),
        },
        inputs={"source": listing.name, "fingerprint": listing.fingerprint},
        seconds=seconds,
    )
    store.remove_files(job.out, _leftovers(job.out, files))


def _contents(items: Sequence[Item], packed: Sequence[Packed]) -> str:
    """Changes with what is packed and in which order."""
    digest = xxhash.xxh3_128()
    for item in items:
        digest.update(f"{item.key}\t{item.label}\n".encode())
    if not packed:
        return digest.hexdigest()
    return store.fingerprint(digest.hexdigest(), [part.mark for part in packed])


def _chunks(items: list[Item], rows: int) -> list[list[Item]]:
    """As few chunks of at most `rows` items as will do, of even size."""
    count = -(-len(items) // rows)
    bounds = [len(items) * i // max(count, 1) for i in range(count + 1)]
    return [items[a:b] for a, b in pairwise(bounds)]


def reasons_text(counts: dict[str, int]) -> str:
    """`truncated: 12, empty: 3`, most frequent first."""
    pairs = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{reason}: {count:,}" for reason, count in pairs) or "none rejected"


def _check_rejected(
    job: Job, parts: list[Part], total: int, max_rejected: float, where: str
) -> None:
    """Write `rejected.parquet`, and refuse a corpus that lost too much."""
    rows = sorted((row for part in parts for row in part.rejected), key=lambda row: row["key"])
    table = pa.Table.from_pylist(rows, schema=schema.REJECTED)
    store.write_table(store.join(job.out, "rejected.parquet"), table)
    reasons = Counter(row["reason"] for row in rows)
    broken = sum(reasons.values()) - reasons["leak"]
    usable = total - sum(reasons.values())
    if broken <= max_rejected * total and usable > 0:
        return
    gone = [i for i, p in enumerate(parts) if any(r["reason"] in GONE for r in p.rejected)]
    store.remove_files(job.out, [record_name(job, i) for i in gone])
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


def _leftovers(out: str, listed: Sequence[str]) -> list[str]:
    """Records, laid-out rows, and shards of interrupted runs with other inputs."""
    ours = ("part-", "rows-", "shard-")
    return [n for n in store.list_files(out) if n.startswith(ours) and n not in set(listed)]


# ------------------------------------------------------------------------------------- the tasks


def _find(
    job: Job, packed: Sequence[Packed], rows_per_shard: int
) -> tuple[tuple[Cut, ...], list[Span]]:
    """Where the rows of packed corpora are: what tells them from others, and spans of shards."""
    cuts: list[Cut] = []
    found: list[Span] = []
    for part in packed:
        corpus = part.corpus
        cut = Cut(corpus.classes, part.prefix, part.seed)
        kept = [shard.rows for shard in corpus.shards]
        if part.ranks is not None:
            calls = [(files, part.seed) for files in spans.scans(corpus)]
            ranked = dict(each(spans.ranked, job, calls, KEY_BYTES * corpus.rows))
            rows = [row for n in range(len(calls)) for row in ranked[n]]
            cut = replace(cut, bounds=spans.bounds(part, rows))
            kept = [int(cut.inside(labels, hashes).sum()) for labels, hashes in rows]
        found += spans.spans(len(cuts), corpus, kept, rows_per_shard)
        cuts.append(cut)
    return tuple(cuts), found


def _pack_chunks(job: Job, chunks: list[Chunk], meter: Meter) -> list[Part]:
    """Pack every chunk that has no record yet; parts in the order of the chunks."""
    parts: dict[int, Part] = {}
    present = set(store.list_files(job.out))
    for i, chunk in enumerate(chunks):
        part = read_record(job, i) if record_name(job, i) in present else None
        if part is not None:
            parts[i] = part
            meter.skip(rows_in(chunk))
    todo = [i for i in range(len(chunks)) if i not in parts]
    work = sum(bytes_in(chunks[i]) for i in todo)
    placed = _lay_out(job, {i: chunks[i] for i in todo}, work)
    calls = [(i, placed[i]) for i in todo]
    for n, part in each(pack_chunk, job, calls, work):
        parts[todo[n]] = part
        meter.add(rows_in(chunks[todo[n]]))
    return [parts[i] for i in range(len(chunks))]


def each(
    work: Callable[..., T], job: Job, calls: Iterable[tuple[Any, ...]], size: int
) -> Generator[tuple[int, T]]:
    """(index of the call, its result) as they finish, here or in Ray tasks.

    Args:
        work: gets the job and the arguments of a call.
        job: what the calls have in common.
        calls: arguments.
        size: bytes that all calls read.

    Raises:
        StageError: a call failed for good; the same packing continues.
    """
    here = tasks.done_here(size / BYTES_PER_SECOND)
    return tasks.each(partial(work, job), calls, here=here, doing=f"packing {job.out}")


def _lay_out(job: Job, chunks: dict[int, Chunk], work: int) -> dict[int, Chunk]:
    """Chunks whose Parquet rows have become ranges of plain files beside the shards. A chunk
    takes single rows from row groups all over a source; this way each group is read once."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for chunk in chunks.values():
        for item in [] if isinstance(chunk, Span) else chunk:
            if isinstance(item.place, Row):
                groups.setdefault((item.place.path, item.place.group), []).append(item.place)
    if not groups:
        return chunks
    places: dict[Row, Range] = {}
    read_together = list(groups.values())
    for n, ranges in each(write_ranges, job, [(rows,) for rows in read_together], work):
        places.update(zip(read_together[n], ranges, strict=True))
    return {
        i: chunk if isinstance(chunk, Span) else [_placed(item, places) for item in chunk]
        for i, chunk in chunks.items()
    }


def _placed(item: Item, places: dict[Row, Range]) -> Item:
    return replace(item, place=places[item.place]) if isinstance(item.place, Row) else item
