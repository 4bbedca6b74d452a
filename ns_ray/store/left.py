"""Images that are left in a user's Parquet table: shards that say where each of them is.

Such a shard has no column `image`, but `group` and `row`, and which table they are of.
"""

import errno
import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ns_ray.errors import DataError, StorageError, first_line
from ns_ray.store.paths import filesystem
from ns_ray.store.schema import CORPUS

LEFT = b"ns_ray.images"
"""Of a shard's metadata: JSON of the table's path, the column, and its size and time of change."""

LEFT_CORPUS = pa.schema(
    [
        *(column for column in CORPUS if column.name != "image"),
        pa.field("group", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
    ]
)


def table_of(schema: pa.Schema) -> dict[str, Any] | None:
    """Where the images of a shard are; None: in the shard itself."""
    said = (schema.metadata or {}).get(LEFT)
    return None if said is None else dict(json.loads(said))


def left_schema(path: str, column: str) -> pa.Schema:
    """Of shards whose images are in a column of a Parquet file as it is now."""
    size, changed = _state(path)
    about = {"path": path, "column": column, "size": size, "changed": changed}
    return LEFT_CORPUS.with_metadata({LEFT: json.dumps(about)})


def with_images(rows: pa.Table, about: dict[str, Any]) -> pa.Table:
    """Rows of a shard with their images.

    Args:
        rows: with the columns `group` and `row`.
        about: what `table_of` says.

    Raises:
        DataError: the table is gone, or another than it was.
        StorageError: it cannot be read now.
    """
    path = about["path"]
    advice = "put it back as it was, or pack its images again"
    try:
        if _state(path) != (about["size"], about["changed"]):
            raise DataError(f"{path} has changed since its images were packed in place; {advice}")
        images = _images(path, about["column"], rows)
    except FileNotFoundError:
        raise DataError(f"{path} is gone, where images were packed in place; {advice}") from None
    except OSError as error:
        # An error number: it is not the shard's fault.
        reason = f"cannot read {path}: {first_line(error)}; run the same command again"
        raise StorageError(reason, error.errno or errno.EIO) from error
    except pa.ArrowException as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}; {advice}") from None
    return rows.append_column(CORPUS.field("image"), images)


def _state(path: str) -> tuple[int, int]:
    fs, inner = filesystem(path)
    info = fs.get_file_info(inner)
    if info.type == pafs.FileType.NotFound:
        raise FileNotFoundError(path)
    return int(info.size), int(info.mtime_ns or 0)


def _images(path: str, column: str, rows: pa.Table) -> pa.Array:
    """The encoded images of rows, which are in the order of the table; a row group is read once."""
    groups, places = rows["group"].combine_chunks(), rows["row"].combine_chunks()
    found = [pa.array([], pa.binary())]
    fs, inner = filesystem(path)
    with pq.ParquetFile(inner, filesystem=fs) as file:
        for group in pc.unique(groups).to_pylist():
            mine = places.filter(pc.equal(groups, group))
            values = file.read_row_group(group, columns=[column])[column.partition(".")[0]]
            values = values.combine_chunks().take(mine)
            if pa.types.is_struct(values.type):
                values = values.field("bytes")
            found.append(values.cast(pa.binary()))
    return pa.concat_arrays(found)
