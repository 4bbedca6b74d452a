"""Arrow's files and streams, as of Feather and of Hugging Face's `save_to_disk`. An image in one is
a range of its bytes, as in a tar."""

import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from ns_ray import store
from ns_ray.data.sources.cells import (
    Part,
    check_there,
    class_names,
    encoded,
    image_column,
    is_images,
    is_text,
    label_column,
    path_items,
    placed,
    row_labels,
)
from ns_ray.data.sources.files import File, not_fetched, stamp
from ns_ray.data.sources.items import Item, Items, Range
from ns_ray.data.sources.streams import Streamed
from ns_ray.errors import DataError

FILE = b"ARROW1"
"""How a file begins that has a list of its batches; a stream of batches begins with the first."""

PLAIN = (
    "write its images as plain binary, not compressed (Feather: compression='uncompressed'), or as "
    "Parquet"
)


def arrow(info: File, base: str, where: str) -> Part:
    """Rows of one file, and the class names its Hugging Face metadata may hold. One on this machine
    is mapped, and only small columns of it are read; another is read whole, to list it.

    Raises:
        DataError: it is none, no column names or holds the images, or these are compressed.
    """
    whole, table = _opened(info, where)
    names = class_names(table.schema, info.path, where)
    column = image_column(table.schema, info.path, where)
    stored = encoded(table.schema.field(column).type)
    label = label_column(table.schema, info.path)
    try:  # what is read of it leads nowhere outside
        table.select([column, *([label] if label else [])]).validate(full=True)
    except pa.ArrowException as error:
        raise DataError(f"{where}: {info.path} is damaged: {error}") from None
    values = table.column(label).to_pylist() if label else ()
    labels = row_labels(label, values, names, info.path, table.num_rows, where)
    images = table.column(column)
    if is_text(stored):
        items = path_items(images.to_pylist(), labels, info.path, base, where)
    elif is_images(stored):
        found = _found(whole, images, f"{where}: column {column!r} of {info.path}")
        items = Items.of(_items(found, labels, info, base, column, where))
    else:
        raise DataError(
            f"{where}: column {column!r} of {info.path} is {stored}; it must hold paths, "
            f"encoded images, or structs of `bytes` and `path`"
        )
    mark = stamp([info], base).encode()
    return Part(items, mark, names, columns=() if label else tuple(table.column_names))


def _opened(info: File, where: str) -> tuple[pa.Buffer, pa.Table]:
    """All bytes of a file, and the table that lies in them."""
    fs, inner = store.filesystem(info.path)
    local = isinstance(fs, pafs.LocalFileSystem) and info.size
    with pa.memory_map(inner) if local else fs.open_input_file(inner) as file:
        whole = file.read_buffer()
    begins = whole[:100].to_pybytes()
    try:
        read = pa.ipc.open_file if begins.startswith(FILE) else pa.ipc.open_stream
        table = read(whole).read_all()
        _ = table.column_names  # are decoded only now
    except (pa.ArrowException, ValueError, OSError) as error:
        reason = not_fetched(begins) or f"not an Arrow file: {error}"
        raise DataError(f"{where}: {info.path} is {reason}") from None
    return whole, table


def _items(
    found: Iterable[tuple[int, int, str | None]],
    labels: Sequence[str | None],
    info: File,
    base: str,
    column: str,
    where: str,
) -> Iterator[Item]:
    """Rows that hold encoded images; Hugging Face's structs may have a path alone. Where the first
    of these is not there, none is.

    Args:
        found: of each row, where its image begins, its size, and its path.
    """
    prefix = store.bare(info.path)[len(base) :].strip("/")
    folder = os.path.dirname(store.bare(info.path))
    kind = Streamed if store.is_read_only(info.path) else Range
    first = True
    for number, ((start, size, path), label) in enumerate(zip(found, labels, strict=True)):
        if path and not size:
            key, uri = placed(path, folder, base)
            if first:
                check_there(uri, info.path, column, where)
            first = False
            yield Item(key, uri, label)
        else:
            place = kind(info.path, start, size)
            yield Item(f"{prefix}/{number:08d}", f"{info.path}#{number}", label, size, place)


def _found(
    whole: pa.Buffer, images: pa.ChunkedArray, what: str
) -> Iterator[tuple[int, int, str | None]]:
    """Where each image begins in the bytes of its file, its size, and its path if it has one.

    Raises:
        DataError: they are elsewhere: they had to be decompressed.
    """
    for chunk in images.chunks:
        values = chunk.storage if isinstance(chunk.type, pa.BaseExtensionType) else chunk
        paths = pa.nulls(len(values))
        if pa.types.is_struct(values.type):
            if values.type.get_field_index("path") >= 0:
                paths = values.field("path")
            values = values.field("bytes")
        start, ends = 0, np.zeros(len(values) + 1, np.int64)  # none has any bytes
        if len(values) > values.null_count:
            wide = pa.types.is_large_binary(values.type)
            if not (wide or pa.types.is_binary(values.type)):
                raise DataError(f"{what} is {values.type}; {PLAIN}")
            _, offsets, data = values.buffers()
            kind, first = np.int64 if wide else np.int32, values.offset
            ends = np.frombuffer(offsets, kind, first + len(values) + 1)[first:].astype(np.int64)
            start = data.address - whole.address if data and data.size else 0
            if not 0 <= start <= whole.size - int(ends[-1]):
                raise DataError(f"{what} is compressed; {PLAIN}")
        sizes = np.diff(ends).tolist()
        yield from zip((ends[:-1] + start).tolist(), sizes, paths.to_pylist(), strict=True)
