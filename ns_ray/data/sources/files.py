"""Files of a source: walking folders, expanding patterns, telling whether anything changed."""

import errno
import fnmatch
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import xxhash
from braceexpand import braceexpand

from ns_ray import store
from ns_ray.data.images import HEIC
from ns_ray.data.sources.items import ascending, in_lines

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

PATH = pa.large_string()
FILES = pa.schema([("path", PATH), ("size", pa.int64()), ("changed", pa.int64())])
BATCH = 65_536
"""Files that are objects at a time, on the way into columns and out of them."""

PHONES = {".heic", ".heif"}
ARCHIVES = {".zip", ".rar", ".7z"}

PARTS = (
    *("train", "training", "labeled", "labelled"),
    *("val", "valid", "validation", "dev", "test", "testing", "unlabeled", "unlabelled", "pile"),
)
"""Names of parts of a set, which are no classes; those to train on first."""

NOT_OURS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found"})
"""Folders that systems put beside people's own: of macOS's archives, Synology's thumbnails, what
Windows has deleted and what a check of a disk has found."""


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


def pointer_at(path: str) -> str | None:
    """What a file is that Git LFS has not fetched; None where it is another."""
    fs, inner = store.filesystem(path)
    with fs.open_input_stream(inner, compression=None) as stream:
        return not_fetched(bytes(stream.read(100)))


def file_at(path: str) -> File:
    """The one file at a path."""
    fs, inner = store.filesystem(path)
    info = fs.get_file_info(inner)
    return File(path, int(info.size or 0), int(info.mtime_ns or 0))


class Files:
    """Files of a source as columns: with a million, a listing takes 472 MiB, with objects 706.

    Attributes:
        table: path, size and time of change of each, with FILES, sorted by path.
        odd: those whose name is no UTF-8: it has surrogates for its bytes.
    """

    def __init__(self, table: pa.Table, odd: Sequence[File] = ()) -> None:
        self.table, self.odd = table, tuple(sorted(odd))

    @classmethod
    def of(cls, files: Sequence[File]) -> "Files":
        """Files in any order."""
        gathered = _Gathered()
        for file in files:
            gathered.add([file.path], [file.size], [file.changed])
        return gathered.files()

    def ending(self, endings: str | Sequence[str], taken: bool = True) -> "Files":
        """Those whose names end so in any case, as far as they are no part of an address; or the
        others."""
        wanted = (endings,) if isinstance(endings, str) else tuple(endings)
        matches = np.zeros(len(self.table), bool)
        for one in wanted:
            matches |= np.asarray(pc.ends_with(self._names, one))
        odd = [f for f in self.odd if f.path.lower().endswith(wanted) == taken]
        return Files(self.table.filter(pa.array(matches == taken)), odd)

    @cached_property
    def _names(self) -> pa.ChunkedArray:
        """Ends of the names, in lower case."""
        paths = self.table["path"]
        if pc.any(pc.match_substring(paths, "://")).as_py():
            paths = pa.chunked_array([pa.array(map(store.bare, paths.to_pylist()), PATH)])
        return pc.utf8_lower(pc.utf8_slice_codeunits(paths, -12))

    def __len__(self) -> int:
        return len(self.table) + len(self.odd)

    def __iter__(self) -> Iterator[File]:
        for rows in self.table.to_batches(BATCH):
            yield from map(File, *(column.to_pylist() for column in rows.columns))
        yield from self.odd


