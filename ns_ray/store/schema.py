"""The Parquet contracts between the stages, and the readers that honor them.

    corpus         key, image, label, width, height, sha256, uri     manifest.json + shards
                   (image: or group and row, see left.py)
    pseudo-labels  key, probs | top, label, confidence, shard        one file per corpus shard
                   (and foreign, where the labels' facts have `foreign`)
    selection      key, label, confidence, copies, shard             one file per corpus shard
                   (and weight, where the selection's facts have `weights`)

Rows are joined by key, never by position. A key is unique in its corpus.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from ns_ray.errors import DamagedFileError

HASHED = 65_536
"""Keys that are objects at a time while they are hashed."""

FORMAT = 1
"""Version of the file formats; a reader refuses a newer one."""

CORPUS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("label", pa.int32()),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
    ]
)

FOREIGN = pa.field("foreign", pa.float32(), nullable=False)
"""How far an image is from all known classes: 0 for the median of held-out images, 1 for what
FOREIGN_LEVEL of them don't exceed."""
FOREIGN_LEVEL = 0.95

REJECTED_PREFIX = "rejected-"
"""Begins the names of files of rejected rows beside those of their shard."""

REJECTED = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)

COPIES = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("of", pa.string(), nullable=False),
        pa.field("correlation", pa.float32()),
        pa.field("picture", pa.binary()),
    ]
)
"""Rows of `rejected.parquet` that are copies of other images: `test/KEY`, `validation/KEY`, or the
key of a row of the same corpus, which has the same bytes and no correlation. Few have pictures."""

SELECTION = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("confidence", pa.float32(), nullable=False),
        pa.field("copies", pa.int32(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
    ]
)

WEIGHTED_SELECTION = SELECTION.append(pa.field("weight", pa.float32(), nullable=False))


def labels_schema(num_classes: int, top_k: int | None) -> pa.Schema:
    """Schema of pseudo-labels: the whole probability vector, or its top k with their classes."""
    if top_k is None:
        probs = [pa.field("probs", pa.list_(pa.float16(), num_classes), nullable=False)]
    else:
        probs = [
            pa.field("top_probs", pa.list_(pa.float16(), top_k), nullable=False),
            pa.field("top_classes", pa.list_(pa.int32(), top_k), nullable=False),
        ]
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            *probs,
            pa.field("label", pa.int32(), nullable=False),
            pa.field("confidence", pa.float32(), nullable=False),
            pa.field("shard", pa.string(), nullable=False),
        ]
    )


def labels_table(
    keys: pa.Array,
    probs: np.ndarray[Any, Any],
    shard: str,
    top_k: int | None,
    foreign: np.ndarray[Any, Any] | None = None,
) -> pa.Table:
    """Pseudo-labels of one shard.

    Args:
        keys: n keys.
        probs: float32 [n, classes], rows summing to 1.
        shard: name of the corpus shard.
        top_k: keep this many classes per row; None keeps all.
        foreign: float32 [n], how foreign each is; None where that is not known.
    """
    rows, num_classes = probs.shape
    columns: list[pa.Array] = [keys]
    if top_k is None:
        columns.append(_fixed(probs.astype(np.float16), pa.float16()))
    else:
        top_k = min(top_k, num_classes)
        order = np.argsort(-probs, axis=1, kind="stable")[:, :top_k]
        top = np.take_along_axis(probs, order, axis=1)
        columns += [
            _fixed(top.astype(np.float16), pa.float16()),
            _fixed(order.astype(np.int32), pa.int32()),
        ]
    columns += [
        pa.array(probs.argmax(axis=1).astype(np.int32)),
        pa.array(probs.max(axis=1).astype(np.float32)),
        pa.array([shard] * rows, pa.string()),
    ]
    table = pa.Table.from_arrays(columns, schema=labels_schema(num_classes, top_k))
    return table if foreign is None else table.append_column(FOREIGN, pa.array(foreign))


def _fixed(values: np.ndarray[Any, Any], kind: pa.DataType) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), kind), values.shape[1])


def dense_probs(
    table: pa.Table, num_classes: int, path: str = "pseudo-labels"
) -> np.ndarray[Any, Any]:
    """Probabilities of a pseudo-label table as float32 [n, classes], rows summing to 1. What a
    top-k table left out is shared evenly among the other classes.

    Args:
        table: pseudo-labels.
        num_classes: how many there are.
        path: of the table's file.

    Raises:
        DamagedFileError: it has no probabilities, or those of other classes.
    """
    rows = table.num_rows
    _check_sizes(table, num_classes, path)
    if "probs" in table.column_names:
        flat = table.column("probs").combine_chunks().flatten().to_numpy(zero_copy_only=False)
        dense = flat.reshape(rows, num_classes).astype(np.float32)
    else:
        top_k = table.schema.field("top_probs").type.list_size
        top = table.column("top_probs").combine_chunks().flatten().to_numpy(zero_copy_only=False)
        classes = table.column("top_classes").combine_chunks().flatten().to_numpy()
        top = top.reshape(rows, top_k).astype(np.float32)
        rest = np.clip(1.0 - top.sum(axis=1, keepdims=True), 0.0, None)
        dense = np.repeat(rest / max(num_classes - top.shape[1], 1), num_classes, axis=1)
        np.put_along_axis(dense, classes.reshape(rows, top_k), top, axis=1)
    total = dense.sum(axis=1, keepdims=True)
    if rows and not (dense.min() >= 0 and (total > 0).all() and np.isfinite(total).all()):
        raise DamagedFileError(path, "it has probabilities that are none")
    return np.asarray(dense / total, dtype=np.float32)


def _check_sizes(table: pa.Table, num_classes: int, path: str) -> None:
    """
    Raises:
        DamagedFileError: see `dense_probs`.
    """
    names = [name for name in ("probs", "top_probs", "top_classes") if name in table.column_names]
    if names not in (["probs"], ["top_probs", "top_classes"]):
        raise DamagedFileError(path, "it has no probabilities")
    sizes = [table.schema.field(name).type.list_size for name in names]
    whole = [num_classes] if len(names) == 1 else [min(sizes[0], num_classes)] * 2
    if sizes != whole or not sizes[0]:
        said = f"it has probabilities of {sizes[0]} classes, and there are {num_classes}"
        raise DamagedFileError(path, said)
    for column in (table.column(name).combine_chunks().flatten() for name in names[1:]):
        if len(column) and not 0 <= pc.min(column).as_py() <= pc.max(column).as_py() < num_classes:
            raise DamagedFileError(path, f"it has a class that is none of {num_classes}")


def hash_keys(keys: pa.Array | pa.ChunkedArray, seed: int) -> np.ndarray[Any, Any]:
    """uint64 hashes of keys: every tie, copy and shuffle is decided by these, so that the outcome
    is the same on any cluster."""
    digest = xxhash.xxh3_64_intdigest
    few = (keys.slice(first, HASHED) for first in range(0, len(keys), HASHED))
    return np.fromiter(
        (digest(key, seed) for some in few for key in some.cast(pa.large_binary()).to_pylist()),
        dtype=np.uint64,
        count=len(keys),
    )


def part_name(shard: str, fingerprint: str) -> str:
    """File name for one corpus shard's part of a stage's output."""
    return f"{shard}.{fingerprint[:6]}.parquet"


def shard_of(file: str) -> str:
    """Corpus shard that a file made by `part_name` belongs to."""
    return file.split(".", 1)[0]
