"""Galleries of the pile: what selection kept and left out, and labels that changed.

Of a pile too large to read, some shards stand for all: their rows are in random order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow.compute as pc

from ns_ray.report.facts import Lesson, Run
from ns_ray.report.pictures import SHOWN, Gallery, Wanted
from ns_ray.report.predictions import Array, matched
from ns_ray.store import Shard

SCANNED_BYTES = 2**30
"""About as many bytes of encoded images may lie in the shards that galleries draw from."""


@dataclass(frozen=True)
class Pile:
    """Pseudo-labels of the shards that galleries draw from. All columns have the same length."""

    run: Run
    lesson: Lesson
    shards: tuple[str, ...]

    @cached_property
    def columns(self) -> dict[str, Array]:
        """key, shard, label, confidence, copies (0: not kept), and foreign where that is known."""
        names = ["key", "label", "confidence", "shard"] + ["foreign"] * self.lesson.labels.foreign
        parts: dict[str, list[Array]] = {}
        for shard in self.shards:
            table = self.lesson.labels.read(shard, names)
            copies = np.zeros(table.num_rows, np.int64)
            if shard in self.lesson.selection.files:
                kept = self.lesson.selection.read(shard, ["key", "copies"])
                rows = pc.index_in(kept["key"], value_set=table["key"].combine_chunks())
                copies[rows.to_numpy()] = kept["copies"].to_numpy()
            for name in table.column_names:
                parts.setdefault(name, []).append(table[name].to_numpy())
            parts.setdefault("copies", []).append(copies)
        return {name: np.concatenate(values) for name, values in parts.items()}

    def gallery(self, title: str, note: str, rows: Array, total: int) -> Gallery:
        """A gallery of some rows."""
        return Gallery(title, note, tuple(self._wanted(int(i)) for i in rows), total)

    def _wanted(self, i: int) -> Wanted:
        column = self.columns
        name = self.run.classes[int(column["label"][i])]
        confidence, copies = float(column["confidence"][i]), int(column["copies"][i])
        caption = (name, f"{confidence:.3f}" + (f", {copies} copies" if copies > 1 else ""))
        words = f"labeled {name} with confidence {confidence:.3f}"
        return Wanted("unlabeled", str(column["shard"][i]), str(column["key"][i]), caption, words)


def pile_of(run: Run, lesson: Lesson) -> Pile | None:
    """The shards to draw from; None where the packed pile is gone."""
    corpus = run.corpus("unlabeled")
    if corpus is None:
        return None
    known = [shard for shard in corpus.shards if shard.name in lesson.labels.files]
    return Pile(run, lesson, tuple(shard.name for shard in sample(known)))


def sample(shards: Sequence[Shard]) -> list[Shard]:
    """Evenly spread shards of about `SCANNED_BYTES`, at least one; all of them where they fit."""
    size = sum(shard.bytes for shard in shards)
    count = max(1, len(shards) * SCANNED_BYTES // size) if size > SCANNED_BYTES else len(shards)
    return [shards[i * len(shards) // count] for i in range(count)] if shards else []


def most_foreign(pile: Pile) -> list[Gallery]:
    """What is farthest from all labeled images; empty where that is not known."""
    column = pile.columns
    if "foreign" not in column:
        return []
    rows = np.flatnonzero(column["foreign"] > 1)
    order = np.argsort(-column["foreign"][rows], kind="stable")[:SHOWN]
    note = "Farther from all labeled images than 95% of the validation images, the farthest first."
    return [pile.gallery("Most foreign", note, rows[order], len(rows))]


def kept_and_left(pile: Pile) -> list[Gallery]:
    """The most and the least confident rows that were kept, and what selection left out."""
    column, facts = pile.columns, pile.lesson.selection.facts
    own = facts.get("precision")
    least = np.array(
        own["least"] if own else [facts["threshold"]] * len(facts["table"]), np.float32
    )
    above = column["confidence"] > least[column["label"]]
    limit = f"{facts['threshold']:g} (select.threshold)"
    limit = "the class's threshold (select.precision)" if own else limit
    kept = np.flatnonzero(column["copies"] > 0)
    left = column["copies"] == 0
    low = np.flatnonzero(left & ~above)
    many = np.flatnonzero(left & above)
    by_confidence = kept[np.argsort(column["confidence"][kept], kind="stable")]
    return [
        pile.gallery(
            "Most confident, kept",
            "The surest of each predicted class.",
            kept[_surest_of_each(column["label"][kept], column["confidence"][kept])],
            len(kept),
        ),
        pile.gallery(
            "Least confident, kept",
            "If the teacher misleads its student, it is here.",
            by_confidence[:SHOWN],
            len(kept),
        ),
        pile.gallery(
            "Left out: not confident enough",
            f"Confidence of at most {limit}, the lowest first.",
            low[np.argsort(column["confidence"][low], kind="stable")][:SHOWN],
            len(low),
        ),
        pile.gallery(
            "Left out: the class was full",
            "Confident enough, but the class had surer ones (select.per_class).",
            many[np.argsort(-column["confidence"][many], kind="stable")][:SHOWN],
            len(many),
        ),
    ]


def _surest_of_each(labels: Array, confidence: Array) -> Array:
    """Positions of rows: the surest one of each class, then the second of each, ..."""
    order = np.lexsort((-confidence, labels))
    starts = np.searchsorted(labels[order], labels[order], side="left")
    place = np.arange(len(order)) - starts
    return np.asarray(order[np.lexsort((-confidence[order], place))][:SHOWN])


def changed_labels(run: Run, before: Lesson, after: Lesson) -> Gallery | None:
    """Images of the pile that two successive teachers label differently."""
    old, new = pile_of(run, before), pile_of(run, after)
    if old is None or new is None or before.labels.path == after.labels.path:
        return None
    a, b = old.columns, new.columns
    at_a, at_b = matched(a["key"], b["key"])
    changed = a["label"][at_a] != b["label"][at_b]
    at_a, at_b = at_a[changed], at_b[changed]
    order = np.argsort(-b["confidence"][at_b], kind="stable")[:SHOWN]
    pictures = []
    for i, j in zip(at_a[order], at_b[order], strict=True):
        names = [run.classes[int(c["label"][k])] for c, k in ((a, i), (b, j))]
        sure = [f"{float(c['confidence'][k]):.2f}" for c, k in ((a, i), (b, j))]
        caption = (f"{names[0]} → {names[1]}", f"{sure[0]} → {sure[1]}")
        words = (
            f"labeled {names[0]} with confidence {sure[0]} by generation {before.teacher}, "
            f"{names[1]} with {sure[1]} by generation {after.teacher}"
        )
        pictures.append(Wanted("unlabeled", str(b["shard"][j]), str(b["key"][j]), caption, words))
    share = len(at_b) / max(len(changed), 1)
    return Gallery(
        f"Labels that changed from generation {before.teacher} to {after.teacher}",
        f"{share:.1%} of the pile got another label from the new teacher; its surest first.",
        tuple(pictures),
        len(at_b),
    )
