"""Parquet files: read whole or in part, written whole or not at all."""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ns_ray.store.faults import guarded
from ns_ray.store.files import write_bytes
from ns_ray.store.paths import filesystem


@guarded("read")
def read_table(path: str, columns: list[str] | None = None) -> pa.Table:
    """A whole Parquet file, or some of its columns."""
    fs, inner = filesystem(path)
    return pq.read_table(inner, columns=columns, filesystem=fs, partitioning=None)


@guarded("read")
def read_rows(path: str, column: str, values: list[str], columns: list[str]) -> pa.Table:
    """The rows of a Parquet file whose `column` is one of `values`, with some of their columns:
    only the row groups that hold them are read."""
    fs, inner = filesystem(path)
    wanted = pa.array(values, pa.string())
    with fs.open_input_file(inner) as source:
        file = pq.ParquetFile(source)
        groups = [
            group
            for group in range(file.num_row_groups)
            if pc.any(pc.is_in(file.read_row_group(group, [column])[column], wanted)).as_py()
        ]
        table = file.read_row_groups(groups, list({column, *columns}))
    return table.filter(pc.is_in(table[column], wanted))


@guarded("read")
def read_first(path: str, rows: int, columns: list[str]) -> pa.Table:
    """At most so many rows from the beginning of a Parquet file, with some of their columns."""
    fs, inner = filesystem(path)
    with fs.open_input_file(inner) as source:
        file = pq.ParquetFile(source)
        batch = next(file.iter_batches(rows, columns=columns), None)
        schema = pa.schema([file.schema_arrow.field(name) for name in columns])
        return pa.Table.from_batches([batch] if batch is not None else [], schema)


def write_table(path: str, table: pa.Table, row_group_size: int = 256) -> None:
    """Write a Parquet file that appears whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=row_group_size, compression="zstd")
    write_bytes(path, sink.getvalue().to_pybytes())
