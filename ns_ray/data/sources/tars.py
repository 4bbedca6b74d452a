"""WebDataset tars, plain or gzipped: `key.jpg`, its label in `key.cls`, `key.json` or `key.txt`."""

import gzip
import json
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ns_ray import store
from ns_ray.data.sources.files import (
    IMAGE_ENDINGS,
    File,
    base_of,
    hidden,
    not_fetched,
    readable,
    stamp,
)
from ns_ray.data.sources.items import Item, Items, Range, classes_of
from ns_ray.data.sources.labels import LABEL_COLUMNS, column_named, labels_of
from ns_ray.data.sources.listing import Listing
from ns_ray.data.sources.streams import COMPRESSED, Streamed, open_stream, skip
from ns_ray.errors import DataError

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")


def tars(source: str, infos: list[File], where: str) -> Listing:
    """Samples of one or more tars, read through once for their member lists.

    Raises:
        DataError: one is not a tar, or is cut off.
    """
    base = base_of(infos)
    items, beside = [], list[str]()
    for info in infos:
        own, others = _tar(info, base, where)
        items += own
        beside += others
    notes = []
    if beside:
        left = f"{len(beside):,} images beside the one of their sample left out"
        notes.append(f"{left}, such as {beside[:1]}")
    if size := sum(item.size for item in items if isinstance(item.place, Streamed)):
        notes.append(
            "images of tars that are compressed, or on the web, are unpacked beside the shards "
            f"before they are packed, which takes {-(-size // 2**20):,} MiB there until then"
        )
    found = Items.of(items)
    return Listing(source, found, classes_of(found), stamp(infos, base), tuple(notes))


def _tar(info: File, base: str, where: str) -> tuple[list[Item], list[str]]:
    """Images of one tar, and those left out. An image is called by its name without its ending, or
    with it where another has the same; its label has that name too, or the name up to the first
    dot, which is what WebDataset calls a sample. `1.seg.png` beside `1.jpg` is no image of its own
    unless it has a label."""
    tar_name = readable(store.bare(info.path)[len(base) :].strip("/"))
    tar_name = re.sub(r"\.(tar|tar\.gz|tgz)$", "", tar_name)
    found: dict[str, Range | Streamed] = {}
    labels: dict[str, dict[str, bytes]] = {}
    try:
        for name, place, data in _members(info.path):
            stem, ending = os.path.splitext(name)
            if ending.lower() in IMAGE_ENDINGS:
                found[name] = place
            elif data is not None:
                labels.setdefault(stem, {})[ending.lower()] = data
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        reason = _pointer(info) or f"not a readable tar: {error}"
        raise DataError(f"{where}: {info.path} is {reason}") from None
    stems = Counter(os.path.splitext(name)[0] for name in found)
    items, beside = [], []
    for name, place in found.items():
        stem, _ = os.path.splitext(name)
        if stem != _sample(name) and stem not in labels and _sample(name) in stems:
            beside.append(name)
            continue
        what = f"{where}: the label of {name} in {info.path}"
        label = _tar_label(labels.get(stem) or labels.get(_sample(name), {}), what)
        key = stem if stems[stem] == 1 else name
        items.append(Item(f"{tar_name}/{key}", f"{info.path}#{name}", label, place.length, place))
    return items, beside


def _sample(name: str) -> str:
    """The name up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _pointer(info: File) -> str | None:
    fs, inner = store.filesystem(info.path)
    with fs.open_input_stream(inner, compression=None) as stream:
        return not_fetched(bytes(stream.read(100)))


def _members(path: str) -> Iterator[tuple[str, Range | Streamed, bytes | None]]:
    """Name, place and (of label files) contents of a tar's members. Remote and compressed tars are
    streamed, in one request; others are skipped through."""
    compressed = store.bare(path).lower().endswith(COMPRESSED)
    place = Streamed if compressed or store.is_read_only(path) else Range
    streamed = store.is_uri(path) or place is Streamed
    mode: Any = "r|" if streamed else "r:"
    with (
        open_stream(path) if streamed else open(path, "rb") as stream,
        tarfile.open(fileobj=stream, mode=mode) as tar,
    ):
        for member in tar:
            if not member.isfile() or hidden(member.name.removeprefix("./")):
                continue
            data = None
            if member.name.lower().endswith((".cls", ".json", ".txt")):
                file = tar.extractfile(member)
                data = file.read() if file else None
            name = member.name.removeprefix("./")
            yield name, place(path, member.offset_data, member.size), data
        if place is Streamed:
            skip(stream)  # to the checksum, and to the end of what a server sends


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
            return files[ending].decode("utf-8", "replace").strip() or None
    return None
