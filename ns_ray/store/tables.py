"""Parquet files: read whole or in part, written whole or not at all, and never read wrongly.

A page carries its checksum, as Parquet has it, and the footer's stands before it, where other
readers see nothing. So whatever part of a file is read is checked, where it is read, and no list of
checksums has to travel with it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from ns_ray.errors import DamagedFileError, first_line
from ns_ray.store.faults import guarded
from ns_ray.store.files import read_bytes, write_bytes
from ns_ray.store.left import table_of, with_images
from ns_ray.store.paths import filesystem
from ns_ray.store.schema import CORPUS, FOREIGN, REJECTED, WEIGHTED_SELECTION, labels_schema

MARK = b"ns_ray:\x01"
"""Stands before the eight bytes of the footer's XXH3, which stand before the footer."""
TAIL = 64 * 1024
"""Bytes that are read for the footer at first, as Arrow does."""

WRONG = (pa.ArrowException, UnicodeDecodeError, OSError)
"""What Arrow raises for what is no Parquet file, and a file system besides."""

_FIELDS = [*CORPUS, *REJECTED, *WEIGHTED_SELECTION, *labels_schema(1, None), *labels_schema(1, 1)]
_FIELDS.append(FOREIGN)
TYPES = {column.name: column.type for column in _FIELDS}
"""Of the columns in our tables, whichever they are in."""
REQUIRED = {column.name for column in _FIELDS if not column.nullable}
"""Columns without missing values, but for the labels of images."""

T = TypeVar("T")


@guarded("read")
def read_table(path: str, columns: list[str] | None = None) -> pa.Table:
    """A whole Parquet file, or some of its columns.

    Raises:
        DamagedFileError: it is not as it was written.
    """

    def whole(file: pq.ParquetFile) -> pa.Table:
        return _whole_rows(file, columns, lambda own: file.read(columns=own))

    return _parsed(path, whole)


@guarded("read")
def read_rows(path: str, column: str, values: list[str], columns: list[str]) -> pa.Table:
    """The rows of a Parquet file whose `column` is one of `values`, with some of their columns:
    only the row groups that hold them are read.

    Raises:
        DamagedFileError: it is not as it was written.
    """
    wanted = pa.array(values, pa.string())

    def found(file: pq.ParquetFile) -> pa.Table:
        groups = [
            group
            for group in range(file.num_row_groups)
            if pc.any(pc.is_in(file.read_row_group(group, [column])[column], wanted)).as_py()
        ]

        def some(own: list[str] | None) -> pa.Table:
            table = file.read_row_groups(groups, list({column, *(own or ())}))
            return table.filter(pc.is_in(table[column], wanted))

        return _whole_rows(file, list(dict.fromkeys([column, *columns])), some)

    return _parsed(path, found)


@guarded("read")
def read_first(path: str, rows: int, columns: list[str]) -> pa.Table:
    """At most so many rows from the beginning of a Parquet file, with some of their columns.

    Raises:
        DamagedFileError: it is not as it was written.
    """

    def first(file: pq.ParquetFile) -> pa.Table:
        def some(own: list[str] | None) -> pa.Table:
            batch = next(file.iter_batches(rows, columns=own), None)
            schema = pa.schema([file.schema_arrow.field(name) for name in own or ()])
            return pa.Table.from_batches([batch] if batch is not None else [], schema)

        return _whole_rows(file, columns, some)

    return _parsed(path, first)


@contextmanager
def open_table(path: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file that is read bit by bit, each checked: see `read_group`.

    Raises:
        DamagedFileError: it is not as it was written.
    """
    fs, inner = filesystem(path)
    with fs.open_input_file(inner) as source:
        try:
            yield _checked(source)
        except WRONG as error:
            if isinstance(error, OSError) and error.errno:
                raise
            # Tells a damaged file from a bad moment.
            _parsed(path, lambda file: _agreed(file, file.read()))
            raise


def read_group(file: pq.ParquetFile, group: int, columns: list[str]) -> pa.Table:
    """Some columns of a row group of an open file, within its `open_table`."""
    return _whole_rows(file, columns, lambda own: file.read_row_group(group, own))


def write_table(path: str, table: pa.Table, row_group_size: int = 256) -> None:
    """Write a Parquet file that appears whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, row_group_size=row_group_size, compression="zstd", write_page_checksum=True
    )
    data = memoryview(sink.getvalue())
    start = len(data) - _footer_bytes(data[-8:])
    seal = MARK + xxhash.xxh3_64_digest(data[start:])
    write_bytes(path, b"".join([data[:start], seal, data[start:]]))


