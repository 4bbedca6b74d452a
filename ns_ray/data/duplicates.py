"""Files that are in a pile several times: the first row stays, the others are rejected.

    digests of each chunk's rows -> which rows repeat an earlier one -> their shards without them

A shard that loses rows gets another name, so that a killed packing finds what its records say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from ns_ray import store
from ns_ray.data.chunks import Job, Part, rejection, write_record
from ns_ray.data.spans import columns
from ns_ray.store import Shard, schema

Array = np.ndarray[Any, Any]
Place = tuple[int, int]
"""A chunk, and a row of it, counted through its shards."""


def digests(job: Job, part: Part) -> Array:
    """The first 16 digits of each row's sha256 as numbers, uint64 [n]. Of 100 million images, two
    that differ share them with a probability of 3 in 10,000."""
    found = _column(job, part, "sha256").to_pylist()
    return np.fromiter((int(text[:16], 16) for text in found), np.uint64, len(found))


def keys_at(job: Job, part: Part, rows: Sequence[int]) -> list[str]:
    """Keys of some rows of a chunk."""
    return [str(key) for key in _column(job, part, "key").take(pa.array(rows)).to_pylist()]


def repeats(found: Sequence[Array]) -> list[tuple[Place, Place]]:
    """Rows that repeat an earlier one, and that one.

    Args:
        found: the digests of each chunk's rows.
    """
    every = np.concatenate(found) if found else np.empty(0, np.uint64)
    order = np.argsort(every, kind="stable")
    new = np.ones(len(every), bool)
    new[1:] = every[order[1:]] != every[order[:-1]]
    heads = order[new][np.cumsum(new) - 1]
    bounds = np.cumsum([0, *map(len, found)])

    def places(rows: Array) -> list[Place]:
        chunks = np.searchsorted(bounds, rows, side="right") - 1
        return list(zip(chunks.tolist(), (rows - bounds[chunks]).tolist(), strict=True))

    return list(zip(places(order[~new]), places(heads[~new]), strict=True))


def without(job: Job, index: int, part: Part, surplus: Mapping[int, str]) -> Part:
    """A chunk without some rows.

    Args:
        surplus: the rows, and the keys of those that they repeat.
    """
    shards: list[Shard] = []
    rejected, copies = [*part.rejected], [*part.copies]
    start = 0
    for shard in part.shards:
        rows = [row for row in range(shard.rows) if start + row not in surplus]
        if len(rows) == shard.rows:
            shards.append(shard)
        else:
            table = _as_it_is(store.join(job.out, shard.file))
            for row in set(range(shard.rows)) - {*rows}:
                seen = table.slice(row, 1).to_pylist()[0]
                key = surplus[start + row]
                rejected.append(
                    rejection(seen["key"], seen["uri"], "duplicate", f"the same file as {key}")
                )
                about = {"of": key, "correlation": "", "picture": ""}
                copies.append({"key": seen["key"], "sha256": seen["sha256"], **about})
            if rows:
                shards.append(_write(job, shard, table.take(pa.array(rows))))
        start += shard.rows
    made = replace(part, shards=shards, rejected=rejected, copies=copies)
    write_record(job, index, made)
    return made


def _as_it_is(file: str) -> pa.Table:
    """All rows of a shard; without the images where these are left in somebody's table."""
    names = [name for name in schema.CORPUS.names if name != "image"]
    table = columns(file, names)
    left = store.table_of(table.schema) is not None
    return columns(file, [*names, "group", "row"] if left else schema.CORPUS.names)


def _write(job: Job, shard: Shard, table: pa.Table) -> Shard:
    """Write the rows of a shard that stay."""
    name = f"{shard.name}-once"
    file = schema.part_name(name, job.fingerprint)
    store.write_table(store.join(job.out, file), table)
    size = shard.bytes * table.num_rows // shard.rows
    if "image" in table.column_names:
        size = sum(len(image.as_buffer()) for image in table["image"])
    return Shard(name, file, table.num_rows, size)


def _column(job: Job, part: Part, name: str) -> pa.ChunkedArray:
    files = [store.join(job.out, shard.file) for shard in part.shards]
    return pa.chunked_array(
        [c for f in files for c in columns(f, [name])[name].chunks], pa.string()
    )
