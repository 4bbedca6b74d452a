"""A packed corpus that a run takes as it is: a pointer to it instead of a copy."""

import time
from collections.abc import Sequence

from ns_ray import store
from ns_ray.data.chunks import Job
from ns_ray.data.images import MAX_PIXELS
from ns_ray.data.packing import KEY_BYTES, Near, each, free, free_of
from ns_ray.data.signatures import any_copy
from ns_ray.data.sources.listing import Listing
from ns_ray.data.spans import columns, scans
from ns_ray.store import Corpus, open_corpus


def adopt(
    listing: Listing,
    *,
    out: str,
    classes: Sequence[str],
    excluded: frozenset[str],
    near: Near | None = None,
) -> Corpus | None:
    """Point to a packed corpus instead of copying it. None when it must be packed again: it is no
    corpus, a part of one is asked for, its classes differ, or it holds excluded images or copies.

    Only the manifest is read, and once for each `excluded` the digests, in tasks; the images too
    where copies are looked for. Files that are in it several times stay.

    Raises:
        StageError: a fault of the machine or the storage; the same call continues.
    """
    corpus = listing.corpus
    if corpus is None or (classes and tuple(classes) != corpus.classes):
        return None
    named = store.from_here(out, corpus.path)
    mark = store.fingerprint("adopt", named, corpus.fingerprint)
    done = store.published(out)
    if done is not None and (not excluded or done.facts.get("free_of") == free_of(excluded, near)):
        if done.fingerprint == mark:
            return open_corpus(out)
        copied = done.facts.get("source") == corpus.fingerprint
        if copied and not {"leak", "near_leak"}.isdisjoint(open_corpus(out).rejected):
            return None  # looked at before: it holds some, and a copy without them is there
    start = time.monotonic()
    if excluded and (_holds(corpus, excluded, out) or _holds_copies(corpus, near, out)):
        return None
    with store.owned(out):
        store.write_json(store.join(out, "pointer.json"), {"corpus": named})
        store.publish(
            out,
            stage="pack",
            fingerprint=mark,
            files=["pointer.json"],
            facts={
                "rows": corpus.rows,
                "rejected": corpus.rejected,
                "adopted": named,
                **free(excluded, near),
            },
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


def _holds(corpus: Corpus, excluded: frozenset[str], out: str) -> bool:
    """Whether a corpus holds one of the excluded images; its own digests stay in the tasks."""
    job = Job(out, "", (), 0, excluded)
    calls = [(files,) for files in scans(corpus)]
    return any(found for _, found in each(_any_excluded, job, calls, KEY_BYTES * corpus.rows))


def _holds_copies(corpus: Corpus, near: Near | None, out: str) -> bool:
    """Whether a corpus holds a copy of one of some images; for that, all of it is decoded."""
    if near is None:
        return False
    job = Job(out, "", (), MAX_PIXELS, frozenset(), near=near.signatures())
    calls = [(corpus.classes, files) for files in scans(corpus)]
    size = sum(shard.bytes for shard in corpus.shards)
    return any(found for _, found in each(any_copy, job, calls, size))


def _any_excluded(job: Job, files: list[str]) -> bool:
    return any(
        not job.excluded.isdisjoint(columns(file, ["sha256"])["sha256"].to_pylist())
        for file in files
    )