class _Gathered:
    """Files that come folder by folder."""

    def __init__(self) -> None:
        self._paths, self._sizes, self._changed = list[str](), list[int](), list[int]()
        self._tables, self._odd = [FILES.empty_table()], list[File]()

    def add(self, paths: list[str], sizes: list[int], changed: list[int]) -> None:
        self._paths += paths
        self._sizes += sizes
        self._changed += changed
        if len(self._paths) >= BATCH:
            self._fold()

    def _fold(self) -> None:
        columns: list[Any] = [self._paths, self._sizes, self._changed]
        self._paths, self._sizes, self._changed = [], [], []
        try:
            table = pa.table(columns, schema=FILES)
        except UnicodeEncodeError:
            files = [File(*row) for row in zip(*columns, strict=True)]
            self._odd += [file for file in files if not _is_text(file.path)]
            named = [file for file in files if _is_text(file.path)]
            table = pa.table([[file[i] for file in named] for i in range(3)], schema=FILES)
        self._tables.append(table.sort_by("path"))

    def files(self) -> Files:
        self._fold()
        table = pa.concat_tables(self._tables).combine_chunks()
        self._tables = []
        return Files(table if ascending(table["path"]) else table.sort_by("path"), self._odd)


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class Walk:
    """What is below a folder.

    Attributes:
        files: all that were seen and are not hidden.
        left_out: what was seen and is not among them, in words.
        folders: names of those directly below it, on this machine.
    """

    files: Files
    left_out: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()


def walk(path: str) -> Walk:
    """Files below a folder. Hidden ones are left out, and a folder that a link leads to again."""
    return _walk_there(path) if store.is_uri(path) else _walk_here(path)


def _walk_there(path: str) -> Walk:
    fs, inner = store.filesystem(path)
    start = len(inner.rstrip("/")) + 1
    found = [
        File(store.join(path, i.path[start:]), int(i.size or 0), int(i.mtime_ns or 0))
        for i in fs.get_file_info(pafs.FileSelector(inner, recursive=True, allow_not_found=True))
        if i.type == pafs.FileType.File
    ]
    shown = [file for file in found if not hidden(file.path[len(path.rstrip("/")) + 1 :])]
    return Walk(Files.of(shown), _in_words(len(found) - len(shown), 0, []))


def _walk_here(root: str) -> Walk:
    """Links to folders are followed last, each folder is read once."""
    files = _Gathered()
    again: list[str] = []
    unseen = dangling = 0
    seen: set[tuple[int, int]] = set()
    folders, links, top = [root], list[str](), list[str]()
    with ThreadPoolExecutor(FOLDERS) as pool:
        while folders or links:
            links.sort(reverse=True)
            following = sorted(folders) or [links.pop()]
            folders = []
            for path, found in zip(following, _read_all(following, pool), strict=True):
                if found.identity in seen:
                    again.append(path)
                    continue
                seen.add(found.identity)
                files.add(found.paths, found.sizes, found.changed)
                folders += found.folders
                links += found.links
                unseen += found.unseen
                dangling += found.dangling
                if path == root:
                    top = [*folders, *links]
    own = [readable(os.path.basename(path)) for path in top if path not in again]
    return Walk(files.files(), _in_words(unseen, dangling, again), tuple(own))


@dataclass
class _Folder:
    """What one folder holds."""

    identity: tuple[int, int]
    paths: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    """To folders."""
    unseen: int = 0
    dangling: int = 0


def _read_all(folders: Sequence[str], pool: Executor) -> Iterator[_Folder]:
    """In turn; the next ones several at a time where one was mostly waited for, as on a disk across
    a network. Threads that wait for no disk would wait for each other, as this one does for one
    that imports Ray meanwhile."""
    i = 0
    while i < len(folders):
        start, used = time.perf_counter(), time.process_time()
        found = _read(folders[i])
        passed, working = time.perf_counter() - start, time.process_time() - used
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
            try:
                if _unseen(entry.name):
                    found.unseen += 1
                elif entry.is_file():
                    state = entry.stat()
                    found.paths.append(entry.path)
                    found.sizes.append(state.st_size)
                    found.changed.append(state.st_mtime_ns)
                elif entry.is_dir():
                    (found.links if entry.is_symlink() else found.folders).append(entry.path)
                else:
                    found.dangling += 1
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                found.dangling += 1  # a link to itself
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


