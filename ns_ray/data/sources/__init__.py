"""Any image source as one listing: keys, labels, and where the bytes of each image are.

    folder              a folder per class, or no labels at all; metadata.csv inside is honored
    table               CSV, TSV, JSON lines or Parquet: paths or the encoded images themselves
    WebDataset tars     key.jpg with key.cls, key.json or key.txt
    packed corpus       what `ns_ray.data.stage.pack` wrote
    named set           digits, fashion-mnist, cifar10, svhn; `:test` for their test images

Folders, globs and brace patterns are local paths or URIs. Knows nothing about ray, and decodes
nothing: images are read when they are packed.
"""

import os
from collections import Counter

import pyarrow.fs as pafs

from ns_ray import store
from ns_ray.data.sources.files import (
    IMAGE_ENDINGS,
    File,
    base_of,
    braces,
    file_at,
    glob,
    stamp,
    walk,
)
from ns_ray.data.sources.items import Item, classes_of, natural
from ns_ray.data.sources.listing import Listing, Packed
from ns_ray.data.sources.named import NAMED_SETS, named
from ns_ray.data.sources.tables import tables
from ns_ray.data.sources.tars import tars
from ns_ray.errors import DataError, nearest
from ns_ray.store import open_corpus

TABLE_ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")


def list_source(source: str, *, setting: str = "data") -> Listing:
    """What a source holds. Labels are listed wherever there are any; unlabeled use ignores them.

    Args:
        source: see the module's docstring.
        setting: the setting the source comes from, for messages.

    Raises:
        DataError: the source is missing, empty, malformed, or lists a key twice.
    """
    try:
        listing = _list(source, f"{setting}={source!r}")
    except OSError as error:
        raise DataError(f"{setting}={source!r} cannot be read: {error}") from None
    if not listing.rows:
        raise DataError(
            f"{setting}={source!r} holds no images; files ending in {', '.join(IMAGE_ENDINGS)} "
            f"(in any case, not hidden) count as images"
        )
    counts = Counter(item.key for item in listing.items)
    twice = [key for key, count in counts.items() if count > 1]
    if twice:
        raise DataError(
            f"{setting}={source!r} lists {len(twice):,} images more than once, such as "
            f"{twice[0]!r}; every image may be listed once"
        )
    return listing


def _list(source: str, where: str) -> Listing:
    if source.split(":")[0] in NAMED_SETS:  # a folder of this name is reached as ./digits
        return named(source, where)
    path = store.absolute(source)
    if store.exists(path):
        if store.exists(store.join(path, "manifest.json")) or store.exists(
            store.join(path, "pointer.json")
        ):
            return _corpus(source, path)
        fs, inner = store.filesystem(path)
        if fs.get_file_info(inner).type == pafs.FileType.Directory:
            return _folder(source, path, where)
        return _files(source, [file_at(path)], where)
    if any(c in source for c in "*?[{"):
        found = [info for pattern in braces(path) for info in glob(pattern)]
        if not found:
            raise DataError(f"{where}: no file matches this pattern")
        return _files(source, found, where)
    raise DataError(f"{where}: there is no such file or folder{_whats_there(source, path)}")


def _whats_there(source: str, path: str) -> str:
    if store.is_uri(path):
        return ""
    parent, _, name = path.rpartition("/")
    fs, inner = store.filesystem(parent or "/")
    infos = fs.get_file_info(pafs.FileSelector(inner or "/", allow_not_found=True))
    names = sorted((i.base_name for i in infos if not i.base_name.startswith(".")), key=natural)
    if "/" not in source.strip("/"):
        guess = nearest(source, [*names, *NAMED_SETS])
        return f"{guess}; named sets are {', '.join(NAMED_SETS)}"
    if not names:
        return f", and nothing in {parent} either"
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{nearest(name, names)}; {parent} holds {', '.join(names[:8])}{more}"


def _files(source: str, infos: list[File], where: str) -> Listing:
    """Named files: all tars, all tables, or all images."""
    endings = {os.path.splitext(info.path.lower())[1] for info in infos}
    if endings == {".tar"}:
        return tars(source, infos, where)
    if len(endings) == 1 and endings <= set(TABLE_ENDINGS):
        return tables(source, infos, where)
    if endings <= set(IMAGE_ENDINGS):
        base = base_of(infos)
        return _images(source, base, infos)
    if endings & {".gz", ".tgz"}:
        raise DataError(f"{where}: compressed tars cannot be read at random; unpack them to .tar")
    raise DataError(
        f"{where} has files ending in {', '.join(sorted(endings))}; a source is a folder, "
        f".tar files, or tables ending in {', '.join(TABLE_ENDINGS)}"
    )


def _folder(source: str, path: str, where: str) -> Listing:
    infos = walk(path)
    top = {info.path[len(path.rstrip("/")) + 1 :]: info for info in infos}
    for ending in TABLE_ENDINGS:
        if f"metadata{ending}" in top:
            return tables(source, [top[f"metadata{ending}"]], where)
    by_ending = Counter(os.path.splitext(info.path.lower())[1] for info in infos)
    if not any(by_ending[ending] for ending in IMAGE_ENDINGS):
        for ending in (".tar", ".parquet"):
            if by_ending[ending]:
                return _files(source, [i for i in infos if i.path.lower().endswith(ending)], where)
    return _images(source, path, infos)


def _images(source: str, base: str, infos: list[File]) -> Listing:
    """Image files; the first folder below `base` is the class."""
    start = len(base.rstrip("/")) + 1
    chosen = [i for i in infos if i.path.lower().endswith(IMAGE_ENDINGS)]
    items = []
    for info in chosen:
        key = info.path[start:]
        label = key.split("/", 1)[0] if "/" in key else None
        items.append(Item(key, info.path, label, info.size))
    return Listing(
        name=source,
        items=items,
        classes=classes_of(items),
        fingerprint=stamp(chosen, base),
        notes=_left_out(source, infos),
    )


def _left_out(source: str, infos: list[File]) -> tuple[str, ...]:
    others = [i.path for i in infos if not i.path.lower().endswith(IMAGE_ENDINGS)]
    if not others:
        return ()
    endings = Counter(os.path.splitext(path.lower())[1] or "no ending" for path in others)
    listed = ", ".join(f"{ending}: {count:,}" for ending, count in endings.most_common(5))
    return (f"{source}: {len(others):,} files are no images by their name ({listed})",)


def _corpus(source: str, path: str) -> Listing:
    corpus = open_corpus(path)
    return Listing(source, [], corpus.classes, corpus.fingerprint, packed=(Packed(corpus),))
