"""Files on a local disk or in an object store, written so that nothing half-written is read: a file
appears whole or not at all."""

import json
import os
import uuid
from collections.abc import Mapping
from typing import Any

import pyarrow.fs as pafs

from ns_ray.errors import DamagedFileError
from ns_ray.store.faults import guarded
from ns_ray.store.paths import OWNER, filesystem


@guarded("read")
def exists(path: str) -> bool:
    """Whether a file or folder is there."""
    fs, inner = filesystem(path)
    return bool(fs.get_file_info(inner).type != pafs.FileType.NotFound)


@guarded("read")
def read_bytes(path: str) -> bytes:
    """A whole file.

    Raises:
        MissingFileError: there is none.
        StorageError: it cannot be read.
    """
    fs, inner = filesystem(path)
    with fs.open_input_stream(inner, compression=None) as stream:  # of a .gz, too
        return bytes(stream.read())


@guarded("read")
def read_ends(path: str, count: int) -> tuple[int, bytes, bytes]:
    """The size of a file, and at most so many bytes of its beginning and of its end.

    Raises:
        MissingFileError: there is none.
        StorageError: it cannot be read.
    """
    fs, inner = filesystem(path)
    with fs.open_input_file(inner) as file:
        size = file.size()
        some = min(count, size)
        return size, bytes(file.read_at(some, 0)), bytes(file.read_at(some, size - some))


@guarded("write")
def write_bytes(path: str, data: bytes) -> None:
    """Write a file that appears whole or not at all, whenever the power fails.

    Raises:
        StorageError: the place cannot be written.
    """
    fs, inner = filesystem(path)
    local = isinstance(fs, pafs.LocalFileSystem)
    target = f"{inner}.{uuid.uuid4().hex[:8]}.tmp" if local else inner
    try:
        if local:
            os.makedirs(os.path.dirname(inner), exist_ok=True)
        with fs.open_output_stream(target, compression=None) as stream:
            stream.write(data)
        if local:
            _flush(target)
            os.replace(target, inner)
            _flush(os.path.dirname(inner))
    except OSError:
        if local and os.path.exists(target):
            os.unlink(target)
        raise


def _flush(path: str) -> None:
    """Have a file, or the names in a folder, on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def read_json(path: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DamagedFileError: the file is not a JSON object.
    """
    data = read_bytes(path)
    try:
        value = json.loads(data.decode())
        if b"\\u" in data:  # half a pair of UTF-16, which could be neither printed nor a name
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(path, f"it is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise DamagedFileError(path, f"it must hold a JSON object, not {type(value).__name__}")
    return value


def write_json(path: str, value: Mapping[str, Any]) -> None:
    """Write a JSON object, indented for people."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


@guarded("list")
def changed(path: str) -> float | None:
    """When a folder's files changed last, heartbeats aside, in seconds since the epoch; None
    without any."""
    fs, inner = filesystem(path)
    infos = fs.get_file_info(pafs.FileSelector(inner, allow_not_found=True, recursive=True))
    times = (i.mtime_ns / 1e9 for i in infos if i.mtime_ns and i.base_name != OWNER)
    return max(times, default=None)


@guarded("read")
def written(path: str) -> float | None:
    """When a file was written, in seconds since the epoch; None where there is none."""
    fs, inner = filesystem(path)
    info = fs.get_file_info(inner)
    return None if info.type != pafs.FileType.File else (info.mtime_ns or 0) / 1e9


@guarded("list")
def list_files(path: str, recursive: bool = False) -> list[str]:
    """Names (relative to `path`) of the files in a folder, sorted. A missing folder has none."""
    fs, inner = filesystem(path)
    selector = pafs.FileSelector(inner, allow_not_found=True, recursive=recursive)
    start = len(inner.rstrip("/")) + 1
    return sorted(
        info.path[start:] for info in fs.get_file_info(selector) if info.type == pafs.FileType.File
    )


@guarded("list")
def size(path: str) -> int:
    """Bytes of all files of a folder and those below it; 0 where there is none."""
    fs, inner = filesystem(path)
    infos = fs.get_file_info(pafs.FileSelector(inner, allow_not_found=True, recursive=True))
    return sum(info.size or 0 for info in infos if info.type == pafs.FileType.File)


@guarded("rename")
def rename(path: str, to: str) -> None:
    """Give a file another name; whatever has that name is replaced."""
    fs, inner = filesystem(path)
    fs.move(inner, filesystem(to)[1])


@guarded("remove files of")
def remove_files(path: str, names: list[str]) -> None:
    """Remove files of a folder; one that is already gone is no error."""
    fs, inner = filesystem(path)
    for name in names:
        try:
            fs.delete_file(f"{inner}/{name}")
        except FileNotFoundError:
            continue
