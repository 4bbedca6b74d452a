"""Zip archives of images: a folder per class in each, or no labels; a metadata.csv is honored."""

import posixpath
import re
import struct
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import IO, cast

from ns_ray import store
from ns_ray.data.sources.cells import Part, by_folder
from ns_ray.data.sources.files import (
    IMAGE_ENDINGS,
    File,
    base_of,
    hidden,
    not_taken,
    pointer_at,
    readable,
    stamp,
)
from ns_ray.data.sources.items import Item, Items, Range, classes_of, natural
from ns_ray.data.sources.listing import Listing
from ns_ray.data.sources.members import LONGEST_HEADER, METHODS, Member
from ns_ray.data.sources.streams import Streamed
from ns_ray.data.sources.tables import text_part
from ns_ray.errors import DataError, ImageError

ENCRYPTED, UTF8 = 1, 0x800
"""Flags of a file of an archive: it needs a password; its name is UTF-8."""
SLASHES = ("/", "\\")
"""At the end of a folder's name; backslashes are of Windows."""
METADATA = ("metadata.csv", "metadata.tsv", "metadata.jsonl")
"""Tables in an archive that tell the labels of its images, best first."""


@dataclass
class _Zip:
    """What one archive holds.

    Attributes:
        images: the name of each, and where it is.
        tables: those that may tell their labels.
        others: names of further files.
        unseen: hidden files.
        locked: images that cannot be unpacked here.
        top: the folder that is wanted, with a slash at the end.
    """

    images: list[tuple[str, Range | Streamed]] = field(default_factory=list)
    tables: list[tuple[str, Range | Streamed]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    unseen: int = 0
    locked: int = 0
    top: str = ""


def zips(source: str, infos: list[File], where: str, folder: str = "") -> Listing:
    """Images of one or more archives, of which only the lists at their ends are read.

    Args:
        folder: inside the archive, whose images are wanted; none: all.

    Raises:
        DataError: one is no zip archive, or has no such folder.
    """
    base = base_of(infos)
    parts, notes = [], list[str]()
    for info in infos:
        archive = _below(folder, _zip(info, where), f"{where}: {info.path}")
        parts.append(_items(info, archive, base, where))
        notes += parts[-1].notes
        notes += not_taken(archive.others)
        if archive.unseen:
            notes.append(f"{archive.unseen:,} hidden files left out")
        if archive.locked:
            notes.append(
                f"{archive.locked:,} images that need a password, or are packed by another method "
                "than deflate, left out; unpack the archive"
            )
    items = Items.joined([part.items for part in parts])
    if size := sum(place.length for place in items.stored() if isinstance(place, Streamed)):
        notes.append(
            "images of archives on the web are copied beside the shards before they are packed, "
            f"which takes {-(-size // 2**20):,} MiB there until then"
        )
    mark = stamp(infos, base)
    mark = store.fingerprint(mark, folder) if folder else mark
    return Listing(source, items, classes_of(items), mark, tuple(notes))


def _zip(info: File, where: str) -> _Zip:
    members, end = _members(info, where)
    # A member ends where the next one begins, so that none is read twice for several names.
    starts = sorted({*(member.header_offset for member in members), end})
    ends = dict(pairwise(starts))
    kind = Streamed if store.is_read_only(info.path) else Range
    found = _Zip()
    for member in members:
        name = _name(member)
        lower = name.lower()
        start = member.header_offset
        length = min(ends.get(start, start) - start, LONGEST_HEADER + member.compress_size)
        place = kind(info.path, start, length, Member(member.file_size, member.CRC))
        unpackable = member.compress_type in METHODS and not member.flag_bits & ENCRYPTED
        if hidden(name):
            found.unseen += 1
        elif lower.endswith(IMAGE_ENDINGS):
            found.locked += not unpackable
            if unpackable:
                found.images.append((name, place))
        elif _last(name) in METADATA and unpackable:
            found.tables.append((name, place))
        else:
            found.others.append(name)
    return found


def _members(info: File, where: str) -> tuple[list[zipfile.ZipInfo], int]:
    """The files of an archive, and where the list of them begins."""
    fs, inner = store.filesystem(info.path)
    try:
        with fs.open_input_file(inner) as file, zipfile.ZipFile(cast(IO[bytes], file)) as archive:
            members = [one for one in archive.infolist() if not one.orig_filename.endswith(SLASHES)]
            if any(member.header_offset < 0 for member in members):
                raise zipfile.BadZipFile("a file of it would begin before the archive does")
            return members, archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, struct.error) as error:
        reason = pointer_at(info.path) or f"not a readable zip archive: {error}"
        raise DataError(f"{where}: {info.path} is {reason}") from None


