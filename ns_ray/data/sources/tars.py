"""WebDataset tars, also compressed: `key.jpg`, its label in `key.cls`, `key.json` or `key.txt`."""

import json
import os
import re
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ns_ray import store
from ns_ray.data.sources.files import (
    IMAGE_ENDINGS,
    File,
    base_of,
    hidden,
    pointer_at,
    readable,
    stamp,
)
from ns_ray.data.sources.items import Item, Items, Range, classes_of
from ns_ray.data.sources.labels import LABEL_COLUMNS, check_joined, column_named, labels_of
from ns_ray.data.sources.listing import Listing
from ns_ray.data.sources.streams import COMPRESSED, DAMAGED, Streamed, open_stream
from ns_ray.errors import DataError

TAR_ENDINGS = (
    ".tar",
    *(ending if ending.startswith(".t") else f".tar{ending}" for ending in COMPRESSED),
)
LABELS = (".cls", ".json", ".txt")
READ = (*IMAGE_ENDINGS, *LABELS)


def tars(source: str, infos: list[File], where: str) -> Listing:
    """Samples of one or more tars, read through once for their member lists.

    Raises:
        DataError: one is not a tar, is cut off, or has a name twice.
    """
    base = base_of(infos)
    items, beside = [], list[str]()
    unseen = lost = 0
    for info in infos:
        found = _tar(info, base, where)
        items += found.items
        beside += found.beside
        unseen += found.unseen
        lost += found.lost
    notes = []
    if beside:
        left = f"{len(beside):,} images beside the one of their sample left out"
        notes.append(f"{left}, such as {beside[:1]}")
    if unseen:
        notes.append(f"{unseen:,} hidden files left out")
    if lost:
        notes.append(f"{lost:,} links that lead to no file of their tar")
    if size := sum(item.size for item in items if isinstance(item.place, Streamed)):
        notes.append(
            "images of tars that are compressed, or on the web, are unpacked beside the shards "
            f"before they are packed, which takes {-(-size // 2**20):,} MiB there until then"
        )
    whole = Items.of(items)
    classes = classes_of(whole)
    check_joined(classes, where)
    return Listing(source, whole, classes, stamp(infos, base), tuple(notes))


@dataclass
class _Tar:
    """What one tar holds.

    Attributes:
        items: its images.
        beside: names of images that are none of their own.
        unseen: hidden files.
        lost: links to what is not there.
        files: each file by its name: its place, and the contents of a label's.
        links: what other names stand for.
    """

    items: list[Item] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    unseen: int = 0
    lost: int = 0
    files: dict[str, "_Member"] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)


def _tar(info: File, base: str, where: str) -> _Tar:
    """Images of one tar, and those left out. An image is called by its name without its ending, or
    with it where another has the same; its label has that name too, or the name up to the first
    dot, which is what WebDataset calls a sample. `1.seg.png` beside `1.jpg` is no image of its own
    unless it has a label."""
    tar_name = readable(store.bare(info.path)[len(base) :].strip("/"))
    ending = next((one for one in TAR_ENDINGS if tar_name.endswith(one)), "")
    tar_name = tar_name.removesuffix(ending)
    tar = _Tar()
    try:
        _read(info.path, tar)
    except (tarfile.TarError, OSError, *DAMAGED) as error:
        known = isinstance(error, (tarfile.TarError, *DAMAGED))
        if isinstance(error, OSError) and not known and (error.errno or store.is_uri(info.path)):
            raise  # of the disk or the network
        reason = pointer_at(info.path) or f"not a readable tar: {error}"
        raise DataError(f"{where}: {info.path} is {reason}") from None
    except _TwiceError as error:
        raise DataError(
            f"{where}: {info.path} has {error} twice; every file of a tar may be in it once"
        ) from None
    _follow(tar)
    images: dict[str, Range | Streamed] = {}
    labels: dict[str, dict[str, bytes]] = {}
    for name, (place, data) in tar.files.items():
        stem, ending = os.path.splitext(name)
        if hidden(name):
            continue
        if ending.lower() in IMAGE_ENDINGS:
            images[name] = place
        elif data is not None:
            labels.setdefault(stem, {})[ending.lower()] = data
    stems = Counter(os.path.splitext(name)[0] for name in images)
    for name, place in images.items():
        stem, _ = os.path.splitext(name)
        if stem != _sample(name) and stem not in labels and _sample(name) in stems:
            tar.beside.append(name)
            continue
        what = f"{where}: the label of {name} in {info.path}"
        label = _tar_label(labels.get(stem) or labels.get(_sample(name), {}), what)
        key = stem if stems[stem] == 1 else name
        uri = f"{readable(info.path)}#{name}"
        tar.items.append(Item(f"{tar_name}/{key}", uri, label, place.length, place))
    return tar


def _sample(name: str) -> str:
    """The name up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


_Member = tuple[Range | Streamed, bytes | None]


class _TwiceError(Exception):
    """A name that two files of a tar have."""


def _read(path: str, found: _Tar) -> None:
    """Gather a tar's files and links. Remote and compressed tars are streamed, in one request;
    others are skipped through."""
    compressed = store.bare(path).lower().endswith(COMPRESSED)
    place = Streamed if compressed or store.is_read_only(path) else Range
    streamed = store.is_uri(path) or place is Streamed
    mode: Any = "r|" if streamed else "r:"
    with (
        open_stream(path) if streamed else open(path, "rb") as stream,
        tarfile.open(fileobj=stream, mode=mode) as tar,
    ):
        for member in tar:
            name = _inside(member.name)
            if member.isdir() or not (member.isfile() or member.islnk() or member.issym()):
                continue
            found.unseen += hidden(name)
            if (name in found.files or name in found.links) and name.lower().endswith(READ):
                raise _TwiceError(repr(name))
            if member.islnk():
                found.links[name] = _inside(member.linkname)
            elif member.issym():
                found.links[name] = os.path.normpath(
                    os.path.join(os.path.dirname(name), readable(member.linkname))
                )
            else:
                data = None
                if name.lower().endswith(LABELS):
                    file = tar.extractfile(member)
                    data = file.read() if file else None
                found.files[name] = place(path, member.offset_data, member.size), data
        if not streamed:
            stream.seek(tar.offset)
        if any(chunk.strip(b"\0") for chunk in iter(lambda: stream.read(2**20), b"")):
            # The rest of a stream is read to its checksum, and to the end of what a server sends.
            raise tarfile.ReadError("there is more behind its end; `cat` makes no tar of several")


def _inside(name: str) -> str:
    """The name of a member as that of a file in the folder where the tar is unpacked."""
    return re.sub(r"^(\.{0,2}/)+", "", readable(name))


def _follow(tar: _Tar) -> None:
    """Let links be the files that they lead to, maybe by way of others."""
    for name in tar.links:
        to, steps = tar.links[name], 0
        while to in tar.links and steps <= len(tar.links):
            to, steps = tar.links[to], steps + 1
        if to in tar.files:
            tar.files[name] = tar.files[to]
        else:
            tar.lost += 1


def _tar_label(files: dict[str, bytes], what: str) -> str | None:
    """The label that a sample's files give, .cls before .json before .txt."""
    if ".json" in files and ".cls" not in files:
        try:
            value = json.loads(files[".json"])
        except ValueError:
            value = None
        if isinstance(value, dict):
            column = column_named(list(value), LABEL_COLUMNS)
            return labels_of([value[column]], (), what)[0] if column else None
    for ending in (".cls", ".txt"):
        if ending in files:
            return labels_of([files[ending].decode("utf-8", "backslashreplace")], (), what)[0]
    return None
