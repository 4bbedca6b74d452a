"""CSV, TSV, JSON lines and Parquet: tables of paths, or of the encoded images themselves."""

import codecs
import io
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import xxhash

from ns_ray import store
from ns_ray.data.sources.files import File, base_of, not_fetched, stamp
from ns_ray.data.sources.items import Item, Items, Row, classes_of
from ns_ray.data.sources.labels import LABEL_COLUMNS, column_named, labels_of
from ns_ray.data.sources.listing import Listing
from ns_ray.errors import DataError

PATH_COLUMNS = (
    *("image_path", "file_name", "filename", "image", "path", "uri"),
    *("url", "image_url"),
)
DELIMITERS = (",", ";", "\t", "|")
"""Of a CSV file, in the order in which they are tried."""


@dataclass(frozen=True)
class Part:
    """The images of one table.

    Attributes:
        items: in the order of the rows.
        names: class names that its metadata may hold.
        mark: changes with the table.
        notes: what a person should know about it.
    """

    items: Items
    mark: bytes
    names: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()


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
    names = parts[-1].names
    used = set(classes_of(items))
    classes = tuple(n for n in names if n in used) if used <= set(names) else classes_of(items)
    notes = tuple(note for part in parts for note in part.notes)
    return Listing(source, items, classes, digest.hexdigest(), notes)


def _text(info: File, base: str, where: str) -> Part:
    """A CSV, TSV or JSON-lines table; labels and paths stay text, so that `01` stays `01`."""
    data = store.read_bytes(info.path)
    if pointer := not_fetched(data):
        raise DataError(f"{where}: {info.path} is {pointer}")
    text, encoding = _decoded(data, f"{where}: {info.path}")
    notes = () if encoding == "utf-8" else (f"{info.path} is read as {encoding}",)
    rows = _json_lines if store.bare(info.path).lower().endswith(".jsonl") else _separated
    columns = rows(info.path, text, where)
    column = _need_paths(list(columns), info.path, where)
    labels = _labels(columns, (), info.path, where)
    items = Items.of(_path_items(columns[column], labels, info, base, where))
    return Part(items, data, notes=notes)


def _decoded(data: bytes, what: str) -> tuple[str, str]:
    """The text of a file, and its encoding: UTF-8, UTF-16 as Excel saves it, else what Western
    Windows takes for text."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encodings = ["utf-16"]
    else:
        encodings = ["utf-8", "cp1252"]
    for encoding in encodings:
        try:
            return data.decode("utf-8-sig" if encoding == "utf-8" else encoding), encoding
        except UnicodeDecodeError:
            continue
    raise DataError(f"{what} is no text in UTF-8, UTF-16 or cp1252; save it as UTF-8")


def _json_lines(path: str, text: str, where: str) -> dict[str, list[Any]]:
    """Columns of JSON lines; what a line lacks is None."""
    columns: dict[str, list[Any]] = {}
    rows = 0
    for number, line in enumerate(io.BytesIO(text.encode()), 1):  # StringIO takes 4 bytes a letter
        try:
            row = json.loads(line.decode()) if line.strip() else {}
        except (ValueError, RecursionError) as error:
            row = str(error)
        if not isinstance(row, dict):
            raise DataError(f"{where}: {path}, line {number:,} is no JSON object: {str(row)[:80]}")
        columns |= {name: [None] * rows for name in row if name not in columns}
        for name, values in columns.items() if row else ():
            values.append(row.get(name))
        rows += bool(row)
    return columns


def _separated(path: str, text: str, where: str) -> dict[str, list[Any]]:
    """Columns of a CSV or TSV file. Only an empty cell is none: `NA` may be a class."""
    tsv = store.bare(path).lower().endswith(".tsv")
    data = text.encode()
    try:
        parsing, names = _header(data, ("\t",) if tsv else DELIMITERS)
        columns = pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        )
        table = pa.csv.read_csv(io.BytesIO(data), parse_options=parsing, convert_options=columns)
    except pa.ArrowInvalid as error:
        raise DataError(f"{where}: {path} cannot be read as a table: {error}") from None
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _header(
    data: bytes, delimiters: Sequence[str]
) -> tuple["pyarrow.csv.ParseOptions", Sequence[str]]:
    """How a table is parsed, and its columns: the first way by which one of them names images."""
    found, errors = [], []
    for delimiter in delimiters:
        parsing = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        try:
            names = pa.csv.open_csv(io.BytesIO(data), parse_options=parsing).schema.names
        except (
            pa.ArrowInvalid
        ) as error:  # rows of unlike lengths, by a delimiter that is not theirs
            errors.append(error)
            continue
        found.append((parsing, names))
        if column_named(names, PATH_COLUMNS):
            return parsing, names
    if errors and not (found and len(found[0][1]) > 1):
        raise errors[0]
    return found[0]


def _need_paths(names: Sequence[str], path: str, where: str) -> str:
    column = column_named(names, PATH_COLUMNS)
    if column is None:
        raise DataError(
            f"{where}: {path} has the columns {', '.join(names)}; one of "
            f"{', '.join(PATH_COLUMNS)} must name the image"
        )
    return column


def _path_items(
    paths: Sequence[Any], labels: Sequence[str | None], info: File, base: str, where: str
) -> Iterator[Item]:
    """Rows whose image column is a path, relative to the table's folder unless absolute."""
    schemes: set[str] = set()
    for row, (path, label) in enumerate(zip(paths, labels, strict=True), 1):
        if not isinstance(path, str) or not path:
            raise DataError(f"{where}: {info.path} has no path in row {row}")
        key, uri = _place(path, info, base)
        if store.is_uri(uri) and (scheme := uri.partition(":")[0]) not in schemes:
            schemes.add(scheme)
            store.filesystem(uri)  # refuses what cannot be read, before anything is
        yield Item(key, uri, label)


