"""Signatures of a run's validation and test images: made in tasks when something is packed that
they are compared with, and kept beside the corpora for a run that goes on."""

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from ns_ray import store
from ns_ray.data import images, spans
from ns_ray.data.chunks import COMPARED, Job
from ns_ray.data.leaks import COARSE, SIDE, VERSION, Signatures, thumbnail
from ns_ray.data.packing import Near, each
from ns_ray.data.spans import Cut, Span
from ns_ray.errors import ImageError
from ns_ray.log import progress
from ns_ray.store import Corpus

FILE = "signatures.parquet"

SIGNATURES = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("thumbnail", pa.binary(SIDE**2), nullable=False),
        pa.field("coarse", pa.binary(4 * 5 * COARSE**2), nullable=False),
    ]
)


def near(held: Mapping[str, Corpus | None], out: str) -> Near:
    """What copies of some images are known by.

    Args:
        held: corpora by name.
        out: folder that the signatures are kept in.
    """
    corpora = {name: corpus for name, corpus in held.items() if corpus is not None}
    mark = store.fingerprint(
        "signatures", VERSION, {name: corpus.fingerprint for name, corpus in corpora.items()}
    )
    return Near(f"near {VERSION}", cache(lambda: _kept(corpora, mark, out)))


def _kept(corpora: Mapping[str, Corpus], mark: str, out: str) -> Signatures:
    with store.claimed(out, mark) as done:
        if done is None:
            start = time.monotonic()
            found = _signed(corpora, out)
            store.write_table(store.join(out, FILE), _table(found))
            store.publish(
                out,
                stage="signatures",
                fingerprint=mark,
                files=[FILE],
                facts={"rows": len(found.names)},
                inputs={name: corpus.fingerprint for name, corpus in corpora.items()},
                seconds=time.monotonic() - start,
            )
            return found
    table = store.read_table(store.join(out, FILE), SIGNATURES.names)
    rows = table.num_rows
    small = b"".join(table["thumbnail"].to_pylist())
    coarse = b"".join(table["coarse"].to_pylist())
    return Signatures(
        table["name"].to_pylist(),
        np.frombuffer(small, np.uint8).reshape(rows, SIDE, SIDE),
        np.frombuffer(coarse, np.float32).reshape(rows, 5, COARSE**2),
    )


def _table(found: Signatures) -> pa.Table:
    columns = [found.names, [t.tobytes() for t in found.thumbnails]]
    columns.append([c.tobytes() for c in found.coarse])
    return pa.table(dict(zip(SIGNATURES.names, columns, strict=True)), SIGNATURES)


def _signed(corpora: Mapping[str, Corpus], out: str) -> Signatures:
    job = Job(out, "", (), images.MAX_PIXELS, frozenset())
    calls = [
        (name, corpus.classes, [store.join(corpus.path, shard.file)])
        for name, corpus in corpora.items()
        for shard in corpus.shards
    ]
    size = sum(shard.bytes for corpus in corpora.values() for shard in corpus.shards)
    rows = [shard.rows for corpus in corpora.values() for shard in corpus.shards]
    with progress("sign validation and test", sum(rows)) as meter:
        parts: dict[int, Signatures] = {}
        for n, part in each(_sign, job, calls, size):
            parts[n] = part
            meter.add(rows[n])
    ordered = [parts[n] for n in range(len(calls))]
    names = [name for part in ordered for name in part.names]
    small = np.concatenate([part.thumbnails for part in ordered])
    coarse = np.concatenate([part.coarse for part in ordered])
    # An image that is there twice would be the next best to itself.
    kept = np.sort(np.unique(small.reshape(len(small), SIDE**2), axis=0, return_index=True)[1])
    return Signatures([names[row] for row in kept.tolist()], small[kept], coarse[kept])


def _sign(job: Job, name: str, classes: tuple[str, ...], files: Sequence[str]) -> Signatures:
    found = list(_thumbnails(job, classes, files))
    small = np.stack([seen for _, seen in found]) if found else np.empty((0, SIDE, SIDE), np.uint8)
    return Signatures.of([f"{name}/{key}" for key, _ in found], small)


def _thumbnails(
    job: Job, classes: tuple[str, ...], files: Sequence[str]
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Keys and thumbnails of the rows of some shards."""
    for item, data in spans.read(Span(0, tuple(files), 0, 0, 0), Cut(classes, "")):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = images.decode(data, max_pixels=job.max_pixels)
        except ImageError:  # another version of a decoder could read it
            continue
        yield item.key, thumbnail(image)


def any_copy(job: Job, classes: tuple[str, ...], files: Sequence[str]) -> bool:
    """Whether a row of some shards is a copy of an image that is held out."""
    assert job.near is not None
    small = (seen for _, seen in _thumbnails(job, classes, files))
    while some := list(islice(small, COMPARED)):
        if (job.near.copies(np.stack(some))[0] >= 0).any():
            return True
    return False