def _parsed(path: str, parse: Callable[[pq.ParquetFile], T]) -> T:
    """What `parse` makes of a file; of its bytes in memory, where that failed: an error there is
    the file's, and not the storage's."""
    fs, inner = filesystem(path)
    try:
        with fs.open_input_file(inner) as source:
            return parse(_checked(source))
    except WRONG as error:
        if isinstance(error, OSError) and error.errno:
            raise
    whole = pa.BufferReader(read_bytes(path))
    try:
        return parse(_checked(whole))
    except WRONG as error:
        what = f"it is no Parquet file as it was written: {first_line(error)}{_where(whole)}"
        raise DamagedFileError(path, what) from error


def _checked(source: pa.NativeFile) -> pq.ParquetFile:
    """A file whose footer is as it was written, and whose pages are checked as they are read.

    Raises:
        ArrowInvalid: the footer isn't.
    """
    size = source.size()
    tail = source.read_at(min(size, TAIL), max(size - TAIL, 0))
    if len(tail) < 12:
        raise pa.ArrowInvalid(f"it has {size} bytes")
    footer = _footer_bytes(tail[-8:])
    if size >= footer + 16 > len(tail):
        tail = source.read_at(footer + 16, size - footer - 16)
    start = len(tail) - footer
    seal = tail[max(start - 16, 0) : max(start, 0)]
    if seal[:8] == MARK and seal[8:] != xxhash.xxh3_64_digest(tail[start:]):
        raise pa.ArrowInvalid("the checksum of its footer differs")
    file = pq.ParquetFile(
        source,
        metadata=pq.read_metadata(pa.BufferReader(tail)),
        page_checksum_verification=True,
        pre_buffer=True,
    )
    names = file.schema_arrow.names
    if len(set(names)) < len(names):
        raise pa.ArrowInvalid("two of its columns have the same name")
    for column in file.schema_arrow:
        kind = TYPES.get(column.name, column.type)
        if column.type != kind and not _is_list_of(column.type, kind):
            raise pa.ArrowInvalid(f"its column {column.name!r} is {column.type}, not {kind}")
    return file


def _whole_rows(
    file: pq.ParquetFile,
    columns: list[str] | None,
    read: Callable[[list[str] | None], pa.Table],
) -> pa.Table:
    """Rows as `read` gives them of some columns, with their images where these are elsewhere."""
    about = table_of(file.schema_arrow)
    if about is None:
        return _agreed(file, read(columns), columns)
    names = CORPUS.names if columns is None else columns
    own = [name for name in names if name != "image"]
    if len(own) == len(names):
        return _agreed(file, read(own), own)
    needed = list(dict.fromkeys([*own, "group", "row"]))
    return with_images(_agreed(file, read(needed), needed), about).select(names)


def _agreed(file: pq.ParquetFile, table: pa.Table, columns: list[str] | None = None) -> pa.Table:
    """What was read of a file: it has the columns that were asked for, with values as agreed.

    Raises:
        ArrowInvalid: it hasn't.
    """
    if missing := [name for name in columns or () if name not in table.column_names]:
        raise pa.ArrowInvalid(f"it has no column {missing[0]!r}")
    optional = {"label"} if {"image", "group"} & {*file.schema_arrow.names} else set()
    for name in REQUIRED.intersection(table.column_names):
        column = table.column(name)
        if column.null_count and name not in optional:
            raise pa.ArrowInvalid(
                f"{column.null_count:,} values of its column {name!r} are missing"
            )
        if pa.types.is_integer(column.type) and (pc.min(column).as_py() or 0) < 0:
            raise pa.ArrowInvalid(f"its column {name!r} has values below 0")
    return table


def _is_list_of(kind: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a type is a list of fixed size of what another is one of, whatever the sizes."""
    fixed = pa.types.is_fixed_size_list
    return fixed(kind) and fixed(wanted) and bool(kind.value_type == wanted.value_type)


def _footer_bytes(end: bytes | memoryview) -> int:
    """Length of the footer, with the eight bytes that end a file: its own length, and PAR1."""
    return int.from_bytes(end[:4], "little") + 8


def _where(whole: pa.NativeFile) -> str:
    """Which rows, and with which keys, cannot be read, as far as that can be told."""
    try:
        file, first = _checked(whole), 0
    except WRONG:
        return ""
    for group in range(file.num_row_groups):
        last = first + file.metadata.row_group(group).num_rows - 1
        try:
            _agreed(file, file.read_row_group(group))
        except WRONG:
            return f" (rows {first} to {last}{_keys(file, group)})"
        first = last + 1
    return ""


def _keys(file: pq.ParquetFile, group: int) -> str:
    try:
        keys = file.read_row_group(group, ["key"])["key"]
    except (*WRONG, KeyError):
        return ""
    return f", keys {keys[0].as_py()!r} to {keys[-1].as_py()!r}" if len(keys) else ""