def not_taken(paths: Sequence[str]) -> list[str]:
    """What files are that are no images by their names, and what to do about them."""
    if not paths:
        return []
    endings = Counter(os.path.splitext(path.lower())[1] or "no ending" for path in paths)
    listed = ", ".join(f"{ending}: {count:,}" for ending, count in endings.most_common(5))
    advice = "; pip install 'ns_ray[heic]' reads HEIC" if endings.keys() & PHONES else ""
    advice += "; unpack the archives" if endings.keys() & ARCHIVES else ""
    return [f"{len(paths):,} files are no images by their name ({listed}){advice}"]


def readable(path: str) -> str:
    """A path as text: bytes that are no UTF-8 as `\\xe9`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def hidden(relative: str) -> bool:
    """Whether a file is none of the user's images: .ipynb_checkpoints, .DS_Store, __MACOSX."""
    return any(map(_unseen, relative.split("/")))


def _unseen(name: str) -> bool:
    return name.startswith(".") or name in NOT_OURS


def braces(pattern: str) -> list[str]:
    """`a-{00..02}.tar` -> a-00.tar, a-01.tar, a-02.tar; `{x,y}` likewise, as in a shell. Braces
    that don't pair are part of a name."""
    try:
        return list(braceexpand(pattern, escape=False))
    except ValueError:
        return [pattern]


def glob(pattern: str) -> list[File]:
    """Files whose path matches, component by component; `**` stands for any number of folders, and
    what a name has in brackets for itself, too. A pattern without wildcards is one file that must
    exist."""
    parts = pattern.split("/")
    first = 3 if store.is_uri(pattern) else 0  # a store's options have a question mark
    signs = "*" if store.is_web(pattern) else "*?["
    magic = [i for i in range(first, len(parts)) if any(c in parts[i] for c in signs)]
    if not magic:
        return [file_at(pattern)] if store.exists(pattern) else []
    base = "/".join(parts[: magic[0]]) or "/"
    if not store.is_uri(base) and not os.path.isdir(base):
        return []
    return [i for i in walk(base).files if _matches(i.path.split("/")[first:], parts[first:])]


def _matches(names: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_matches(names[i:], patterns[1:] or ["*"]) for i in range(len(names)))
    own = bool(names) and (names[0] == patterns[0] or fnmatch.fnmatchcase(names[0], patterns[0]))
    return own and _matches(names[1:], patterns[1:])


def base_of(infos: list[File]) -> str:
    """The folder that all files are in."""
    # commonpath() would turn s3://bucket into s3:/bucket; dirname() makes the prefix a folder.
    return os.path.dirname(os.path.commonprefix([store.bare(info.path) for info in infos]))  # noqa: RUF071


def stamp(files: Files | Iterable[File], base: str) -> str:
    """Hash of the files' paths below `base`, sizes and times of change, in any order."""
    start, digest = len(base), xxhash.xxh3_128()
    told: Sequence[str] | pa.Array
    if isinstance(files, Files) and not files.odd:
        below = pc.utf8_slice_codeunits(files.table["path"], start)
        others = [files.table[name].cast(PATH) for name in ("size", "changed")]
        told = pc.binary_join_element_wise(below, *others, pa.scalar("\t", PATH)).combine_chunks()
        told = told if ascending(told) else told.take(pc.sort_indices(told))
    else:
        told = sorted(f"{path[start:]}\t{size}\t{changed}" for path, size, changed in files)
    for first in range(0, len(told), BATCH):
        some = told[first : first + BATCH]
        digest.update(b"\n" * (first > 0))
        if isinstance(some, list):
            digest.update("\n".join(some).encode("utf-8", "surrogateescape"))
        else:
            digest.update(in_lines(some))
    return digest.hexdigest()


def parts_of(infos: Iterable[File], base: str) -> list[str]:
    """Parts of a set, train first, that folders and names of tables or tars say."""
    names = (name for info in infos for name in info.path[len(base) :].lower().split("/"))
    words = {re.split(r"[^a-z]", name, maxsplit=1)[0] for name in names}
    return [part for part in PARTS if part in words]
