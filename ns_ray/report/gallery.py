"""Which images the report shows, and their thumbnails.

Images are chosen by their labels alone; pictures are read afterwards, all at once, from the row
groups that hold them. Of a pile too large for that, some shards stand for all: their rows are in
random order.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow.compute as pc

from ns_ray import store
from ns_ray.data import decode
from ns_ray.errors import ImageError
from ns_ray.report.facts import Array, Lesson, Model, Predictions, Run, matched
from ns_ray.store import Corpus, Shard

SHOWN = 12
"""Pictures in a gallery."""
SCANNED_BYTES = 2**30
"""About as many bytes of encoded images may lie in the shards that galleries draw from."""
SIDE = 112
"""Longest side of a thumbnail in pixels."""
LOSSLESS_SIDE = 64
"""Smaller images are kept as they are."""
READERS = 4
"""Shards that are read at a time."""


@dataclass(frozen=True)
class Wanted:
    """An image to show.

    Attributes:
        corpus: `unlabeled`, `validation` or `test`.
        caption: lines below the picture; the first one stands out.
        words: what is said about it where the picture can't be seen.
    """

    corpus: str
    shard: str
    key: str
    caption: tuple[str, ...]
    words: str


@dataclass(frozen=True)
class Gallery:
    """Some images, and what they have in common.

    Attributes:
        total: images that the shown ones were chosen from.
    """

    title: str
    note: str
    pictures: tuple[Wanted, ...]
    total: int


@dataclass(frozen=True)
class Thumbnail:
    """A picture inside the page: a data URI, and its size in pixels."""

    source: str
    width: int
    height: int


# ---------------------------------------------------------------------------------- the pile


@dataclass(frozen=True)
class Pile:
    """Pseudo-labels of the shards that galleries draw from. All columns have the same length."""

    run: Run
    lesson: Lesson
    shards: tuple[str, ...]

    @cached_property
    def columns(self) -> dict[str, Array]:
        """key, shard, label, confidence, copies (0: not kept)."""
        parts: dict[str, list[Array]] = {}
        for shard in self.shards:
            table = self.lesson.labels.read(shard, ["key", "label", "confidence", "shard"])
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


def kept_and_left(pile: Pile) -> list[Gallery]:
    """The most and the least confident rows that were kept, and what selection left out."""
    column, threshold = pile.columns, float(pile.lesson.selection.facts["threshold"])
    kept = np.flatnonzero(column["copies"] > 0)
    left = column["copies"] == 0
    low = np.flatnonzero(left & (column["confidence"] <= np.float32(threshold)))
    many = np.flatnonzero(left & (column["confidence"] > np.float32(threshold)))
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
            f"Confidence of at most {threshold:g} (select.threshold), the lowest first.",
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


# ------------------------------------------------------------------------ labeled images


def disagreements(
    run: Run, split: str, old: tuple[str, Predictions], new: tuple[str, Predictions]
) -> list[Gallery]:
    """Labeled images on which two models differ: set right, newly wrong, wrong in another way.

    Args:
        split: of which corpus.
        old: a model's name, and its predictions.
        new: the same of the model that is compared with it.
    """
    (old_name, before), (new_name, after) = old, new
    at_a, at_b = matched(before.keys, after.keys)
    was, now = before.correct[at_a], after.correct[at_b]
    differ = before.predicted[at_a] != after.predicted[at_b]
    sure = after.confidence[at_b]
    found = []
    for title, rows in (
        (f"Set right by {new_name}", ~was & now),
        (f"Newly wrong with {new_name}", was & ~now),
        ("Wrong with both, in different ways", ~was & ~now & differ),
    ):
        where = np.flatnonzero(rows)
        where = where[np.argsort(-sure[where], kind="stable")]
        pictures = []
        for i in where[:SHOWN]:
            a, b = int(at_a[i]), int(at_b[i])
            truth, first, second = (
                run.classes[int(c)]
                for c in (before.truth[a], before.predicted[a], after.predicted[b])
            )
            caption = (f"{first} → {second}", f"is {truth}")
            words = f"a {truth}: {old_name} says {first}, {new_name} says {second}"
            key, shard = str(after.keys[b]), str(after.shards[b])
            pictures.append(Wanted(split, shard, key, caption, words))
        note = f"Those of which {new_name} is surest."
        found.append(Gallery(title, note, tuple(pictures), len(where)))
    return found


# ------------------------------------------------------------------------------ thumbnails


def thumbnails(run: Run, galleries: Iterable[Gallery]) -> dict[tuple[str, str], Thumbnail]:
    """Thumbnails by corpus and key of every image that can be read."""
    wanted: dict[tuple[str, str], set[str]] = {}
    for gallery in galleries:
        for picture in gallery.pictures:
            wanted.setdefault((picture.corpus, picture.shard), set()).add(picture.key)
    corpora = {name: run.corpus(name) for name, _ in wanted}
    jobs = [
        (name, corpus, shard, sorted(keys))
        for (name, shard), keys in sorted(wanted.items())
        if (corpus := corpora[name]) is not None
    ]
    found: dict[tuple[str, str], Thumbnail] = {}
    with ThreadPoolExecutor(READERS) as pool:
        for name, part in pool.map(_read_shard, jobs):
            found |= {(name, key): thumb for key, thumb in part.items()}
    return found


def _read_shard(job: tuple[str, Corpus, str, list[str]]) -> tuple[str, dict[str, Thumbnail]]:
    name, corpus, shard_name, keys = job
    file = next(shard.file for shard in corpus.shards if shard.name == shard_name)
    path = store.join(corpus.path, file)
    table = store.read_rows(path, "key", keys, ["key", "image"])
    found = {}
    for key, data in zip(table["key"].to_pylist(), table["image"], strict=True):
        try:
            found[str(key)] = thumbnail(data.as_buffer().to_pybytes())
        except ImageError:
            continue
    return name, found


def thumbnail(data: bytes) -> Thumbnail:
    """A small picture of an encoded image.

    Raises:
        ImageError: it cannot be decoded.
    """
    image = decode(data, shrink_to=SIDE)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    if max(image.size) <= LOSSLESS_SIDE:
        kind = "png"
        image.save(buffer, "PNG", optimize=True)
    else:
        kind = "webp"
        image.save(buffer, "WEBP", quality=78)
    text = base64.b64encode(buffer.getvalue()).decode()
    return Thumbnail(f"data:image/{kind};base64,{text}", image.width, image.height)


def of_run(run: Run) -> tuple[list[Gallery], list[Gallery]]:
    """The galleries of a run: of its pile, and of its labeled images."""
    pile: list[Gallery] = []
    if run.lessons:
        drawn = pile_of(run, _lesson_of(run, run.student))
        pile += kept_and_left(drawn) if drawn else []
        pairs = zip(run.lessons, run.lessons[1:], strict=False)
        pile += [g for before, after in pairs if (g := changed_labels(run, before, after))]
    old, new = (run.predictions(model, run.split) for model in (run.teacher, run.student))
    labeled: list[Gallery] = []
    if old is not None and new is not None:
        names = ("the first teacher", run.student.name)
        labeled = disagreements(run, run.split, (names[0], old), (names[1], new))
    return pile, labeled


def _lesson_of(run: Run, student: Model) -> Lesson:
    return run.lessons[student.generation - 1]
