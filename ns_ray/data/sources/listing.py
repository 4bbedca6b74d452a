"""What a source holds: images listed one by one, or rows of packed corpora that are never listed.

A packed corpus tells its rows and classes in its manifest. A part of one, such as the validation
images held out of it, is told by ranks: which rows of each class, in the order of their hashes.
So how many there are is known, and a part can be recognized, without reading a row.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import pyarrow.parquet as pq

from ns_ray import store
from ns_ray.data.sources.items import Item, Row, ordered
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
    items: list[Item]
    """Images that are listed one by one."""
    classes: tuple[str, ...]
    """In the order of their indices. Empty: the source has no labels."""
    fingerprint: str
    """Changes with names, sizes and times of change, or with the contents of a table."""
    notes: tuple[str, ...] = ()
    """What a person should know about it."""
    packed: tuple[Packed, ...] = field(default=())
    """Images in packed corpora, besides `items`."""

    @property
    def rows(self) -> int:
        """Number of images."""
        return len(self.items) + sum(part.rows for part in self.packed)

    @cached_property
    def counts(self) -> Counter[str]:
        """Images with each label."""
        found = Counter(item.label for item in self.items if item.label is not None)
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
            return ordered(self.items, seed)[:count]
        corpus = self.packed[seed % len(self.packed)].corpus
        shard = corpus.shards[seed % len(corpus.shards)]
        return ordered(rows_of(corpus, shard), seed)[:count]

    def taken(self, parts: Sequence[Ranks], seed: int) -> list["Listing"]:
        """Parts of a source of labeled images: of each class, the images of some ranks.

        Args:
            parts: ranks for each part, in the order of `classes`.
            seed: of the hashes that order the images of a class.
        """
        everything = tuple((0, self.counts[name]) for name in self.classes)
        whole = self.rows == sum(self.counts.values())
        groups: dict[str | None, list[Item]] = {name: [] for name in (*self.classes, None)}
        for item in ordered(self.items, seed):
            groups[item.label].append(item)
        return [
            self if whole and ranks == everything else self._part(ranks, seed, groups)
            for ranks in parts
        ]

    def _part(self, ranks: Ranks, seed: int, groups: dict[str | None, list[Item]]) -> "Listing":
        spans = zip(self.classes, ranks, strict=True)
        items = [item for name, (start, end) in spans for item in groups[name][start:end]]
        return replace(
            self, items=items, packed=tuple(Packed(p.corpus, ranks, seed) for p in self.packed)
        )


def rows_of(corpus: Corpus, shard: Shard) -> list[Item]:
    """The rows of one shard as images that are not read yet."""
    file = store.join(corpus.path, shard.file)
    fs, inner = store.filesystem(file)
    items: list[Item] = []
    with pq.ParquetFile(inner, filesystem=fs) as parquet:
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group, columns=["key", "label", "uri"])
            for row, value in enumerate(table.to_pylist()):
                label = None if value["label"] is None else corpus.classes[value["label"]]
                place = Row(file, "image", group, row)
                size = shard.bytes // max(shard.rows, 1)
                items.append(Item(value["key"], value["uri"], label, size, place))
    return items
