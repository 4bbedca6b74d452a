"""What a source holds: images listed one by one, or rows of packed corpora that are never listed.

A packed corpus tells its rows and classes in its manifest. A part of one, such as the validation
images held out of it, is told by ranks: which rows of each class, in the order of their hashes.
So how many there are is known, and a part can be recognized, without reading a row.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ns_ray import store
from ns_ray.data.sources.items import Array, Item, Items, Row, order, ordered
from ns_ray.store import Corpus, Shard

Ranks = tuple[tuple[int, int], ...]
"""Of each class: the first row that is taken, and the first after it that is not."""


@dataclass(frozen=True)
class Packed:
    """Rows of a packed corpus: all, or those of some ranks; then rows without a label are none of
    them."""

    corpus: Corpus
    ranks: Ranks | None = None
    """Of the rows of each class in the order of their keys' hashes. None: all rows."""
    seed: int = 0
    """Of the hashes."""
    prefix: str = ""
    """What is put in front of the keys."""

    @property
    def rows(self) -> int:
        """Number of images."""
        if self.ranks is None:
            return self.corpus.rows
        return sum(end - start for start, end in self.ranks)

    @property
    def counts(self) -> dict[str, int]:
        """Images with each label; classes without one are left out."""
        counts = self.corpus.class_counts
        if self.ranks is not None:
            counts = tuple(end - start for start, end in self.ranks)
        return {n: c for n, c in zip(self.corpus.classes, counts, strict=True) if c}

    @property
    def mark(self) -> str:
        """Changes with the rows, their order or their keys."""
        fingerprint = self.corpus.fingerprint
        return store.fingerprint(fingerprint, self.ranks, self.seed, self.prefix)


@dataclass(frozen=True)
class Listing:
    """Everything in a source, or a part of it."""

    name: str
    """The source as the user wrote it."""
    items: Sequence[Item]
    """Images that are listed one by one; `list_source` gives them in columns."""
    classes: tuple[str, ...]
    """In the order of their indices. Empty: the source has no labels."""
    fingerprint: str
    """Changes with names, sizes and times of change, or with the contents of a table."""
    notes: tuple[str, ...] = ()
    """What a person should know about it."""
    packed: tuple[Packed, ...] = field(default=())
    """Images in packed corpora, besides `items`."""
    parts: tuple[str, ...] = ()
    """Parts of a set, such as train and test, of which it has files."""
    columns: tuple[str, ...] = ()
    """Of its tables, where none of them says the labels."""

    @property
    def rows(self) -> int:
        """Number of images."""
        return len(self.items) + sum(part.rows for part in self.packed)

    @cached_property
    def counts(self) -> Counter[str]:
        """Images with each label."""
        counted = pc.value_counts(Items.of(self.items).table["label"].drop_null())
        found = Counter({each["values"]: each["counts"] for each in counted.to_pylist()})
        for part in self.packed:
            found.update(part.counts)
        return found

    @property
    def corpus(self) -> Corpus | None:
        """The packed corpus that this is, whole."""
        if self.items or len(self.packed) != 1:
            return None
        (part,) = self.packed
        return part.corpus if part.ranks is None and not part.prefix else None

    def each(self) -> Iterator[Item]:
        """Every image; rows of packed corpora, which must be whole, are listed shard by shard."""
        yield from self.items
        for part in self.packed:
            for shard in part.corpus.shards:
                yield from rows_of(part.corpus, shard)

    def sample(self, count: int, seed: int) -> list[Item]:
        """At most so many images, chosen by seed. Of a packed corpus, they are from one shard, and
        stand for any part of it."""
        if self.items or not self.packed:
            return list(ordered(self.items, seed)[:count])
        corpus = self.packed[seed % len(self.packed)].corpus
        shard = corpus.shards[seed % len(corpus.shards)]
        return list(ordered(rows_of(corpus, shard), seed)[:count])

    def taken(self, parts: Sequence[Ranks], seed: int) -> list["Listing"]:
        """Parts of a source of labeled images: of each class, the images of some ranks.

        Images that lie in several places, such as files and a packed corpus, are mixed evenly.

        Args:
            parts: ranks for each part, in the order of `classes`.
            seed: of the hashes that order the images of a class.
        """
        everything = tuple((0, self.counts[name]) for name in self.classes)
        whole = self.rows == sum(self.counts.values())
        items = Items.of(self.items)
        rows = order(items, seed)
        labels = items.labeled(self.classes)[rows]
        by_class = np.argsort(labels, kind="stable")
        bounds = np.searchsorted(labels[by_class], np.arange(len(self.classes) + 1))
        groups = np.split(rows[by_class], bounds)[1:-1]  # the first are those without a label
        return [
            self if whole and ranks == everything else self._part(ranks, seed, items, groups)
            for ranks in parts
        ]

    def _part(self, ranks: Ranks, seed: int, items: Items, groups: list[Array]) -> "Listing":
        rows: list[Array] = []
        taken: list[dict[str, tuple[int, int]]] = [{} for _ in self.packed]
        for name, group, (start, end) in zip(self.classes, groups, ranks, strict=True):
            counts = [len(group), *(part.counts.get(name, 0) for part in self.packed)]
            own, *others = zip(_mixed(counts, start), _mixed(counts, end), strict=True)
            rows.append(group[own[0] : own[1]])
            for spans, span in zip(taken, others, strict=True):
                spans[name] = span
        packed = [
            replace(p, ranks=tuple(spans[name] for name in p.corpus.classes), seed=seed)
            for p, spans in zip(self.packed, taken, strict=True)
        ]
        some = items.take(np.concatenate(rows)) if rows else []
        return replace(self, items=some, packed=tuple(packed))


def _mixed(counts: Sequence[int], first: int) -> list[int]:
    """How many of the first so many images are of each of some groups, mixed evenly: image k of a
    group of n comes at (k + 0.5) / n."""
    if sum(count > 0 for count in counts) <= 1:
        return [min(count, first) for count in counts]
    places = np.concatenate([(np.arange(count) + 0.5) / max(count, 1) for count in counts])
    groups = np.repeat(np.arange(len(counts)), counts)[np.argsort(places, kind="stable")]
    return [int(count) for count in np.bincount(groups[:first], minlength=len(counts))]


def rows_of(corpus: Corpus, shard: Shard) -> list[Item]:
    """The rows of one shard as images that are not read yet."""
    file = store.join(corpus.path, shard.file)
    fs, inner = store.filesystem(file)
    items: list[Item] = []
    with pq.ParquetFile(inner, filesystem=fs) as parquet:
        left = store.table_of(parquet.schema_arrow)
        columns = ["key", "label", "uri", *(["group", "row"] if left else [])]
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group, columns=columns)
            for row, value in enumerate(table.to_pylist()):
                label = None if value["label"] is None else corpus.classes[value["label"]]
                place = Row(file, "image", group, row)
                if left:
                    place = Row(left["path"], left["column"], value["group"], value["row"])
                size = shard.bytes // max(shard.rows, 1)
                items.append(Item(value["key"], value["uri"], label, size, place))
    return items
