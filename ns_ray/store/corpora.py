"""Packed image sets, as light frozen values: read from a folder's JSON files, without an image."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ns_ray.errors import DataError
from ns_ray.store.files import exists, read_json
from ns_ray.store.paths import absolute, join
from ns_ray.store.publication import published
from ns_ray.store.schema import FORMAT
from ns_ray.store.tables import read_table


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
        return read_table(join(self.path, shard.file), columns)

    def scan(self, columns: list[str]) -> Iterator[tuple[Shard, pa.Table]]:
        """Every shard with some of its columns, in order."""
        for shard in self.shards:
            yield shard, self.read(shard, columns)


def open_corpus(path: str) -> Corpus:
    """A published corpus; a `pointer.json` (an adopted corpus) is followed.

    Raises:
        DataError: there is none, it is unfinished, or its format is newer than this program.
    """
    path = absolute(path)
    pointer = join(path, "pointer.json")
    if exists(pointer):
        return open_corpus(str(read_json(pointer)["corpus"]))
    done = published(path)
    manifest = join(path, "manifest.json")
    if done is None or not exists(manifest):
        raise DataError(f"{path} is not a packed corpus: it has no manifest.json and _DONE.json")
    raw = read_json(manifest)
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
class Corpora:
    """The images of a run, all with the labeled set's class indices."""

    labeled: Corpus
    unlabeled: Corpus | None
    validation: Corpus
    test: Corpus | None
