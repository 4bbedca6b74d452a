"""Listing -> corpus: Parquet shards of the original encoded images, each image verified once.

    order by a hash of the keys -> one Ray task per chunk -> manifest, rejected.parquet, _DONE.json

An image that cannot be decoded is a row in `rejected.parquet`. A killed run redoes only the chunks
without a record; the records go when the corpus is published, and what has lost a shard later does
without them (kept.py). Rows of a packed corpus keep the order of its shards, and are neither listed
nor looked at here: its manifest tells whether a corpus made of them is there already.
"""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise, takewhile
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from ns_ray import store
from ns_ray.compute import tasks
from ns_ray.data import duplicates, images, spans
from ns_ray.data.chunks import (
    COPIES,
    Chunk,
    Job,
    Part,
    bytes_in,
    copies_table,
    lay_out,
    pack_chunk,
    read_record,
    record_name,
    rows_in,
)
from ns_ray.data.in_place import apart, chunks_in_place, stays_in
from ns_ray.data.kept import holds, kept
from ns_ray.data.leaks import Signatures
from ns_ray.data.sources import list_source
from ns_ray.data.sources.items import BATCH, Items, Range, Row, in_lines, read_with
from ns_ray.data.sources.listing import Listing, Packed
from ns_ray.data.sources.streams import Streamed
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


