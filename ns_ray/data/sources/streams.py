"""Files that are read from their beginning only: compressed ones, and archives of web servers."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa

from ns_ray import store
from ns_ray.data.sources.members import Member

_CODECS: dict[Callable[[Any], Any], tuple[str, ...]] = {
    lambda stream: gzip.GzipFile(fileobj=stream): (".gz", ".tgz"),
    bz2.BZ2File: (".bz2", ".tbz", ".tbz2"),
    lzma.LZMAFile: (".xz", ".txz"),
    lambda stream: pa.CompressedInputStream(stream, "zstd"): (".zst", ".tzst"),
}
INFLATED = {ending: inflated for inflated, endings in _CODECS.items() for ending in endings}
"""How the names of files end that are decompressed on the way, and what does it."""
COMPRESSED = (*INFLATED,)
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)
"""What is wrong with a compressed file; of .bz2 and .zst it is an OSError without a number."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """Bytes inside such a file: a member of an archive. Reading one means reading all before it, so
    `pack` lays these out as ranges first."""

    path: str
    start: int
    """In what the file is decompressed to."""
    length: int
    member: Member | None = None
    """Of a zip archive: what the bytes are unpacked to."""


@contextmanager
def open_stream(path: str) -> Iterator[IO[bytes]]:
    """A file from its beginning, decompressed where its name ends like COMPRESSED.

    Raises:
        OSError: it cannot be read. What reads it meets DAMAGED, too.
    """
    fs, inner = store.filesystem(path)
    with fs.open_input_stream(inner, compression=None) as stream:
        name = store.bare(path).lower()
        inflated = next((made for ending, made in INFLATED.items() if name.endswith(ending)), None)
        if inflated is None:
            yield stream
            return
        with inflated(stream) as plain:
            yield plain


class Stream:
    """Reads places in such files, and goes on where the last one ended: a file is read once where
    they are in the order of their starts."""

    def __init__(self) -> None:
        self._path, self._at = "", 0
        self._opened = ExitStack()

    def read(self, place: Streamed) -> bytes:
        """The bytes of a place, as they lie in the file.

        Raises:
            OSError: its file cannot be read, or is shorter or of another kind than it was.
        """
        if place.path != self._path or place.start < self._at:
            self._opened.close()
            self._path, self._at = "", 0
            self._stream = self._opened.enter_context(open_stream(place.path))
        self._path = ""  # until it has been read
        try:
            skip(self._stream, place.start - self._at)
            data = self._stream.read(place.length)
        except DAMAGED as error:
            raise OSError(f"{place.path}: {error}") from None
        if len(data) < place.length:
            raise OSError(f"{place.path} is shorter than it was")
        self._path, self._at = place.path, place.start + place.length
        return data


def skip(stream: IO[bytes], count: int | None = None) -> None:
    """Read so many bytes, or all that are left, and forget them."""
    left = count
    while left is None or left:
        read = len(stream.read(2**20 if left is None else min(left, 2**20)))
        if not read:
            return
        left = None if left is None else left - read
