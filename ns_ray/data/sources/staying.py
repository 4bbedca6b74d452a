"""Parquet tables of images that stay where they are: their ids become keys."""

from collections import Counter
from dataclasses import replace
from uuid import UUID

import pyarrow.parquet as pq

from ns_ray import store
from ns_ray.data.sources.items import Item, Row
from ns_ray.data.sources.labels import short
from ns_ray.data.sources.listing import Listing
from ns_ray.errors import DataError, nearest

MOST_BYTES = 2**29
"""Of the images in one row group, which are read together whenever one is."""


def staying(listing: Listing, column: str) -> Listing:
    """The same images, to be packed without copying them, with ids as keys.

    Args:
        listing: of Parquet tables that hold encoded images.
        column: unique ids, text or numbers.

    Raises:
        DataError: it holds other images, the ids are missing or not unique, or a row group is too
            large to be read for each of its images.
        OSError: a table cannot be read.
    """
    where = f"data.id_column={column!r}"
    places = [item.place for item in listing.items if isinstance(item.place, Row)]
    if listing.packed or len(places) < len(listing.items):
        raise DataError(
            f"{where}: {listing.name!r} is no Parquet table that holds the images themselves; "
            "leave data.id_column out, and they are copied"
        )
    if far := next((place.path for place in places if store.is_read_only(place.path)), None):
        raise DataError(f"{where}: {far} is too far to leave images there; leave it out")
    ids = {path: _ids(path, column, where) for path in dict.fromkeys(p.path for p in places)}
    sizes: Counter[tuple[str, int]] = Counter()
    items: list[Item] = []
    for item, place in zip(listing.items, places, strict=True):
        sizes[place.path, place.group] += item.size
        key = ids[place.path][place.group][place.row]
        items.append(replace(item, key=key, place=replace(place, stays=True)))
    keys = Counter(item.key for item in items)
    if twice := [key for key, count in keys.items() if count > 1]:
        raise DataError(f"{where}: {len(twice):,} ids are not unique, such as {twice[0]!r}")
    (path, group), size = sizes.most_common(1)[0]
    if size > MOST_BYTES:
        raise DataError(
            f"{where}: row group {group} of {path} has {size / 2**20:,.0f} MiB, and is read whole "
            f"for each of its images; write the table with groups of at most "
            f"{MOST_BYTES / 2**20:,.0f} MiB, or leave data.id_column out"
        )
    return replace(listing, items=items)


def _ids(path: str, column: str, where: str) -> list[list[str]]:
    """Ids of each row group."""
    fs, inner = store.filesystem(path)
    with pq.ParquetFile(inner, filesystem=fs) as file:
        names = file.schema_arrow.names
        if column not in names:
            raise DataError(
                f"{where}: {path} has no such column{nearest(column, names)}; it has "
                f"{', '.join(names)}"
            )
        if names.count(column) > 1:
            raise DataError(f"{where}: {path} has that column {names.count(column)} times")
        groups = (file.read_row_group(g, columns=[column]) for g in range(file.num_row_groups))
        values = [group[column].to_pylist() for group in groups]
    if any(value is None or value == "" for group in values for value in group):
        raise DataError(f"{where}: an id is missing in {path}; every image needs one")
    for value in (value for group in values for value in group):
        if isinstance(value, bool) or not isinstance(value, str | int | UUID):
            raise DataError(f"{where}: {path} holds {short(value)}; ids are text or whole numbers")
    return [[str(value) for value in group] for group in values]
