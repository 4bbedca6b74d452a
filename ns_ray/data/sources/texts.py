"""The columns of tables that are text: CSV, TSV, JSON and JSON lines, as people and Excel write
them, maybe compressed."""

import codecs
import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ns_ray import store
from ns_ray.data.sources.files import IMAGE_ENDINGS
from ns_ray.data.sources.labels import LABEL_COLUMNS, column_named, short
from ns_ray.errors import DataError

PATH_COLUMNS = (
    *("image_path", "file_name", "filename", "image", "path", "uri"),
    *("url", "image_url"),
)
TEXT_ENDINGS = (".csv", ".tsv", ".jsonl", ".json")
CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
"""What the name of a compressed table ends in, behind that, and what Arrow calls it."""

DELIMITERS = (",", ";", "\t", "|")
"""Of a CSV file, in the order in which they are tried."""

BLOCK = 2**26
"""Bytes of a CSV file that are parsed together, and so the longest row: a mask or an image that
stands in a cell takes more than Arrow's one MiB."""

SAYS_DELIMITER = re.compile(r"sep=(.)\r?\n")
"""How Excel says what is between the cells, in a first line of its own."""


def text_columns(path: str, data: bytes, where: str) -> tuple[dict[str, list[Any]], str]:
    """The columns of a table, and its encoding. Of CSV and TSV they are text, so that `01` stays
    `01`, and an empty cell is None.

    Raises:
        DataError: it cannot be read as one.
    """
    name, codec = os.path.splitext(store.bare(path).lower())
    kind = os.path.splitext(name)[1] if codec in CODECS else codec
    text, encoding = _decoded(data, f"{where}: {path}")
    rows = {".jsonl": _json_lines, ".json": _json}.get(kind, _separated)
    return rows(path, text, where), encoding


def unpacked(path: str, data: bytes, where: str) -> bytes:
    """The text of a table, whose name tells whether it is compressed.

    Raises:
        DataError: it is cut off, or not compressed so.
    """
    codec = CODECS.get(os.path.splitext(store.bare(path).lower())[1])
    if codec is None:
        return data
    try:
        with pa.CompressedInputStream(pa.BufferReader(data), codec) as stream:
            return bytes(stream.read())
    except OSError as error:
        raise DataError(f"{where}: {path} cannot be unpacked: {error}") from None


def _decoded(data: bytes, what: str) -> tuple[str, str]:
    """The text of a file, and its encoding: UTF-8, UTF-16 as Excel saves it, else what Western
    Windows takes for text."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encodings = ["utf-16"]
    else:
        encodings = ["utf-8", "cp1252"]
    for encoding in encodings:
        try:
            text = data.decode("utf-8-sig" if encoding == "utf-8" else encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:  # as UTF-16 without its mark, and UTF-32, have at every other letter
            return text, encoding
    raise DataError(f"{what} is no text in UTF-8, UTF-16 or cp1252; save it as UTF-8")


def _json_lines(path: str, text: str, where: str) -> dict[str, list[Any]]:
    return _columns(_lines(path, text, where))


def _lines(path: str, text: str, where: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(io.BytesIO(text.encode()), 1):  # StringIO takes 4 bytes a letter
        try:
            row = json.loads(line.decode()) if line.strip() else {}
        except (ValueError, RecursionError) as error:
            row = str(error)
        if not isinstance(row, dict):
            raise DataError(f"{where}: {path}, line {number:,} is no JSON object: {str(row)[:80]}")
        yield row


def _columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows as columns; what a row lacks is None, and an empty one is none."""
    columns: dict[str, list[Any]] = {}
    for number, row in enumerate(filter(None, rows)):
        if not row.keys() <= columns.keys():
            columns |= {name: [None] * number for name in row if name not in columns}
        for name, values in columns.items():
            values.append(row.get(name))
    return columns


