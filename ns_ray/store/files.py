"""Files on a local disk or in an object store, written so that nothing half-written is read: a file
appears whole or not at all."""

import json
import os
import uuid
from collections.abc import Mapping
from typing import Any

import pyarrow.fs as pafs

from ns_ray.errors import DataError
from ns_ray.store.faults import guarded
from ns_ray.store.paths import filesystem


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
    with fs.open_input_stream(inner) as stream:
        return bytes(stream.read())


@guarded("write")
def write_bytes(path: str, data: bytes) -> None:
    """Write a file that appears whole or not at all.

    Raises:
        StorageError: the place cannot be written.
    """
    fs, inner = filesystem(path)
    local = isinstance(fs, pafs.LocalFileSystem)
    target = f"{inner}.{uuid.uuid4().hex[:8]}.tmp" if local else inner
    try:
        if local:
            os.makedirs(os.path.dirname(inner), exist_ok=True)
        with fs.open_output_stream(target) as stream:
            stream.write(data)
        if local:
            os.replace(target, inner)
    except OSError:
        if local and os.path.exists(target):
            os.unlink(target)
        raise


def read_json(path: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DataError: the file is not a JSON object.
    """
    try:
        value = json.loads(read_bytes(path))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def write_json(path: str, value: Mapping[str, Any]) -> None:
    """Write a JSON object, indented for people."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


@guarded("list")
def changed(path: str) -> float | None:
    """When a folder's files changed last, in seconds since the epoch; None without any."""
    fs, inner = filesystem(path)
    infos = fs.get_file_info(pafs.FileSelector(inner, allow_not_found=True, recursive=True))
    return max((info.mtime_ns / 1e9 for info in infos if info.mtime_ns), default=None)


@guarded("list")
def list_files(path: str, recursive: bool = False) -> list[str]:
    """Names (relative to `path`) of the files in a folder, sorted. A missing folder has none."""
    fs, inner = filesystem(path)
    selector = pafs.FileSelector(inner, allow_not_found=True, recursive=recursive)
    start = len(inner.rstrip("/")) + 1
    return sorted(
        info.path[start:] for info in fs.get_file_info(selector) if info.type == pafs.FileType.File
    )


@guarded("remove files of")
def remove_files(path: str, names: list[str]) -> None:
    """Remove files of a folder; one that is already gone is no error."""
    fs, inner = filesystem(path)
    for name in names:
        try:
            fs.delete_file(f"{inner}/{name}")
        except FileNotFoundError:
            continue
