"""Images that stay in the Parquet tables that hold them (`data.id_column`) and are not copied."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import cast

import numpy as np

from ns_ray.data.sources.items import Item, Items, Row, ordered, read_rows, read_with


def apart(items: Sequence[Item], seed: int) -> tuple[Items, Items]:
    """Images to be copied, in the order of their hashes, and those that stay in their tables, in
    the order of these."""
    found = Items.of(items)
    stay = found.which(lambda place: isinstance(place, Row) and place.stays)
    if not stay.any():
        return ordered(found, seed), Items.of([])
    return ordered(found.take(np.flatnonzero(~stay)), seed), found.take(np.flatnonzero(stay))


def chunks_in_place(items: Sequence[Item], rows: int) -> list[list[Item]]:
    """Row groups of one table together as long as they have at most so many images; a larger one
    is a chunk, as it is read whole."""
    chunks: list[list[Item]] = []
    file = ""
    for _, group in groupby(items, key=lambda item: read_with(cast(Row, item.place))):
        some = list(group)
        if some[0].file != file or len(chunks[-1]) + len(some) > rows:
            chunks.append([])
            file = some[0].file
        chunks[-1] += some
    return chunks


def stays_in(items: Sequence[Item]) -> Row | None:
    """Where the images of a chunk are, of which all stay in one table, or none."""
    place = items[0].place if items else None
    return place if isinstance(place, Row) and place.stays else None


def read_groups(items: Sequence[Item]) -> Iterator[tuple[Item, bytes]]:
    """Images that stay in a Parquet table, a row group at a time."""
    for _, group in groupby(items, key=lambda item: read_with(cast(Row, item.place))):
        some = list(group)
        yield from zip(some, read_rows([cast(Row, item.place) for item in some]), strict=True)
