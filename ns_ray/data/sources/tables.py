"""CSV, TSV, JSON and Parquet: tables of paths, or of the encoded images themselves."""

import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from ns_ray import store
from ns_ray.data.sources.files import File, base_of, not_fetched, stamp
from ns_ray.data.sources.items import Item, Items, Row, classes_of
from ns_ray.data.sources.labels import (
    LABEL_COLUMNS,
    check_joined,
    column_named,
    labels_of,
    short,
)
from ns_ray.data.sources.listing import Listing
from ns_ray.data.sources.texts import PATH_COLUMNS, check_once, text_columns, unpacked
from ns_ray.errors import DataError, MissingSourceError

LONGEST = 255
"""Letters of a path without a dot in it, from which it is none: disks allow as many in one name."""

WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
"""How a path begins that starts at a drive or a server of Windows."""

NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""What Hive, Spark and pandas call the folder of rows without a value."""


@dataclass(frozen=True)
class Part:
    """The images of one table.

    Attributes:
        items: in the order of the rows.
        names: class names that its metadata may hold.
        mark: changes with the table.
        notes: what a person should know about it.
        columns: all that it has, where none of them says the labels.
    """

    items: Items
    mark: bytes
    names: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


def tables(source: str, infos: list[File], where: str) -> Listing:
    """Rows of one or more tables of the same kind.

    Raises:
        DataError: one cannot be read, or no column names or holds the images.
    """
    base = base_of(infos)
    parquet = [store.bare(info.path).lower().endswith(".parquet") for info in infos]
    parts = [
        (_parquet if columns else _text)(info, base, where)
        for info, columns in zip(infos, parquet, strict=True)
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
    return Listing(source, items, classes, digest.hexdigest(), notes, columns=columns)


def _check_files(items: Items, where: str) -> None:
    """
    Raises:
        DataError: rows name one file in several ways, such as in whole and from their table on.
    """
    files = items.table.filter(pa.array(items.which(lambda place: place is None)))
    uris = files["uri"]
    if pc.any(pc.match_substring(uris, "/../")).as_py():
        uris = pa.array(map(os.path.normpath, uris.to_pylist()), uris.type)
    if pc.count_distinct(uris).as_py() == len(uris):
        return
    counted = pa.table(pc.value_counts(uris).flatten(), names=["uri", "count"])
    twice = counted.filter(pc.field("count") > 1)["uri"]
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
    column = _need_paths(list(columns), path, where)
    labels = _labels(columns, (), path, len(columns[column]), where)
    items = Items.of(_path_items(columns[column], labels, path, base, where))
    return Part(items, data, notes=notes, columns=_unlabeled(list(columns)))


def _unlabeled(names: list[str]) -> tuple[str, ...]:
    return tuple(names) if column_named(names, LABEL_COLUMNS) is None else ()


def _need_paths(names: Sequence[str], path: str, where: str) -> str:
    check_once(names, path, where)
    column = column_named(names, PATH_COLUMNS)
    if column is None:
        raise DataError(
            f"{where}: {path} has the columns {', '.join(names)}; one of "
            f"{', '.join(PATH_COLUMNS)} must name the image"
        )
    return column


def _path_items(
    paths: Sequence[Any], labels: Sequence[str | None], table: str, base: str, where: str
) -> Iterator[Item]:
    """Rows whose image column is a path, relative to the table's folder unless absolute."""
    schemes: set[str] = set()
    folder = os.path.dirname(store.bare(table))
    for row, (path, label) in enumerate(zip(paths, labels, strict=True), 1):
        if path is None or (isinstance(path, str) and not path.strip()):
            raise DataError(f"{where}: {table} has no path in row {row}")
        if told := _no_path(path):
            raise DataError(f"{where}: {table} holds {short(path)} in row {row:,}: {told}")
        key, uri = _place(path, folder, base)
        if store.is_uri(uri) and (scheme := uri.partition(":")[0]) not in schemes:
            schemes.add(scheme)
            store.filesystem(uri)  # refuses what cannot be read, before anything is
        yield Item(key, uri, label)


def _no_path(path: Any) -> str | None:
    """Why a value names no file, for people; None where it may."""
    if not isinstance(path, str) or "\0" in path:
        return "a path is text"
    if WINDOWS.match(path):
        return "it begins at a drive of Windows; write paths as they are from the table on"
    # Base64 has slashes, so none of its parts need be too long; but it has no dot.
    if path.startswith("data:") or (len(path) > LONGEST and not {".", ":"} & {*path}):
        return "it is no path; images as text are not read: write their bytes into a Parquet table"
    return None


def _place(path: str, folder: str, base: str) -> tuple[str, str]:
    """Key and place of an image whose path is in a table of that folder. Backslashes are of
    Windows, unless a file is called so."""
    if store.is_uri(path):
        return path, path
    if "\\" in path and not ("/" in path and os.path.exists(store.join(folder, path))):
        path = path.replace("\\", "/")
    if "//" in path or "/./" in path:
        path = re.sub(r"/(\.?/)+", "/", path)
    if path.startswith("/"):
        return path, path
    uri = store.join(folder, path.removeprefix("./"))
    return uri[len(base) :].strip("/"), uri