def _json(path: str, text: str, where: str) -> dict[str, list[Any]]:
    """Columns of a JSON file: a list of objects, an object of labels by paths; or JSON lines, which
    some programs call so, too."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("{"):
            return _json_lines(path, text, where)
        raise DataError(f"{where}: {path} is no valid JSON: {error}") from None
    if isinstance(value, list):
        for number, row in enumerate(value, 1):
            if not isinstance(row, dict):
                told = f"entry {number:,} is no JSON object: {short(row)}"
                raise DataError(f"{where}: {path}, {told}")
        return _columns(value)
    if isinstance(value, dict) and {"images", "annotations"} <= value.keys():
        raise DataError(
            f"{where}: {path} is a COCO file, which says what is where in an image; an image has "
            "one class here: write a table with the columns file_name and label"
        )
    if isinstance(value, dict) and all(one.lower().endswith(IMAGE_ENDINGS) for one in value):
        return {"path": [*value], "label": [*value.values()]}
    raise DataError(
        f"{where}: {path} holds {short(value)}; it must be a list of objects, such as "
        '[{"file_name": "a.jpg", "label": "cat"}], or labels by paths: {"a.jpg": "cat"} (pandas: '
        'to_json(PATH, orient="records"))'
    )


def _separated(path: str, text: str, where: str) -> dict[str, list[Any]]:
    """Columns of a CSV or TSV file. Only an empty cell is none: `NA` may be a class."""
    delimiters = ("\t",) if store.bare(path).lower().endswith(".tsv") else DELIMITERS
    if said := SAYS_DELIMITER.match(text):
        delimiters, text = (said[1],), text[said.end() :]
    data = text.encode()
    try:
        parsing, names = _header(data, delimiters)
        check_once(names, path, where)
        columns = pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        )
        reading = pa.csv.ReadOptions(block_size=BLOCK)
        table = pa.csv.read_csv(io.BytesIO(data), reading, parsing, columns)
    except pa.ArrowInvalid as error:
        raise DataError(f"{where}: {path} cannot be read as a table: {error}") from None
    if any(pc.any(pc.match_substring(column, "\n")).as_py() for column in table.columns):
        _check_quotes(path, text, parsing.delimiter, where)
    named = zip(table.column_names, table.columns, strict=True)
    return {name: _trimmed(name, column.to_pylist()) for name, column in named}


def check_once(names: Sequence[str], path: str, where: str) -> None:
    """
    Raises:
        DataError: several columns could be the one of images or of labels.
    """
    for wanted in (*PATH_COLUMNS, *LABEL_COLUMNS):
        alike = [name for name in names if name.strip().lower() == wanted]
        if len(alike) > 1 and alike.count(wanted) != 1:
            listed = " and ".join(map(repr, alike))
            raise DataError(f"{where}: {path} has the columns {listed}; leave one of them")


def _trimmed(name: str, values: list[str | None]) -> list[str | None]:
    """Cells without the blanks that stand between them and the delimiters, where these also stand
    around the name of their column."""
    return values if name == name.strip() else [value and value.strip() for value in values]


def _check_quotes(path: str, text: str, delimiter: str, where: str) -> None:
    """
    Raises:
        DataError: a cell is opened by a quote that is not closed, or not before a delimiter: then
            it has swallowed rows.
    """
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    first, limit = 1, csv.field_size_limit(len(text))
    try:
        for _ in rows:
            first = rows.line_num + 1
    except csv.Error:
        raise DataError(
            f"{where}: {path}, line {first:,} opens a cell with a quote that is not closed at the "
            'end of the cell; close it, or write a quote that is part of a cell as ""'
        ) from None
    finally:
        csv.field_size_limit(limit)


def _header(data: bytes, delimiters: Sequence[str]) -> tuple["pyarrow.csv.ParseOptions", list[str]]:
    """How a table is parsed, and its columns: the first way by which one of them names images."""
    found: list[tuple[pyarrow.csv.ParseOptions, list[str]]] = []
    errors = []
    reading = pa.csv.ReadOptions(block_size=BLOCK)
    for delimiter in delimiters:
        parsing = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        try:
            names = pa.csv.open_csv(io.BytesIO(data), reading, parsing).schema.names
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
