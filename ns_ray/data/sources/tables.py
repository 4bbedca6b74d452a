"""CSV, TSV, JSON, Parquet and Arrow: tables of paths, or of the encoded images themselves."""

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from ns_ray import store
from ns_ray.data.sources.arrows import arrow
from ns_ray.data.sources.cells import (
    Part,
    check_there,
    class_names,
    encoded,
    image_column,
    is_images,
    is_text,
    label_column,
    need_paths,
    only_plural,
    path_items,
    placed,
    row_labels,
)
from ns_ray.data.sources.files import File, base_of, not_fetched, stamp
from ns_ray.data.sources.items import Item, Items, Row, classes_of, repeated
from ns_ray.data.sources.labels import LABEL_COLUMNS, PLURAL, check_joined, column_named
from ns_ray.data.sources.listing import Listing
from ns_ray.data.sources.texts import text_columns, unpacked
from ns_ray.errors import DataError, MissingSourceError

WHOLE = re.compile(r" *-?\d+ *")


def tables(source: str, infos: list[File], where: str) -> Listing:
    """Rows of one or more tables of the same kind.

    Raises:
        DataError: one cannot be read, or no column names or holds the images.
    """
    base = base_of(infos)
    parts = [
        READERS.get(os.path.splitext(store.bare(info.path).lower())[1], _text)(info, base, where)
        for info in infos
    ]
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part.mark)
    items = Items.joined([part.items for part in parts])
    if not len(items):
        raise MissingSourceError(where, f"{where} holds no images: {infos[0].path} has no rows")
    _check_files(items, where)
    names = parts[-1].names
    used = classes_of(items)
    if not names:
        check_joined(used, where)
    classes = tuple(n for n in names if n in used) if {*used} <= {*names} else used
    notes = tuple(note for part in parts for note in part.notes)
    columns = tuple(dict.fromkeys(name for part in parts for name in part.columns))
    if not used and (many := column_named(columns, (PLURAL,))):
        told = f"column {many!r} is not read, as it may hold several classes of an image"
        notes = (*notes, f"{told}; call it `label` if it holds one")
    return Listing(source, items, classes, digest.hexdigest(), notes, columns=columns)


def _check_files(items: Items, where: str) -> None:
    """
    Raises:
        DataError: rows name one file in several ways, such as in whole and from their table on.
    """
    files = items.table
    if items.places is not None:
        files = files.filter(pa.array(items.which(lambda place: place is None)))
    uris = files["uri"]
    if pc.any(pc.match_substring(uris, "/../")).as_py():
        uris = pa.array(map(os.path.normpath, uris.to_pylist()), uris.type)
    twice = repeated(uris)
    if not twice:
        return
    rows = files["key"].filter(pc.equal(uris, twice[0])).to_pylist()
    raise DataError(
        f"{where} lists {len(twice):,} images more than once, such as "
        f"{' and '.join(map(repr, dict.fromkeys(rows)))}; every image may be listed once"
    )


def _text(info: File, base: str, where: str) -> Part:
    """A CSV, TSV or JSON table; labels and paths stay text, so that `01` stays `01`."""
    data = store.read_bytes(info.path)
    if pointer := not_fetched(data):
        raise DataError(f"{where}: {info.path} is {pointer}")
    return text_part(info.path, unpacked(info.path, data, where), base, where)


def text_part(path: str, data: bytes, base: str, where: str) -> Part:
    """Rows of a text table, by its contents; keys are what of a place comes after `base`.

    Raises:
        DataError: it cannot be read, or no column names the images.
    """
    columns, encoding = text_columns(path, data, where)
    notes = () if encoding == "utf-8" else (f"{path} is read as {encoding}",)
    column = need_paths(list(columns), path, where)
    label = column_named(list(columns), LABEL_COLUMNS) or _plural(columns, path)
    values = columns[label] if label else ()
    labels = row_labels(label, values, (), path, len(columns[column]), where)
    items = path_items(columns[column], labels, path, base, where)
    return Part(items, data, notes=notes, columns=() if label else tuple(columns))


