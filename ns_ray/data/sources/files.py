"""Files of a source: walking folders, expanding patterns, telling whether anything changed."""

import fnmatch
import os
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow.fs as pafs
import xxhash
from braceexpand import braceexpand

from ns_ray import store

IMAGE_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class File:
    """One file of a source."""

    path: str
    size: int
    changed: int
    """Nanoseconds since 1970."""


def file_at(path: str) -> File:
    """The one file at a path."""
    fs, inner = store.filesystem(path)
    info = fs.get_file_info(inner)
    return File(path, int(info.size or 0), int(info.mtime_ns or 0))


def walk(path: str) -> list[File]:
    """Files below a folder, hidden ones left out, sorted by path."""
    fs, inner = store.filesystem(path)
    start = len(inner.rstrip("/")) + 1
    found = [
        File(store.join(path, i.path[start:]), int(i.size or 0), int(i.mtime_ns or 0))
        for i in fs.get_file_info(pafs.FileSelector(inner, recursive=True, allow_not_found=True))
        if i.type == pafs.FileType.File and not hidden(i.path[start:])
    ]
    return sorted(found, key=lambda info: info.path)


def hidden(relative: str) -> bool:
    """Whether a file is none of the user's images: .ipynb_checkpoints, .DS_Store, __MACOSX."""
    return any(part.startswith(".") or part == "__MACOSX" for part in relative.split("/"))


def braces(pattern: str) -> list[str]:
    """`a-{00..02}.tar` -> a-00.tar, a-01.tar, a-02.tar; `{x,y}` likewise, as in a shell. Braces
    that don't pair are part of a name."""
    try:
        return list(braceexpand(pattern, escape=False))
    except ValueError:
        return [pattern]


def glob(pattern: str) -> list[File]:
    """Files whose path matches, component by component. A pattern without wildcards is one file
    that must exist."""
    parts = pattern.split("/")
    magic = [i for i, part in enumerate(parts) if any(c in part for c in "*?[")]
    if not magic:
        return [file_at(pattern)] if store.exists(pattern) else []
    base = "/".join(parts[: magic[0]])
    return [
        info
        for info in walk(base or "/")
        if len(info.path.split("/")) == len(parts)
        and all(map(fnmatch.fnmatchcase, info.path.split("/"), parts))
    ]


def base_of(infos: list[File]) -> str:
    """The folder that all files are in."""
    # commonpath() would turn s3://bucket into s3:/bucket; dirname() makes the prefix a folder.
    return os.path.dirname(os.path.commonprefix([info.path for info in infos]))  # noqa: RUF071


def stamp(infos: Iterable[File], base: str) -> str:
    """Hash of the files' paths below `base`, sizes and times of change, in any order."""
    lines = sorted(f"{i.path[len(base) :]}\t{i.size}\t{i.changed}" for i in infos)
    return xxhash.xxh3_128_hexdigest("\n".join(lines).encode())