def _name(member: zipfile.ZipInfo) -> str:
    """A name as that of a file in the folder where the archive is unpacked, and not outside it."""
    name = member.orig_filename
    if not member.flag_bits & UTF8:
        with suppress(UnicodeError):  # macOS and others write UTF-8 without saying so
            name = name.encode("cp437").decode()
    name = name.partition("\0")[0].replace("\\", "/")
    return posixpath.normpath(f"/{name}").lstrip("/")


def _below(folder: str, archive: _Zip, what: str) -> _Zip:
    """What is in one folder, which may be named without the folders that everything is in.

    Raises:
        DataError: no image is in it.
    """
    if not folder:
        return archive
    names = [name for name, _ in archive.images]
    for top in (f"{folder}/", f"{_wrapping(names)}{folder}/"):
        images = [(name, place) for name, place in archive.images if name.startswith(top)]
        if images:
            tables = [(name, place) for name, place in archive.tables if name.startswith(top)]
            others = [name for name in archive.others if name.startswith(top)]
            return replace(archive, images=images, tables=tables, others=others, top=top)
    folders = sorted({posixpath.dirname(name) for name in names} - {""}, key=natural)
    more = f" and {len(folders) - 8:,} more" if len(folders) > 8 else ""
    raise DataError(
        f"{what} has no images in {folder!r}; those that it has are in "
        f"{', '.join(folders[:8]) or 'no folder'}{more}"
    )


def _wrapping(names: Sequence[str]) -> str:
    """The folders that all images are in and that hold folders only, with a slash at the end: they
    are no classes."""
    above = {posixpath.dirname(posixpath.dirname(name)) for name in names}
    common = posixpath.commonpath(above) if above else ""
    return f"{common}/" if common else ""


def _items(info: File, archive: _Zip, base: str, where: str) -> Part:
    """The images of an archive, by its metadata if it has some, else by their folders."""
    root = store.bare(info.path)
    prefix = re.sub(r"\.zip$", "", readable(root[len(base) :].strip("/")), flags=re.IGNORECASE)
    if told := _enclosing(archive):
        return _told(info, archive, told, prefix, where)
    start = len(max(archive.top, _wrapping([name for name, _ in archive.images]), key=len))
    found = []
    for name, place in archive.images:
        label = name[start:].partition("/")[0] if "/" in name[start:] else None
        found.append(_item(info, prefix, name, label, place))
    unused = not_taken([name for name, _ in archive.tables])
    return Part(Items.of(found), b"", notes=tuple(unused))


def _enclosing(archive: _Zip) -> list[tuple[str, Range | Streamed]]:
    """The tables that may tell the labels of all images: none of them is outside its folder."""
    names = [name for name, _ in archive.images]
    tops = {name: posixpath.join(posixpath.dirname(name), "") for name, _ in archive.tables}
    told = [one for one in archive.tables if all(name.startswith(tops[one[0]]) for name in names)]
    return sorted(told, key=lambda one: (len(tops[one[0]]), METADATA.index(_last(one[0]))))


def _told(
    info: File,
    archive: _Zip,
    tables: Sequence[tuple[str, Range | Streamed]],
    prefix: str,
    where: str,
) -> Part:
    """The images that the first of some tables names, by their paths from there on.

    Raises:
        DataError: it is no such table.
    """
    (table, place), *more = tables
    try:
        data = Item(table, f"{info.path}#{table}", place=place).read()
    except ImageError as error:
        raise DataError(f"{where}: {table} in {info.path} cannot be read: {error}") from None
    root = store.bare(info.path)
    part = text_part(store.join(root, table), data, root, where)
    start = len(posixpath.join(posixpath.dirname(table), ""))
    told = by_folder(part.items, part.columns, table, start)
    items, *notes = told or (part.items,)
    places, found, gone = dict(archive.images), [], list[str]()
    for item in items:
        name = posixpath.normpath(item.key)
        if name in places:
            found.append(_item(info, prefix, name, item.label, places.pop(name)))
        elif store.is_uri(item.key) or item.key.startswith("/"):
            found.append(item)
        else:
            gone.append(item.key)
            found.append(replace(item, key=f"{prefix}/{name}"))
    notes = [*part.notes, *notes, *(f"{name} is not read, {table} is" for name, _ in more)]
    if places:
        count = f"{len(places):,} of {len(archive.images):,}"
        notes.append(f"{count} images are not in {table}, left out")
    if gone:
        notes.append(f"{len(gone):,} images of {table} are not there, such as {gone[0]}")
    return replace(part, items=Items.of(found), notes=tuple(notes))


def _last(name: str) -> str:
    return posixpath.basename(name).lower()


def _item(info: File, prefix: str, name: str, label: str | None, place: Range | Streamed) -> Item:
    size = place.member.size if place.member else -1
    return Item(f"{prefix}/{name}", f"{readable(info.path)}#{name}", label, size, place)
