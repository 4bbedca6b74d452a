"""Packed image sets, as light frozen values: read from a folder's JSON files, without an image."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ns_ray.errors import DamagedFileError, DataError
from ns_ray.store.contents import Count, FileName, Place, holding
from ns_ray.store.files import exists, read_json
from ns_ray.store.paths import absolute, join
from ns_ray.store.places import seen_from
from ns_ray.store.publication import check_listed, published
from ns_ray.store.schema import FORMAT
from ns_ray.store.tables import read_table


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a corpus."""

    name: str
    file: FileName
    rows: Count
    bytes: Count


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
        """Rows of one shard.

        Raises:
            DamagedFileError: it is not as it was written, or not what the manifest says.
        """
        path = join(self.path, shard.file)
        table = read_table(path, columns)
        if table.num_rows != shard.rows and table.num_columns:
            said = f"it has {table.num_rows:,} rows, and {shard.rows:,} by its manifest"
            raise DamagedFileError(path, said)
        if "label" in table.column_names and self.classes:
            self._check_labels(table["label"], path)
        return table

    def _check_labels(self, labels: pa.ChunkedArray, path: str) -> None:
        """
        Raises:
            DamagedFileError: a label is none of the classes, or missing though all have one.
        """
        highest = pc.max(labels).as_py()
        if highest is not None and highest >= len(self.classes):
            said = f"it has the label {highest}, and there are {len(self.classes)} classes"
            raise DamagedFileError(path, said)
        if labels.null_count and sum(self.class_counts) == self.rows:
            raise DamagedFileError(path, f"{labels.null_count:,} of its labels are missing")

    def scan(self, columns: list[str]) -> Iterator[tuple[Shard, pa.Table]]:
        """Every shard with some of its columns, in order."""
        for shard in self.shards:
            yield shard, self.read(shard, columns)


MOST_POINTERS = 8
"""Most pointers that are followed: they lead to a corpus, or in a circle."""


@dataclass(frozen=True)
class _Pointer:
    corpus: Place


@dataclass(frozen=True)
class _Manifest:
    """What open_corpus needs of a manifest."""

    shards: tuple[Shard, ...]
    format: int = 0
    classes: tuple[str, ...] | None = None
    class_counts: tuple[Count, ...] | None = None
    rejected: dict[str, Count] = field(default_factory=dict)


def open_corpus(path: str) -> Corpus:
    """A published corpus; a `pointer.json` (an adopted corpus) is followed.

    Raises:
        DataError: there is none, it is unfinished or damaged, or its format is newer than this
            program.
    """
    path, named = absolute(path), ""
    for _ in range(MOST_POINTERS):
        pointer = join(path, "pointer.json")
        if not exists(pointer):
            return _opened(path, named)
        named = f", which {pointer} names,"
        place = seen_from(path, holding(_Pointer, read_json(pointer), pointer).corpus)
        if absolute(place) != place:
            raise DamagedFileError(pointer, f"its corpus {place[:60]!r} is no absolute path")
        path = place
    raise DamagedFileError(pointer, f"it leads to {path}, where there is no corpus but a pointer")


def _opened(path: str, named: str) -> Corpus:
    done = published(path)
    manifest = join(path, "manifest.json")
    if done is None or not exists(manifest):
        said = "is not a packed corpus: it has no manifest.json and _DONE.json"
        raise DataError(f"{path}{named} {said}")
    raw = done.facts.get("manifest")
    if not raw:  # up to version 0.1
        check_listed(path, done, ["manifest.json"])
        raw = read_json(manifest)
    known = holding(_Manifest, raw, manifest)
    if known.format > FORMAT:
        raise DataError(f"{manifest} has format {known.format}; this ns-ray reads up to {FORMAT}")
    for what, names in (("shard", [s.name for s in known.shards]), ("class", known.classes or ())):
        if len(set(names)) < len(names):
            raise DamagedFileError(manifest, f"a {what} is named twice")
    if known.class_counts and len(known.class_counts) != len(known.classes or ()):
        raise DamagedFileError(manifest, "there are not as many class_counts as classes")
    return Corpus(
        path=path,
        fingerprint=done.fingerprint,
        shards=known.shards,
        classes=known.classes or (),
        class_counts=known.class_counts or (),
        rejected=known.rejected,
    )


def listed_shards(path: str) -> list[Shard]:
    """The shards that the manifest of a corpus lists, whether they are there or not.

    Raises:
        DamagedFileError: it is none.
    """
    manifest = join(path, "manifest.json")
    return list(holding(_Manifest, read_json(manifest), manifest).shards)


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
