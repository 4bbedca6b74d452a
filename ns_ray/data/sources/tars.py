"""WebDataset tars: `key.jpg` with its label in `key.cls`, `key.json` or `key.txt`."""

import json
import tarfile
from collections.abc import Iterator
from typing import Any

from ns_ray import store
from ns_ray.data.sources.files import IMAGE_ENDINGS, File, base_of, hidden, stamp
from ns_ray.data.sources.items import Item, Range, classes_of
from ns_ray.data.sources.listing import Listing
from ns_ray.data.sources.tables import LABEL_COLUMNS, column_named, label_of
from ns_ray.errors import DataError


def tars(source: str, infos: list[File], where: str) -> Listing:
    """Samples of one or more uncompressed tars, read through once for their member lists.

    Raises:
        DataError: one is not a tar, or is cut off.
    """
    base = base_of(infos)
    items = [item for info in infos for item in _tar(info, base, where)]
    return Listing(source, items, classes_of(items), stamp(infos, base))


def _tar(info: File, base: str, where: str) -> list[Item]:
    """Samples of one tar: members that share a name up to the first dot of their base name."""
    tar_name = info.path[len(base) :].strip("/").removesuffix(".tar")
    found: dict[str, Range] = {}
    names: dict[str, str] = {}
    labels: dict[str, dict[str, bytes]] = {}
    try:
        for name, place, data in _members(info.path):
            folder, _, last = name.rpartition("/")
            stem, _, ending = last.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if f".{ending.lower()}" in IMAGE_ENDINGS:
                found[key], names[key] = place, name
            elif data is not None:
                labels.setdefault(key, {})[ending.lower()] = data
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{where}: {info.path} is not a readable tar: {error}") from None
    return [
        Item(
            key=f"{tar_name}/{key}",
            uri=f"{info.path}#{names[key]}",
            label=_tar_label(labels.get(key, {})),
            size=place.length,
            place=place,
        )
        for key, place in found.items()
    ]


def _members(path: str) -> Iterator[tuple[str, Range, bytes | None]]:
    """Name, place and (of label files) contents of a tar's members. Remote tars are streamed in
    one request; local ones are skipped through."""
    fs, inner = store.filesystem(path)
    remote = store.is_uri(path)
    mode: Any = "r|" if remote else "r:"
    with (
        fs.open_input_stream(inner) if remote else fs.open_input_file(inner) as stream,
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
            yield name, Range(path, member.offset_data, member.size), data


def _tar_label(files: dict[str, bytes]) -> str | None:
    if "cls" in files:
        return files["cls"].decode("utf-8", "replace").strip() or None
    if "json" in files:
        try:
            value = json.loads(files["json"])
        except ValueError:
            value = None
        if isinstance(value, dict):
            column = column_named(list(value), LABEL_COLUMNS)
            return label_of(value[column]) if column else None
    if "txt" in files:
        return files["txt"].decode("utf-8", "replace").strip() or None
    return None
