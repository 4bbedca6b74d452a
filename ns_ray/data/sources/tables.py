"""CSV, TSV, JSON lines and Parquet: tables of paths, or of the encoded images themselves."""

import io
import json
import os
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
import xxhash

from ns_ray import store
from ns_ray.data.sources.files import File, base_of, stamp
from ns_ray.data.sources.items import Item, Row, classes_of
from ns_ray.data.sources.listing import Listing
from ns_ray.errors import DataError

PATH_COLUMNS = ("image_path", "file_name", "filename", "image", "path", "uri")
LABEL_COLUMNS = ("label", "class")


def tables(source: str, infos: list[File], where: str) -> Listing:
    """Rows of one or more tables of the same kind.

    Raises:
        DataError: one cannot be read, or no column names or holds the images.
    """
    items: list[Item] = []
    names: list[str] = []
    digest = xxhash.xxh3_128()
    base = base_of(infos)
    for info in infos:
        if info.path.lower().endswith(".parquet"):
            part, names = _parquet(info, base, where)
            digest.update(stamp([info], base).encode())
        else:
            data = store.read_bytes(info.path)
            part = _path_items(_text_table(info.path, data, where), info, base, where)
            digest.update(data)
        items += part
    used = set(classes_of(items))
    classes = tuple(n for n in names if n in used) if used <= set(names) else classes_of(items)
    return Listing(source, items, classes, digest.hexdigest())


def _text_table(path: str, data: bytes, where: str) -> pa.Table:
    """A CSV, TSV or JSON-lines table; labels and paths stay text, so that `01` stays `01`."""
    delimiter = "\t" if path.lower().endswith(".tsv") else ","
    parsing = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    try:
        if path.lower().endswith(".jsonl"):
            return pa.json.read_json(io.BytesIO(data))
        names = pa.csv.open_csv(io.BytesIO(data), parse_options=parsing).schema.names
        # Only an empty cell is no label: Arrow would also take a class called NA or nan for one.
        text = pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        )
        return pa.csv.read_csv(io.BytesIO(data), parse_options=parsing, convert_options=text)
    except pa.ArrowInvalid as error:
        raise DataError(f"{where}: {path} cannot be read as a table: {error}") from None


def column_named(table_names: Sequence[str], wanted: Sequence[str]) -> str | None:
    by_lower = {name.strip().lower(): name for name in reversed(table_names)}
    return next((by_lower[name] for name in wanted if name in by_lower), None)


def _need_paths(names: Sequence[str], path: str, where: str) -> str:
    column = column_named(names, PATH_COLUMNS)
    if column is None:
        raise DataError(
            f"{where}: {path} has the columns {', '.join(names)}; one of "
            f"{', '.join(PATH_COLUMNS)} must name the image"
        )
    return column


def _path_items(
    table: pa.Table, info: File, base: str, where: str, names: Sequence[str] = ()
) -> list[Item]:
    """Rows whose image column is a path, relative to the table's folder unless absolute."""
    folder = os.path.dirname(info.path)
    paths = table.column(_need_paths(table.column_names, info.path, where)).to_pylist()
    if any(not isinstance(path, str) or not path for path in paths):
        row = next(i for i, path in enumerate(paths) if not isinstance(path, str) or not path)
        raise DataError(f"{where}: {info.path} has no path in row {row + 1}")
    labels = _labels(table, names)
    items = []
    for path, label in zip(paths, labels, strict=True):
        rooted = store.is_uri(path) or path.startswith("/")
        uri = path if rooted else store.join(folder, path)
        items.append(Item(path if rooted else uri[len(base) :].strip("/"), uri, label))
    return items


def _labels(table: pa.Table, names: Sequence[str]) -> list[str | None]:
    column = column_named(table.column_names, LABEL_COLUMNS)
    if column is None:
        return [None] * table.num_rows
    return [label_of(value, names) for value in table.column(column).to_pylist()]


def label_of(value: Any, names: Sequence[str] = ()) -> str | None:
    if value is None or value == "":
        return None
    if names and isinstance(value, int):  # Hugging Face's ClassLabel; -1 stands for no label
        return names[value] if 0 <= value < len(names) else None
    return str(value).strip()


def _parquet(info: File, base: str, where: str) -> tuple[list[Item], list[str]]:
    """Rows of one Parquet file, and the class names its Hugging Face metadata may hold."""
    fs, inner = store.filesystem(info.path)
    try:
        file = pq.ParquetFile(inner, filesystem=fs)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{where}: {info.path} is not a Parquet file: {error}") from None
    with file:
        kind = file.schema_arrow
        names = _class_names(kind)
        column = _need_paths(kind.names, info.path, where)
        label = column_named(kind.names, LABEL_COLUMNS)
        labels = [label] if label else []
        stored = kind.field(column).type
        if pa.types.is_string(stored) or pa.types.is_large_string(stored):
            table = file.read(columns=[column, *labels])
            return _path_items(table, info, base, where, names), names
        inside = pa.types.is_struct(stored)
        if not (inside or pa.types.is_binary(stored) or pa.types.is_large_binary(stored)):
            raise DataError(
                f"{where}: column {column!r} of {info.path} is {stored}; it must hold paths, "
                f"encoded images, or structs of `bytes` and `path`"
            )
        return _byte_items(file, info, base, column, labels, names), names


def _byte_items(
    file: pq.ParquetFile,
    info: File,
    base: str,
    column: str,
    labels: list[str],
    names: Sequence[str],
) -> list[Item]:
    """Rows that hold encoded images. Only the small columns are read."""
    image = (
        f"{column}.bytes" if pa.types.is_struct(file.schema_arrow.field(column).type) else column
    )
    prefix = info.path[len(base) :].strip("/")
    items, count = [], 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        size = file.metadata.row_group(group).total_byte_size // max(rows, 1)
        table = file.read_row_group(group, columns=labels) if labels else None
        found = [None] * rows if table is None else _labels(table, names)
        for row in range(rows):
            key = f"{prefix}/{count:08d}"
            place = Row(info.path, image, group, row)
            items.append(Item(key, f"{info.path}#{count}", found[row], size, place))
            count += 1
    return items


def _class_names(kind: pa.Schema) -> list[str]:
    raw = (kind.metadata or {}).get(b"huggingface")
    if raw is None:
        return []
    features = json.loads(raw).get("info", {}).get("features", {})
    column = column_named(list(features), LABEL_COLUMNS)
    return [str(name) for name in features[column].get("names") or []] if column else []
