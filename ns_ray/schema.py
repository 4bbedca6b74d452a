"""The Parquet contracts between the stages, and the readers that honor them.

    corpus         key, image, label, width, height, sha256, uri     manifest.json + shards
    pseudo-labels  key, probs | top, label, confidence, shard        one file per corpus shard
    selection      key, label, confidence, copies, shard             one file per corpus shard

Rows are joined by key, never by position. A key is unique in its corpus.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from ns_ray import storage
from ns_ray.errors import DataError

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

SELECTION = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("confidence", pa.float32(), nullable=False),
        pa.field("copies", pa.int32(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
    ]
)


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
    keys: pa.Array, probs: np.ndarray[Any, Any], shard: str, top_k: int | None
) -> pa.Table:
    """Pseudo-labels of one shard.

    Args:
        keys: n keys.
        probs: float32 [n, classes], rows summing to 1.
        shard: name of the corpus shard.
        top_k: keep this many classes per row; None keeps all.
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
    return pa.Table.from_arrays(columns, schema=labels_schema(num_classes, top_k))


def _fixed(values: np.ndarray[Any, Any], kind: pa.DataType) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), kind), values.shape[1])


def dense_probs(table: pa.Table, num_classes: int) -> np.ndarray[Any, Any]:
    """Probabilities of a pseudo-label table as float32 [n, classes], rows summing to 1. What a
    top-k table left out is shared evenly among the other classes."""
    rows = table.num_rows
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
    return np.asarray(dense / dense.sum(axis=1, keepdims=True), dtype=np.float32)


def hash_keys(keys: pa.Array | pa.ChunkedArray, seed: int) -> np.ndarray[Any, Any]:
    """uint64 hashes of keys: every tie, copy and shuffle is decided by these, so that the outcome
    is the same on any cluster."""
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter(
        (digest(key, seed) for key in keys.cast(pa.binary()).to_pylist()),
        dtype=np.uint64,
        count=len(keys),
    )


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a corpus."""

    name: str
    file: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class Corpus:
    """A packed image set. `classes` is empty for an unlabeled one."""

    path: str
    fingerprint: str
    shards: tuple[Shard, ...]
    classes: tuple[str, ...] = ()
    class_counts: tuple[int, ...] = ()
    rejected: dict[str, int] = field(default_factory=dict)
    """Rejected images by reason."""

    @property
    def rows(self) -> int:
        """Number of images."""
        return sum(shard.rows for shard in self.shards)

    def read(self, shard: Shard, columns: list[str] | None = None) -> pa.Table:
        """Rows of one shard."""
        return storage.read_table(storage.join(self.path, shard.file), columns)

    def scan(self, columns: list[str]) -> Iterator[tuple[Shard, pa.Table]]:
        """Every shard with some of its columns, in order."""
        for shard in self.shards:
            yield shard, self.read(shard, columns)


def open_corpus(path: str) -> Corpus:
    """A published corpus; a `pointer.json` (an adopted corpus) is followed.

    Raises:
        DataError: there is none, it is unfinished, or its format is newer than this program.
    """
    path = storage.absolute(path)
    pointer = storage.join(path, "pointer.json")
    if storage.exists(pointer):
        return open_corpus(str(storage.read_json(pointer)["corpus"]))
    done = storage.published(path)
    manifest = storage.join(path, "manifest.json")
    if done is None or not storage.exists(manifest):
        raise DataError(f"{path} is not a packed corpus: it has no manifest.json and _DONE.json")
    raw = storage.read_json(manifest)
    if int(raw.get("format", 0)) > FORMAT:
        raise DataError(f"{manifest} has format {raw['format']}; this ns-ray reads up to {FORMAT}")
    return Corpus(
        path=path,
        fingerprint=done.fingerprint,
        shards=tuple(Shard(**shard) for shard in raw["shards"]),
        classes=tuple(raw.get("classes") or ()),
        class_counts=tuple(raw.get("class_counts") or ()),
        rejected={str(k): int(v) for k, v in raw.get("rejected", {}).items()},
    )


def corpus_manifest(
    shards: list[Shard],
    classes: list[str],
    class_counts: list[int],
    rejected: dict[str, int],
    source: str,
) -> dict[str, Any]:
    """The contents of `manifest.json`."""
    return {
        "format": FORMAT,
        "rows": sum(shard.rows for shard in shards),
        "classes": classes,
        "class_counts": class_counts,
        "rejected": rejected,
        "source": source,
        "shards": [vars(shard) for shard in shards],
    }


@dataclass(frozen=True)
class PseudoLabels:
    """A teacher's probabilities for a corpus: one Parquet file per corpus shard."""

    path: str
    fingerprint: str
    corpus: str
    classes: tuple[str, ...]
    files: dict[str, str]
    """Corpus shard name -> file."""
    rows: int
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    def read(self, shard: str, columns: list[str] | None = None) -> pa.Table:
        """Pseudo-labels of one corpus shard."""
        return storage.read_table(storage.join(self.path, self.files[shard]), columns)


def open_labels(path: str) -> PseudoLabels:
    """Published pseudo-labels.

    Raises:
        DataError: there are none, or labeling has not finished.
    """
    path = storage.absolute(path)
    done = storage.published(path)
    if done is None or done.stage != "label":
        raise DataError(f"{path} holds no finished pseudo-labels (no _DONE.json of `label`)")
    return PseudoLabels(
        path=path,
        fingerprint=done.fingerprint,
        corpus=str(done.facts["corpus"]),
        classes=tuple(done.facts["classes"]),
        files={
            shard_of(name): name
            for name in done.files
            if name.endswith(".parquet") and not name.startswith(REJECTED_PREFIX)
        },
        rows=int(done.facts["rows"]),
        seconds=done.seconds,
        facts=done.facts,
    )


@dataclass(frozen=True)
class Selection:
    """The pseudo-labeled rows that train a student, and how many copies of each."""

    path: str
    fingerprint: str
    labels: str
    """Folder of the pseudo-labels it was made from."""
    corpus: str
    files: dict[str, str]
    counts: dict[str, int]
    """Corpus shard name -> rows, copies counted."""
    kept: int
    copies: int
    """Rows, copies counted."""
    facts: dict[str, Any] = field(default_factory=dict)

    def read(self, shard: str, columns: list[str] | None = None) -> pa.Table:
        """Selected rows of one corpus shard."""
        return storage.read_table(storage.join(self.path, self.files[shard]), columns)


def open_selection(path: str) -> Selection:
    """A published selection.

    Raises:
        DataError: there is none, or selecting has not finished.
    """
    path = storage.absolute(path)
    done = storage.published(path)
    if done is None or done.stage != "select":
        raise DataError(f"{path} holds no finished selection (no _DONE.json of `select`)")
    return Selection(
        path=path,
        fingerprint=done.fingerprint,
        labels=str(done.facts["labels"]),
        corpus=str(done.facts["corpus"]),
        files={shard_of(name): name for name in done.files if name.endswith(".parquet")},
        counts={str(k): int(v) for k, v in done.facts["counts"].items()},
        kept=int(done.facts["kept"]),
        copies=int(done.facts["copies"]),
        facts=done.facts,
    )


def part_name(shard: str, fingerprint: str) -> str:
    """File name for one corpus shard's part of a stage's output."""
    return f"{shard}.{fingerprint[:6]}.parquet"


def shard_of(file: str) -> str:
    """Corpus shard that a file made by `part_name` belongs to."""
    return file.split(".", 1)[0]