def _plural(columns: Mapping[str, Sequence[Any]], path: str) -> str | None:
    """The column PLURAL of a text table, where it holds whole numbers."""
    own = only_plural([*columns], path)
    values = {str(value) for value in columns[own] if value is not None} if own else set()
    return own if values and all(map(WHOLE.fullmatch, values)) else None


def _parquet(info: File, base: str, where: str) -> Part:
    """Rows of one Parquet file, and the class names its Hugging Face metadata may hold."""
    fs, inner = store.filesystem(info.path)
    try:
        file = pq.ParquetFile(inner, filesystem=fs)
    except (pa.ArrowInvalid, OSError) as error:
        with fs.open_input_stream(inner) as stream:
            pointer = not_fetched(bytes(stream.read(100)))
        reason = pointer or f"not a Parquet file: {error}"
        raise DataError(f"{where}: {info.path} is {reason}") from None
    with file:
        kind = file.schema_arrow
        names = class_names(kind, info.path, where)
        column = image_column(kind, info.path, where)
        label = label_column(kind, info.path)
        stored = encoded(kind.field(column).type)
        mark = stamp([info], base).encode()
        if is_text(stored):
            table = file.read(columns=[column, *([label] if label else [])])
            values = table.column(label).to_pylist() if label else ()
            labels = row_labels(label, values, names, info.path, table.num_rows, where)
            items = path_items(table.column(column).to_pylist(), labels, info.path, base, where)
        elif is_images(stored):
            items = Items.of(_byte_items(file, info, base, column, names, where))
        else:
            raise DataError(
                f"{where}: column {column!r} of {info.path} is {stored}; it must hold paths, "
                f"encoded images, or structs of `bytes` and `path`"
            )
        return Part(items, mark, names, columns=() if label else tuple(kind.names))


def _byte_items(
    file: pq.ParquetFile, info: File, base: str, column: str, names: Sequence[str], where: str
) -> Iterator[Item]:
    """Rows that hold encoded images. Only the small columns are read. Hugging Face's structs of
    `bytes` and `path` may have a path alone; where the first of these is not there, none is."""
    struct = pa.types.is_struct(encoded(file.schema_arrow.field(column).type))
    image = f"{column}.bytes" if struct else column
    label = label_column(file.schema_arrow, info.path)
    prefix = store.bare(info.path)[len(base) :].strip("/")
    folder = os.path.dirname(store.bare(info.path))
    number = itertools.count()
    first = True
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        size = file.metadata.row_group(group).total_byte_size // max(rows, 1)
        values: list[Any] = []
        if label:
            values = file.read_row_group(group, columns=[label]).column(label).to_pylist()
        found = row_labels(label, values, names, info.path, rows, where)
        paths = _paths_alone(file, group, column) if struct else {}
        for row in range(rows):
            count = next(number)
            if row in paths:
                key, uri = placed(paths[row], folder, base)
                if first:
                    check_there(uri, info.path, column, where)
                first = False
                yield Item(key, uri, found[row])
            else:
                key = f"{prefix}/{count:08d}"
                place = Row(info.path, image, group, row)
                yield Item(key, f"{info.path}#{count}", found[row], size, place)


def _paths_alone(file: pq.ParquetFile, group: int, column: str) -> dict[int, str]:
    """Paths of the rows of one group that hold no bytes. Bytes are read only where the file does
    not tell that all rows have some."""
    meta = file.metadata.row_group(group)
    places = {meta.column(i).path_in_schema: meta.column(i) for i in range(meta.num_columns)}
    stored, path = places.get(f"{column}.bytes"), f"{column}.path"
    counted = stored.statistics if stored else None
    if path not in places or (counted and counted.has_null_count and not counted.null_count):
        return {}
    whole = isinstance(file.schema_arrow.field(column).type, pa.BaseExtensionType)  # see read_rows
    table = file.read_row_group(group, columns=[column] if whole else [f"{column}.bytes", path])
    return {
        row: value["path"]
        for row, value in enumerate(table.column(column).to_pylist())
        if value and not value["bytes"] and value["path"]
    }


READERS = {".parquet": _parquet, ".arrow": arrow, ".feather": arrow}
"""Of tables that are no text."""
