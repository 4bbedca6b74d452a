"""Files of a source: walking folders, expanding patterns, telling whether anything changed."""

import fnmatch
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow.fs as pafs
import xxhash
from braceexpand import braceexpand

from ns_ray import store
from ns_ray.data.images import HEIC

IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".avif", ".ppm", ".pgm", ".pbm", ".pnm"),
    *((".heic", ".heif") if HEIC else ()),
)

FOLDERS = 8
"""Folders that are read at a time where a disk is slow: a file server takes a while to answer, but
many at once."""
LOOKED_AT, WAITING, AT_A_TIME = 0.001, 0.75, 64
"""A folder that takes more seconds than this, most of them waited, is of a slow disk: so many more
are read at a time before another one is looked at. A disk of this machine whose folders it knows is
not waited for: a million files took 28.6 s with threads and 11.7 s without."""

PARTS = frozenset({"train", "val", "valid", "validation", "dev", "test", "unlabeled"})
"""Names of parts of a set, which are no classes."""


class File(NamedTuple):
    """One file of a source."""

    path: str
    size: int
    changed: int
    """Nanoseconds since 1970."""


def not_fetched(data: bytes) -> str | None:
    """What the beginning of a file is that Git LFS has not fetched; None where it is another."""
    if data.startswith(b"version https://git-lfs.github.com/"):
        return "a pointer of Git LFS; `git lfs pull` fetches the file itself"
    return None


def file_at(path: str) -> File:
    """The one file at a path."""
    fs, inner = store.filesystem(path)
    info = fs.get_file_info(inner)
    return File(path, int(info.size or 0), int(info.mtime_ns or 0))


@dataclass(frozen=True)
class Walk:
    """What is below a folder.

    Attributes:
        files: sorted by path. A name that is no UTF-8 has surrogates for its bytes.
        left_out: what was seen and is not among them, in words.
    """

    files: list[File]
    left_out: tuple[str, ...] = ()


def walk(path: str) -> Walk:
    """Files below a folder. Hidden ones are left out, and a folder that a link leads to again."""
    found = _walk_there(path) if store.is_uri(path) else _walk_here(path)
    found.files.sort()
    return found


def _walk_there(path: str) -> Walk:
    fs, inner = store.filesystem(path)
    start = len(inner.rstrip("/")) + 1
    found = [
        File(store.join(path, i.path[start:]), int(i.size or 0), int(i.mtime_ns or 0))
        for i in fs.get_file_info(pafs.FileSelector(inner, recursive=True, allow_not_found=True))
        if i.type == pafs.FileType.File
    ]
    shown = [file for file in found if not hidden(file.path[len(path.rstrip("/")) + 1 :])]
    return Walk(shown, _in_words(len(found) - len(shown), 0, []))


def _walk_here(root: str) -> Walk:
    """Links to folders are followed last, each folder is read once."""
    files: list[File] = []
    again: list[str] = []
    unseen = dangling = 0
    seen: set[tuple[int, int]] = set()
    folders, links = [root], list[str]()
    with ThreadPoolExecutor(FOLDERS) as pool:
        while folders or links:
            links.sort(reverse=True)
            following = folders or [links.pop()]
            folders = []
            for path, found in zip(following, _read_all(following, pool), strict=True):
                if found.identity in seen:
                    again.append(path)
                    continue
                seen.add(found.identity)
                files += found.files
                folders += found.folders
                links += found.links
                unseen += found.unseen
                dangling += found.dangling
    return Walk(files, _in_words(unseen, dangling, again))


@dataclass
class _Folder:
    """What one folder holds."""

    identity: tuple[int, int]
    files: list[File] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    """To folders."""
    unseen: int = 0
    dangling: int = 0


def _read_all(folders: Sequence[str], pool: Executor) -> Iterator[_Folder]:
    """In turn; the next ones several at a time where one was mostly waited for, as on a disk across
    a network. Threads that wait for no disk would wait for each other."""
    i = 0
    while i < len(folders):
        start, used = time.perf_counter(), time.thread_time()
        found = _read(folders[i])
        passed, working = time.perf_counter() - start, time.thread_time() - used
        yield found
        i += 1
        if passed > LOOKED_AT and working < (1 - WAITING) * passed:
            yield from pool.map(_read, folders[i : i + AT_A_TIME])
            i += AT_A_TIME


def _read(folder: str) -> _Folder:
    state = os.stat(folder)
    found = _Folder((state.st_dev, state.st_ino))
    with os.scandir(folder) as entries:
        for entry in entries:
            if hidden(entry.name):
                found.unseen += 1
            elif entry.is_file():
                state = entry.stat()
                found.files.append(File(entry.path, state.st_size, state.st_mtime_ns))
            elif entry.is_dir():
                (found.links if entry.is_symlink() else found.folders).append(entry.path)
            else:
                found.dangling += 1
    return found


def _in_words(unseen: int, dangling: int, again: list[str]) -> tuple[str, ...]:
    told = []
    if unseen:
        told.append(f"{unseen:,} hidden files or folders left out")
    if dangling:
        told.append(f"{dangling:,} links that lead nowhere, or other things that are no files")
    if again:
        more = f" and {len(again) - 3:,} more" if len(again) > 3 else ""
        listed = ", ".join(readable(folder) for folder in again[:3])
        told.append(f"{listed}{more} lead to folders that are read already")
    return tuple(told)


def readable(path: str) -> str:
    """A path as text: bytes that are no UTF-8 as `\\xe9`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def hidden(relative: str) -> bool:
    """Whether a file is none of the user's images: .ipynb_checkpoints, .DS_Store, __MACOSX."""
    return relative.startswith(".") or "/." in relative or "__MACOSX" in relative.split("/")


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
    first = 3 if store.is_uri(pattern) else 0  # a store's options have a question mark
    signs = "*" if store.is_web(pattern) else "*?["
    magic = [i for i in range(first, len(parts)) if any(c in parts[i] for c in signs)]
    if not magic:
        return [file_at(pattern)] if store.exists(pattern) else []
    base = "/".join(parts[: magic[0]])
    return [
        info
        for info in walk(base or "/").files
        if len(info.path.split("/")) == len(parts)
        and all(map(fnmatch.fnmatchcase, info.path.split("/")[first:], parts[first:]))
    ]


def base_of(infos: list[File]) -> str:
    """The folder that all files are in."""
    # commonpath() would turn s3://bucket into s3:/bucket; dirname() makes the prefix a folder.
    return os.path.dirname(os.path.commonprefix([store.bare(info.path) for info in infos]))  # noqa: RUF071


def stamp(infos: Iterable[File], base: str) -> str:
    """Hash of the files' paths below `base`, sizes and times of change, in any order."""
    start = len(base)
    lines = [f"{path[start:]}\t{size}\t{changed}" for path, size, changed in infos]
    lines.sort()
    digest = xxhash.xxh3_128()
    for first in range(0, len(lines), 65_536):
        text = "\n".join(lines[first : first + 65_536])
        digest.update(("\n" * (first > 0) + text).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def parts_of(infos: Iterable[File], base: str) -> list[str]:
    """Parts of a set, train first, that folders and names of tables or tars say."""
    names = (name for info in infos for name in info.path[len(base) :].lower().split("/"))
    words = {re.split(r"[^a-z]", name, maxsplit=1)[0] for name in names}
    return sorted(words & PARTS, key=lambda word: (word != "train", word))
