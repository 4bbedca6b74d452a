"""Whether a run's sources still hold the images that its corpora were packed of.

A source is told by the names, sizes and times of change of its files, which costs a listing. A
copy, or what a job unpacks again, has other times: then its images are compared with the corpus,
by digest, and where they are the same the corpus stays. What has changed is said before it is
packed.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count, takewhile
from typing import Any, Literal

from ns_ray import store
from ns_ray.data import images
from ns_ray.data.adopting import digests_of
from ns_ray.data.chunks import READ_AHEAD, READ_THREADS, Job, bytes_in, read_copies
from ns_ray.data.packing import each
from ns_ray.data.sources.items import Item, Row, read_rows, read_with, start_of
from ns_ray.data.sources.listing import Listing
from ns_ray.data.sources.streams import Stream, Streamed
from ns_ray.errors import DataError, ImageError
from ns_ray.log import progress, say
from ns_ray.store import Corpora, Corpus, RunLayout, open_corpus

FASTER = 16
"""How much less time than packing it takes to read an image and compare it (measured: 430 MiB in a
second of a CPU, of files of 77 kB in memory)."""
TOGETHER = 1024
"""Images that a task compares, but for those that lie in a row group of a Parquet file."""

OTHER = "another packed corpus"


def recognized(
    found: dict[str, Listing], out: RunLayout, settings: str, max_pixels: int
) -> dict[str, Listing]:
    """The sources of a run; those whose images are as they were packed, by the fingerprint of then.
    Says which are not, and what is done again.

    Args:
        found: the sources as they are now, by the names of their corpora.
        out: where the run lives.
        settings: fingerprint of what decides which images are taken. With others than before,
            nothing is said.
        max_pixels: larger images count as rejected.

    Raises:
        StageError: a fault of the machine or the storage; the same call continues.
    """
    record = _record(out)
    before = {name: _packed_of(out.corpus(name)) for name in found}
    moved = {
        name: source
        for name, source in found.items()
        if before[name] not in ("", source.fingerprint) and _whole(out.corpus(name))
    }
    if not moved:
        return found
    compare = {n: s for n, s in moved.items() if s.items and _copied(out, n) and not _stay(s)}
    others = set(moved) - set(compare)
    changes = {n: "another table" if _stay(moved[n]) else OTHER for n in others}
    leaks = _leaks(out) if compare else frozenset()
    for name, source in compare.items():
        if record.get("packed", {}).get(name, _marks(source)) != _marks(source):
            changes[name] = OTHER
            continue
        if record.get("same", {}).get(name) == [source.fingerprint, before[name]]:
            continue
        corpus = open_corpus(out.corpus(name))
        if change := _changes(source, corpus, Job(corpus.path, "", (), max_pixels, leaks)):
            changes[name] = change
        else:
            say(f"data.{name}: other files than when this run began, but the same images")
    if changes and record.get("settings", settings) == settings:
        listed = ", ".join(f"data.{name} ({changes[name]})" for name in moved if name in changes)
        say(f"since this run began, images have changed: {listed}; {_again(found, changes, out)}")
    same = set(compare) - set(changes)
    return {
        name: replace(source, fingerprint=before[name]) if name in same else source
        for name, source in found.items()
    }


def looks_for(leaks: str, out: RunLayout, settings: str) -> str:
    """Which copies of validation and test images a run's corpora are packed without: those that
    its settings say, or where an earlier version has packed them, the same files.

    Args:
        leaks: `data.leaks`.
        out: where the run lives.
        settings: as for `recognized`.
    """
    record = _record(out)
    if record.get("settings") == settings:
        return str(record.get("leaks", "exact"))
    done = store.published(out.corpus("labeled"))
    if not record and done is not None and "leaks" not in done.facts:
        return "exact"
    return leaks


def remember(found: dict[str, Listing], out: RunLayout, settings: str, leaks: str) -> None:
    """Write down which sources, as they are now, a run's corpora stand for.

    Args:
        found: the sources as they are now.
        out: where the run lives, its corpora packed.
        settings: as for `recognized`.
        leaks: which copies they were packed without.
    """
    packed = {name: _packed_of(out.corpus(name)) for name in found}
    same = {n: [s.fingerprint, packed[n]] for n, s in found.items() if packed[n] != s.fingerprint}
    marks = {name: _marks(source) for name, source in found.items()}
    record = {"settings": settings, "corpora": sorted(found), "same": same, "packed": marks}
    record["notes"] = {name: list(source.notes) for name, source in found.items() if source.notes}
    if leaks != "exact":
        record["leaks"] = leaks
    if record != _record(out):
        store.write_json(out.sources, record)


def still_packed(out: RunLayout, settings: str) -> Corpora | None:
    """The corpora that a run has packed with these settings. None where one is not whole, or the
    settings are others.

    Args:
        out: where the run lives.
        settings: as for `recognized`.
    """
    record = _record(out)
    if record.get("settings") != settings:
        return None
    if not {"labeled", "validation"} <= {*record["corpora"]}:
        return None
    try:
        corpora = {name: open_corpus(out.corpus(name)) for name in record["corpora"]}
    except DataError:
        return None
    if not all(_whole(corpus.path) for corpus in corpora.values()):
        return None
    return Corpora(
        corpora["labeled"], corpora.get("unlabeled"), corpora["validation"], corpora.get("test")
    )


@dataclass(frozen=True)
class _Record:
    """What sources.json holds."""

    settings: str
    corpora: list[Literal["labeled", "unlabeled", "validation", "test"]]
    same: dict[str, list[str]]
    packed: dict[str, list[str]] = field(default_factory=dict)
    leaks: Literal["near", "exact"] = "exact"


def _read_record(path: str) -> dict[str, Any]:
    raw = store.read_json(path)
    store.holding(_Record, raw, path)
    return raw


def _record(out: RunLayout) -> dict[str, Any]:
    return store.read_intact(out.sources, _read_record) or {}


def _marks(source: Listing) -> list[str]:
    return [part.mark for part in source.packed]


def _whole(corpus: str) -> bool:
    done = store.published(corpus)
    return done is not None and {*done.files} <= {*store.list_files(corpus)}


def _packed_of(corpus: str) -> str:
    """Fingerprint of the listing that a corpus was made of; empty without a corpus."""
    done = store.published(corpus)
    return "" if done is None else str(done.inputs.get("fingerprint", ""))


def _copied(out: RunLayout, name: str) -> bool:
    return not store.exists(store.join(out.corpus(name), "pointer.json"))


def _stay(source: Listing) -> bool:
    """Whether images stay in their tables: a copy of one is another."""
    return any(isinstance(item.place, Row) and item.place.stays for item in source.items)


def _leaks(out: RunLayout) -> frozenset[str]:
    """Digests of the images that labeled ones and the pile were packed without."""
    held = [out.corpus(name) for name in ("validation", "test")]
    return digests_of([open_corpus(path) for path in held if _whole(path)])


def _changes(source: Listing, corpus: Corpus, job: Job) -> str:
    """How a source differs from the corpus that was made of it, for people; empty: not at all."""
    was: dict[str, tuple[str, str | None]] = {}
    for _, table in corpus.scan(["key", "sha256", "label"]):
        for row in table.to_pylist():
            known = corpus.classes and row["label"] is not None
            was[row["key"]] = (row["sha256"], corpus.classes[row["label"]] if known else None)
    rejected = store.read_table(store.join(corpus.path, "rejected.parquet"), ["key"])
    was |= dict.fromkeys(rejected["key"].to_pylist(), ("", None))
    copies = read_copies(corpus.path)
    was |= {key: (row["sha256"], None) for key, row in copies.items()}
    elsewhere = tuple(part.prefix for part in source.packed)
    now = {item.key for item in source.items}
    new = len(now - set(was))
    gone = sum(key not in now and not key.startswith(elsewhere) for key in was)
    if new or gone:
        return f"{gone:,} of {len(was):,} gone, {new:,} new"
    compared, others = [], 0
    for item in source.items:
        digest, label = was[item.key]
        kept = digest and item.key not in copies
        if kept and corpus.classes and item.label != label:
            others += 1
        elif not store.is_web(item.file):  # a URL stands for its image; the web forgets
            compared.append(item)
    calls = [(items, [was[item.key][0] for item in items]) for items in _groups(compared)]
    with progress(f"compare {corpus.path.rpartition('/')[2]}", len(compared)) as meter:
        for n, differing in each(_differing, job, calls, bytes_in(compared) // FASTER):
            others += differing
            meter.add(len(calls[n][0]))
    return f"{others:,} of {len(source.items):,}" if others else ""


def _groups(items: Sequence[Item]) -> list[list[Item]]:
    """Images that are read together, those of a stream in its order."""
    groups: dict[object, list[Item]] = {}
    for n, item in enumerate(sorted(items, key=start_of)):
        place = item.place
        together = read_with(place) if isinstance(place, Row | Streamed) else n // TOGETHER
        groups.setdefault(together, []).append(item)
    return list(groups.values())


def _differing(job: Job, items: list[Item], digests: list[str]) -> int:
    """How many images are not what they were; those without a digest were rejected."""
    found = zip(_read(items), digests, strict=True)
    return sum(not _same(job, data, digest) for data, digest in found)


def _same(job: Job, data: bytes | None, digest: str) -> bool:
    if data is None:
        return not digest
    sha256 = hashlib.sha256(data).hexdigest()
    if digest:
        return sha256 == digest
    if sha256 in job.excluded:
        return True
    try:
        images.decode(data, max_pixels=job.max_pixels)
    except ImageError:
        return True
    return False


def _read(items: list[Item]) -> Iterator[bytes | None]:
    rows = [item.place for item in items if isinstance(item.place, Row)]
    if rows:
        yield from read_rows(rows)
        return
    if isinstance(items[0].place, Streamed):
        stream = Stream()
        yield from (_read_one(item, stream) for item in items)
        return
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for start in range(0, len(items), READ_AHEAD):
            yield from pool.map(_read_one, items[start : start + READ_AHEAD])


def _read_one(item: Item, stream: Stream | None = None) -> bytes | None:
    try:
        return item.read(stream)
    except ImageError:
        return None
    except OSError:
        if store.is_uri(item.file):  # the store's fault rather than the image's: try again
            raise
        return None


def _again(found: dict[str, Listing], changed: dict[str, str], out: RunLayout) -> str:
    """What of a run is done again. Where validation or test images change, labeled ones and the
    pile are packed again as well, without them; but no packed corpus that is used where it is."""

    def copied(name: str) -> bool:
        return name in found and found[name].corpus is None

    def begun(g: int) -> bool:
        return store.exists(out.bundle(g)) or store.exists(out.checkpoints(g))

    teacher = not {*changed}.isdisjoint({"labeled", "validation"}) or (
        "test" in changed and copied("labeled")
    )
    pile = teacher or "unlabeled" in changed or copied("unlabeled")
    students = sum(1 for _ in takewhile(begun, count(1)))
    doing = ["packs"]
    if teacher and begun(0):
        doing.append("trains the teacher")
    if pile and store.exists(out.pseudo_labels(1)):
        doing.append("labels the pile")
    if pile and students:
        doing.append("trains the student" if students == 1 else f"trains {students} students")
    *most, last = doing
    return f"{', '.join(most)} and {last} again" if most else f"{last} again"