def _labels(
    columns: dict[str, list[Any]], names: Sequence[str], table: str, rows: int, where: str
) -> list[str | None]:
    """The label of each row: a column says it, or the folder of a partition: `label=cat`."""
    column = column_named(list(columns), LABEL_COLUMNS)
    if column is not None:
        return labels_of(columns[column], names, f"{where}: column {column!r} of {table}")
    for part in os.path.dirname(store.bare(table)).split("/"):
        name, _, value = part.partition("=")
        if value and name.lower() in LABEL_COLUMNS:
            own = None if value == NO_PARTITION else unquote(value)
            return labels_of([own], names, f"{where}: {table}") * rows
    return [None] * rows


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
        names = _class_names(kind)
        if wrong := sorted(name for name in {*names} if names.count(name) > 1 or not name.strip()):
            raise DataError(
                f"{where}: {info.path} calls several of its classes {wrong[0]!r}, or one nothing; "
                "each class needs a name of its own"
            )
        column = _image_column(kind, info.path, where)
        stored = _encoded(kind.field(column).type)
        mark = stamp([info], base).encode()
        if _is_text(stored):
            label = column_named(kind.names, LABEL_COLUMNS)
            table = file.read(columns=[column, *([label] if label else [])])
            columns = {name: table.column(name).to_pylist() for name in table.column_names}
            labels = _labels(columns, names, info.path, table.num_rows, where)
            items = Items.of(_path_items(columns[column], labels, info.path, base, where))
        elif _is_images(stored):
            items = Items.of(_byte_items(file, info, base, column, names, where))
        else:
            raise DataError(
                f"{where}: column {column!r} of {info.path} is {stored}; it must hold paths, "
                f"encoded images, or structs of `bytes` and `path`"
            )
        return Part(items, mark, names, columns=_unlabeled(kind.names))


def _image_column(kind: pa.Schema, path: str, where: str) -> str:
    """The column that holds images, or else the one that names them: files that are named beside
    the images themselves may be nowhere."""
    own = column_named([one.name for one in kind if _is_images(_encoded(one.type))], PATH_COLUMNS)
    named = _need_paths(kind.names, path, where)
    return named if own is None else own


def _encoded(kind: pa.DataType) -> pa.DataType:
    """The type of a column's values, however they are stored."""
    while True:
        if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        elif isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        else:
            return kind


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return any(is_(kind) for is_ in (types.is_string, types.is_large_string, types.is_string_view))


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    wide = (types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(is_(kind) for is_ in (types.is_binary, *wide))


def _is_images(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return _is_bytes(kind)
    at = kind.get_field_index("bytes")
    own = _encoded(kind.field(at).type) if at >= 0 else None
    return own is not None and (_is_bytes(own) or pa.types.is_null(own))


def _byte_items(
    file: pq.ParquetFile, info: File, base: str, column: str, names: Sequence[str], where: str
) -> Iterator[Item]:
    """Rows that hold encoded images. Only the small columns are read. Hugging Face's structs of
    `bytes` and `path` may have a path alone; where the first of these is not there, none is."""
    struct = pa.types.is_struct(_encoded(file.schema_arrow.field(column).type))
    image = f"{column}.bytes" if struct else column
    label = column_named(file.schema_arrow.names, LABEL_COLUMNS)
    prefix = store.bare(info.path)[len(base) :].strip("/")
    folder = os.path.dirname(store.bare(info.path))
    number = itertools.count()
    first = True
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        size = file.metadata.row_group(group).total_byte_size // max(rows, 1)
        values = {}
        if label:
            table = file.read_row_group(group, columns=[label])
            values = {label: table.column(label).to_pylist()}
        found = _labels(values, names, info.path, rows, where)
        paths = _paths_alone(file, group, column) if struct else {}
        for row in range(rows):
            count = next(number)
            if row in paths:
                key, uri = _place(paths[row], folder, base)
                if first:
                    _check_there(uri, info, column, where)
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


def _check_there(uri: str, info: File, column: str, where: str) -> None:
    """Fail where an image that is named, not stored, is not there."""
    if not store.exists(uri):
        raise DataError(
            f"{where}: column {column!r} of {info.path} holds paths without bytes, and there is no "
            f"{uri}; the images are not embedded: put them beside the table, or write it "
            "with their bytes (datasets: `push_to_hub`, or `embed_table_storage`)"
        )


def _class_names(kind: pa.Schema) -> list[str]:
    raw = (kind.metadata or {}).get(b"huggingface")
    if raw is None:
        return []
    try:
        features = json.loads(raw)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return []
    column = column_named(list(features), LABEL_COLUMNS)
    feature = features[column] if column else None
    # A list of ClassLabels is no dictionary; its values are refused as lists.
    return [str(name) for name in feature.get("names") or []] if isinstance(feature, dict) else []