def _place(path: str, info: File, base: str) -> tuple[str, str]:
    """Key and place of an image whose path is in a table. Backslashes are of Windows where there is
    no slash."""
    if "\\" in path and "/" not in path:
        path = path.replace("\\", "/")
    if store.is_uri(path) or path.startswith("/"):
        return path, path
    uri = store.join(os.path.dirname(store.bare(info.path)), path)
    return uri[len(base) :].strip("/"), uri


def _labels(
    columns: dict[str, list[Any]], names: Sequence[str], path: str, where: str
) -> list[str | None]:
    column = column_named(list(columns), LABEL_COLUMNS)
    if column is None:
        return [None] * len(next(iter(columns.values()), []))
    return labels_of(columns[column], names, f"{where}: column {column!r} of {path}")


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
        column = _need_paths(kind.names, info.path, where)
        stored = _encoded(kind.field(column).type)
        mark = stamp([info], base).encode()
        if _is_text(stored):
            label = column_named(kind.names, LABEL_COLUMNS)
            table = file.read(columns=[column, *([label] if label else [])])
            columns = {name: table.column(name).to_pylist() for name in table.column_names}
            labels = _labels(columns, names, info.path, where)
            items = Items.of(_path_items(columns[column], labels, info, base, where))
        elif _is_bytes(stored) or (
            pa.types.is_struct(stored) and stored.get_field_index("bytes") >= 0
        ):
            items = Items.of(_byte_items(file, info, base, column, names, where))
        else:
            raise DataError(
                f"{where}: column {column!r} of {info.path} is {stored}; it must hold paths, "
                f"encoded images, or structs of `bytes` and `path`"
            )
        return Part(items, mark, names)


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


def _byte_items(
    file: pq.ParquetFile, info: File, base: str, column: str, names: Sequence[str], where: str
) -> Iterator[Item]:
    """Rows that hold encoded images. Only the small columns are read. Hugging Face's structs of
    `bytes` and `path` may have a path alone; where the first of these is not there, none is."""
    struct = pa.types.is_struct(_encoded(file.schema_arrow.field(column).type))
    image = f"{column}.bytes" if struct else column
    label = column_named(file.schema_arrow.names, LABEL_COLUMNS)
    prefix = store.bare(info.path)[len(base) :].strip("/")
    number = itertools.count()
    first = True
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        size = file.metadata.row_group(group).total_byte_size // max(rows, 1)
        found: list[str | None] = [None] * rows
        if label:
            values = file.read_row_group(group, columns=[label]).column(label).to_pylist()
            found = _labels({label: values}, names, info.path, where)
        paths = _paths_alone(file, group, column) if struct else {}
        for row in range(rows):
            count = next(number)
            if row in paths:
                key, uri = _place(paths[row], info, base)
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
    table = file.read_row_group(group, columns=[f"{column}.bytes", path])
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
