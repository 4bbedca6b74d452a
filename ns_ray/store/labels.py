"""Pseudo-labels, and the selection of them that trains a student, as light frozen values."""

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ns_ray.errors import DataError
from ns_ray.store.paths import absolute, join
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
        return float(self.facts.get("images_per_second", 0.0))

    def read(self, shard: str, columns: list[str] | None = None) -> pa.Table:
        """Pseudo-labels of one corpus shard."""
        return read_table(join(self.path, self.files[shard]), columns)


def open_labels(path: str) -> PseudoLabels:
    """Published pseudo-labels.

    Raises:
        DataError: there are none, or labeling has not finished.
    """
    path = absolute(path)
    done = published(path)
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

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Rows of each class, copies counted."""
        return tuple(int(row["copies"]) for row in self.facts["table"])

    def read(self, shard: str, columns: list[str] | None = None) -> pa.Table:
        """Selected rows of one corpus shard."""
        return read_table(join(self.path, self.files[shard]), columns)


def open_selection(path: str) -> Selection:
    """A published selection.

    Raises:
        DataError: there is none, or selecting has not finished.
    """
    path = absolute(path)
    done = published(path)
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