@dataclass(frozen=True)
class Near:
    """Images whose copies are left out, besides files that are the same."""

    fingerprint: str
    signatures: Callable[[], Signatures]
    """Makes or reads them; asked for where something is packed."""


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
    near: Near | None = None,
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
        max_rejected: share that may be rejected, leaks not counted; with more, packing stops.
        excluded: sha256 of images to leave out, with the reason `leak`.
        near: leave out copies of these too, as `near_leak`; and where there are no labels, files
            that are there several times but for the first, as `duplicate`.
        setting: where `source` comes from, for messages.

    Raises:
        DataError: nothing can be packed, too much is rejected, or a label is not in `classes`.
        StageError: a fault of the machine or the storage; the same call continues.
    """
    start = time.monotonic()
    listing = list_source(source, setting=setting) if isinstance(source, str) else source
    names = tuple(listing.classes if classes is None else classes)
    _check_labels(listing, names, setting)
    items, staying = apart(listing.items, seed)
    contents = _contents([items, staying], listing.packed)
    of = (schema.FORMAT, listing.fingerprint, contents, names, seed)
    left_out = free_of(excluded, near)
    stays = ["stays"] if staying else []
    mark = store.fingerprint("pack", *of, rows_per_shard, max_pixels, left_out, *stays)
    out = store.absolute(out)
    with store.claimed(out, mark) as done:
        if done is None:
            job = Job(out, mark, names, max_pixels, excluded)
            held = None if near is None else near.signatures()
            with progress(f"pack {os.path.basename(out)}", listing.rows) as meter:
                cuts, found = _find(job, listing.packed, rows_per_shard)
                chunks: list[Chunk] = [*_chunks(items, rows_per_shard), *found]
                chunks += chunks_in_place(staying, rows_per_shard)
                parts = _pack_chunks(replace(job, cuts=cuts), chunks, held, meter, max_rejected)
            if near is not None and not names and len(parts) == len(chunks):
                parts = dict(enumerate(_once(job, [*parts.values()])))
            _check_rejected(job, parts, meter.done, listing, max_rejected, setting)
            facts, seconds = free(excluded, near), time.monotonic() - start
            _publish(job, [*parts.values()], listing, setting, seconds, facts)
        elif "pointer.json" not in done.files:  # left by a crash after publishing
            store.remove_files(out, ["pointer.json"])
        return open_corpus(out)


def _check_labels(listing: Listing, names: tuple[str, ...], setting: str) -> None:
    unknown = sorted(set(listing.counts) - set(names))
    if names and unknown:
        raise DataError(
            f"{setting}={listing.name!r} has the label {unknown[0]!r}, which is none of the "
            f"{len(names)} classes"
        )


def free_of(excluded: frozenset[str], near: Near | None) -> str:
    """Changes with the images to leave out."""
    digest = hashlib.sha256("".join(sorted(excluded)).encode()).hexdigest()
    return digest if near is None else f"{digest} {near.fingerprint}"


def free(excluded: frozenset[str], near: Near | None) -> dict[str, str]:
    """What a published corpus says of the images that were left out. Earlier versions didn't say
    that they looked for the same files alone."""
    facts = {"free_of": free_of(excluded, near)}
    return facts if near is None else {**facts, "leaks": "near"}


def _publish(
    job: Job,
    parts: list[Part],
    listing: Listing,
    setting: str,
    seconds: float,
    facts: dict[str, str],
) -> None:
    """Write the manifest and `_DONE.json`, then clear up what was only needed to resume."""
    reasons = dict(Counter(row["reason"] for part in parts for row in part.rejected))
    if reasons:
        say(f"{setting}: left out {reasons_text(reasons)}; see {job.out}/rejected.parquet")
    shards = [shard for part in parts for shard in part.shards]
    counts = [sum(part.class_counts.get(name, 0) for part in parts) for name in job.classes]
    manifest = corpus_manifest(shards, list(job.classes), counts, reasons, listing.name)
    store.write_json(store.join(job.out, "manifest.json"), manifest)
    files = [*(shard.file for shard in shards), "manifest.json", "rejected.parquet"]
    copies = [row for part in parts for row in part.copies]
    if copies:
        store.write_table(store.join(job.out, COPIES), copies_table(copies))
        files.append(COPIES)
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
            **facts,
            "manifest": manifest,  # changes with this file, where manifest.json is a moment early
        },
        inputs={"source": listing.name, "fingerprint": listing.fingerprint},
        seconds=seconds,
    )
    store.remove_files(job.out, _leftovers(job.out, files))


def _contents(items: Sequence[Items], packed: Sequence[Packed]) -> str:
    """Changes with what is packed and in which order."""
    digest = xxhash.xxh3_128()
    table = pa.concat_tables(some.table.select(["key", "label"]) for some in items)
    for rows in table.to_batches(BATCH):
        tab, labels = pa.scalar("\t", pa.large_string()), rows["label"].fill_null("None")
        lines = pc.binary_join_element_wise(rows["key"], labels, tab)
        digest.update(b"".join([in_lines(lines), b"\n"]))
    if not packed:
        return digest.hexdigest()
    return store.fingerprint(digest.hexdigest(), [part.mark for part in packed])


def _chunks(items: Items, rows: int) -> list[Items]:
    """As few chunks of at most `rows` items as will do, of even size."""
    count = -(-len(items) // rows)
    bounds = [len(items) * i // max(count, 1) for i in range(count + 1)]
    return [items[a:b] for a, b in pairwise(bounds)]


def reasons_text(counts: dict[str, int]) -> str:
    """`truncated: 12, empty: 3`, most frequent first."""
    pairs = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{reason}: {count:,}" for reason, count in pairs) or "none rejected"


def _check_rejected(
    job: Job,
    parts: Mapping[int, Part],
    seen: int,
    listing: Listing,
    max_rejected: float,
    setting: str,
) -> None:
    """Write `rejected.parquet`, beside that of a corpus which stays where this one is refused
    because it lost too much, maybe before all images were seen."""
    total, where = listing.rows, f"{setting}={listing.name!r}"
    rows = sorted((row for p in parts.values() for row in p.rejected), key=lambda row: row["key"])
    reasons = Counter(row["reason"] for row in rows)
    broken = sum(part.broken for part in parts.values())
    usable = seen - sum(reasons.values())
    refused = broken > max_rejected * total or usable <= 0
    file = "rejected.parquet"
    if refused and store.published(job.out) is not None:
        file = schema.part_name("rejected", job.fingerprint)
    table = pa.Table.from_pylist(rows, schema=schema.REJECTED)
    store.write_table(store.join(job.out, file), table)
    if not refused:
        return
    gone = [i for i, p in parts.items() if any(r["reason"] in GONE for r in p.rejected)]
    store.remove_files(job.out, [record_name(job, i) for i in gone])
    such = [f", such as {r['uri']}: {r['detail']}" for r in rows if "leak" not in r["reason"]]
    listed = f"({reasons_text(dict(reasons))}{''.join(such[:1])}; see {job.out}/{file})"
    if broken <= max_rejected * total:
        raise DataError(
            f"{where}: none of the {total:,} images can be used {listed}; `leak` and "
            f"`near_leak` mean that it is a copy of one of data.validation or data.test"
        )
    rest = f" of {total:,}, so the rest is not read" if seen < total else ""
    raise DataError(
        f"{where}: {broken:,} of {seen:,} images ({broken / seen:.1%}) cannot be read {listed}; "
        f"data.max_rejected={max_rejected:g} allows {int(max_rejected * total):,}{rest}"
    )


def _leftovers(out: str, listed: Sequence[str]) -> list[str]:
    """Records, laid-out rows, and what runs with other inputs left that were not finished."""
    ours = ("part-", "rows-", "shard-", "rejected.", "copies.")
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


def _pack_chunks(
    job: Job, chunks: list[Chunk], held: Signatures | None, meter: Meter, max_rejected: float
) -> dict[int, Part]:
    """Pack every chunk that has no record yet; parts by chunk, in their order. Once more images
    than allowed are rejected, no further chunk is begun."""
    parts: dict[int, Part] = {}
    present = set(store.list_files(job.out))
    for i, chunk in enumerate(chunks):
        part = read_record(job, i) if record_name(job, i) in present else None
        if part is not None:
            parts[i] = part
            meter.skip(rows_in(chunk))
    for i, part in _kept(job, chunks, present):
        if i not in parts:
            parts[i] = part
            meter.skip(rows_in(chunks[i]))
    allowed = max_rejected * meter.total
    lost = sum(part.broken for part in parts.values())
    todo = [i for i in range(len(chunks)) if i not in parts and lost <= allowed]
    work = sum(bytes_in(chunks[i]) for i in todo)
    places = _lay_out(job, [chunks[i] for i in todo], work)
    wanted = takewhile(lambda _: lost <= allowed, todo)
    calls = ((i, _placed(chunks[i], places)) for i in wanted)
    for n, part in each(pack_chunk, replace(job, near=held), calls, work):
        parts[todo[n]] = part
        lost += part.broken
        meter.add(rows_in(chunks[todo[n]]))
    return dict(sorted(parts.items()))


def _kept(job: Job, chunks: list[Chunk], present: set[str]) -> Iterator[tuple[int, Part]]:
    """What is whole of the same corpus, which was published before and has lost a file."""
    found = kept(job, chunks, present)
    calls = [call for _, call in found.values()]
    numbers = list(found)
    rows = sum(rows_in(chunks[i]) for i in found)
    for n, whole in each(holds, job, calls, KEY_BYTES * rows):
        if whole:
            yield numbers[n], found[numbers[n]][0]


def _once(job: Job, parts: list[Part]) -> list[Part]:
    """The chunks without files that are there several times, but for the first."""
    size = KEY_BYTES * sum(shard.rows for part in parts for shard in part.shards)
    calls = [(part,) for part in parts if part.shards]
    numbers = [i for i, part in enumerate(parts) if part.shards]
    found = dict(each(duplicates.digests, job, calls, size))
    again = duplicates.repeats([found[n] for n in range(len(calls))])
    wanted: dict[int, list[int]] = {}
    for n, row in {first for _, first in again}:
        wanted.setdefault(n, []).append(row)
    asked = list(wanted.items())
    keys: dict[duplicates.Place, str] = {}
    for a, named in each(duplicates.keys_at, job, [(parts[numbers[n]], r) for n, r in asked], size):
        n, rows = asked[a]
        keys |= {(n, row): key for row, key in zip(rows, named, strict=True)}
    surplus: dict[int, dict[int, str]] = {}
    for (n, row), first in again:
        surplus.setdefault(numbers[n], {})[row] = keys[first]
    cut = [(i, parts[i], rows) for i, rows in surplus.items()]
    made = {cut[n][0]: part for n, part in each(duplicates.without, job, cut, size)}
    return [made.get(i, part) for i, part in enumerate(parts)]


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


def _lay_out(job: Job, chunks: Sequence[Chunk], work: int) -> dict[Row | Streamed, Range]:
    """Where Parquet rows and members of compressed tars are as ranges of plain files beside the
    shards. A chunk takes single ones from all over a source; this way each row group, and each
    tar, is read once."""
    groups: dict[object, list[Row | Streamed]] = {}
    for chunk in chunks:
        if isinstance(chunk, Span) or stays_in(chunk):
            continue
        for place in Items.of(chunk).stored():
            if isinstance(place, Row | Streamed):
                groups.setdefault(read_with(place), []).append(place)
    places: dict[Row | Streamed, Range] = {}
    read_together = list(groups.values())
    calls = [(some,) for some in read_together]
    for n, ranges in each(lay_out, job, calls, work) if calls else ():
        places.update(zip(read_together[n], ranges, strict=True))
    return places


def _placed(chunk: Chunk, places: dict[Row | Streamed, Range]) -> Chunk:
    """A chunk as a task gets it: one object per image, what is laid out as ranges."""
    if isinstance(chunk, Span) or stays_in(chunk):
        return chunk
    return [
        replace(item, place=places[item.place]) if isinstance(item.place, Row | Streamed) else item
        for item in chunk
    ]
