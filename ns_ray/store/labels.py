"""Pseudo-labels, and the selection of them that trains a student, as light frozen values."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from ns_ray.errors import DamagedFileError, DataError
from ns_ray.store.contents import Count, Number, Place, Seconds, holding
from ns_ray.store.corpora import open_corpus
from ns_ray.store.paths import DONE, absolute, join
from ns_ray.store.publication import published
from ns_ray.store.schema import REJECTED_PREFIX, shard_of
from ns_ray.store.tables import read_table


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

    @property
    def teacher(self) -> str:
        """Folder of the bundle that labeled."""
        return str(self.facts["teacher"])

    @property
    def images_per_second(self) -> float:
        """How fast it was, 0 where that is not known."""
        return float(self.facts.get("images_per_second") or 0.0)

    @property
    def foreign(self) -> bool:
        """Whether its files say how foreign each row is."""
        return self.facts.get("foreign") is True

    @property
    def rejected(self) -> int:
        """Images that could not be labeled."""
        return int(self.facts.get("rejected", 0))

    def read(self, shard: str, columns: list[str] | None = None) -> pa.Table:
        """Pseudo-labels of one corpus shard.

        Raises:
            DamagedFileError: they are not as they were written, or not listed.
        """
        return read_labels(file_of(self.path, self.files, shard), columns)

    def tables(self) -> Iterator[pa.Table]:
        """The labels of one corpus shard after the other, with two more columns: `uri`, where each
        image came from, and `class`, the name of its label (dictionary-encoded).

        Raises:
            DamagedFileError: a file is not as it was written.
        """
        names = pa.array(self.classes, pa.string())
        for shard, rows in open_corpus(self.corpus).scan(["key", "uri"]):
            table = self.read(shard.name)
            at = pc.index_in(table["key"], value_set=rows["key"])
            named = pa.DictionaryArray.from_arrays(table["label"].combine_chunks(), names)
            yield table.append_column("uri", rows["uri"].take(at)).append_column("class", named)

    def dataset(self) -> ds.Dataset:
        """All of `tables` as a pyarrow dataset in memory, which pyarrow, pandas, DuckDB and Polars
        filter and read. Rows take about two bytes for each class, and those of their key and URI.

        Raises:
            DamagedFileError: a file is not as it was written.
        """
        return ds.dataset(pa.concat_tables(self.tables()))


@dataclass(frozen=True)
class _LabelFacts:
    """What readers of pseudo-labels need of their facts."""

    corpus: Place
    classes: tuple[str, ...]
    rows: Count
    teacher: Place = "?"
    rejected: Count = 0
    images_per_second: Number | None = None


def open_labels(path: str) -> PseudoLabels:
    """Published pseudo-labels.

    Raises:
        DataError: there are none, or labeling has not finished.
    """
    path = absolute(path)
    done = published(path)
    if done is None or done.stage != "label":
        raise DataError(f"{path} holds no finished pseudo-labels (no _DONE.json of `label`)")
    facts = holding(_LabelFacts, done.facts, join(path, DONE))
    return PseudoLabels(
        path=path,
        fingerprint=done.fingerprint,
        corpus=facts.corpus,
        classes=facts.classes,
        files={
            shard_of(name): name
            for name in done.files
            if name.endswith(".parquet") and not name.startswith(REJECTED_PREFIX)
        },
        rows=facts.rows,
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

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Rows of each class, copies counted."""
        if "table" not in self.facts:
            raise DamagedFileError(join(self.path, DONE), "it has no table of the classes")
        return tuple(int(row["copies"]) for row in self.facts["table"])

    def read(self, shard: str, columns: list[str] | None = None) -> pa.Table:
        """Selected rows of one corpus shard.

        Raises:
            DamagedFileError: they are not as they were written, or not what `_DONE.json` says.
        """
        path = file_of(self.path, self.files, shard)
        table = read_table(path, columns)
        classes = len(self.facts.get("table") or ())
        if "label" in table.column_names and table.num_rows and classes:
            highest = pc.max(table["label"]).as_py()
            if highest >= classes:
                said = f"it has the label {highest}, and there are {classes} classes"
                raise DamagedFileError(path, said)
        if "copies" in table.column_names:
            copies = pc.sum(table["copies"]).as_py() or 0
            if copies != self.counts.get(shard, 0):
                said = f"it has {copies:,} copies, and {self.counts.get(shard, 0):,} by {DONE}"
                raise DamagedFileError(path, said)
        return table


@dataclass(frozen=True)
class _ClassFacts:
    """A class in the table of a selection."""

    copies: Count
    rows: Count = 0
    kept: Count = 0
    labeled: Count | None = None
    threshold: Number | None = None


@dataclass(frozen=True)
class _Gaussian:
    mean: Number = 0.0
    variance: Seconds = 0.0


@dataclass(frozen=True)
class _Foreign:
    """How much of the pile is of no class."""

    rows: Count
    of: Count
    expected: Number
    least: Number
    histogram: tuple[Count, ...]


@dataclass(frozen=True)
class _SelectionFacts:
    """What readers of a selection need of its facts."""

    labels: Place
    corpus: Place
    counts: dict[str, Count]
    kept: Count
    copies: Count
    table: tuple[_ClassFacts, ...] = ()
    rows: Count = 0
    weights: _Gaussian | None = None
    foreign: _Foreign | None = None


def open_selection(path: str) -> Selection:
    """A published selection.

    Raises:
        DataError: there is none, or selecting has not finished.
    """
    path = absolute(path)
    done = published(path)
    if done is None or done.stage != "select":
        raise DataError(f"{path} holds no finished selection (no _DONE.json of `select`)")
    facts = holding(_SelectionFacts, done.facts, join(path, DONE))
    if sum(facts.counts.values()) != facts.copies:
        raise DamagedFileError(join(path, DONE), "its counts are not its copies")
    return Selection(
        path=path,
        fingerprint=done.fingerprint,
        labels=facts.labels,
        corpus=facts.corpus,
        files={shard_of(name): name for name in done.files if name.endswith(".parquet")},
        counts=facts.counts,
        kept=facts.kept,
        copies=facts.copies,
        facts=done.facts,
    )


def read_labels(path: str, columns: list[str] | None = None) -> pa.Table:
    """A file of pseudo-labels or predictions, or some of its columns.

    Raises:
        DamagedFileError: it is not as it was written, or holds something else.
    """
    table = read_table(path, columns)
    for name in ("key", "label", "confidence", "shard") if columns is None else ():
        if name not in table.column_names:
            raise DamagedFileError(path, f"it has no column {name!r}")
    return table


def file_of(place: str, files: Mapping[str, str], shard: str) -> str:
    """Path of the file that was made of a corpus shard.

    Raises:
        DamagedFileError: `_DONE.json` lists none.
    """
    if shard not in files:
        raise DamagedFileError(join(place, DONE), f"it lists no file of {shard}")
    return join(place, files[shard])
