"""Any image source as one listing: keys, labels, and where the bytes of each image are.

    folder              a folder per class, or no labels at all; metadata.csv inside is honored:
                        it says the labels, or where it has none, which images are meant
    table               CSV, TSV, JSON or its lines, also .gz, .bz2, .zst and .lz4; Parquet, Arrow
                        (also a folder of Hugging Face's save_to_disk) or Feather: paths or the
                        encoded images themselves;
                        labels in a column, or as folders of partitions: label=cat/0.parquet
    WebDataset tars     key.jpg with key.cls, key.json or key.txt; also .tar.gz,
                        .tar.bz2, .tar.xz, .tar.zst and their short forms, such as .tgz
    zip archives        as folders: a folder per class, metadata.csv; photos.zip/train is one in it
    IDX files           train-images-idx3-ubyte with train-labels-idx1-ubyte, also .gz
    packed corpus       what `ns_ray.data.stage.pack` wrote
    named set           digits, fashion-mnist, cifar10, svhn; `:test` for their test images

Folders, globs (`**` for any folders) and brace patterns are local paths or URIs: s3://, gs://,
hf://datasets/owner/name. Files may be URLs, also those of images in a table. Knows nothing about
ray, and decodes nothing: images are read when they are packed.
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from ns_ray import store
from ns_ray.data.sources.cells import by_folder
from ns_ray.data.sources.files import (
    IMAGE_ENDINGS,
    File,
    Files,
    Walk,
    base_of,
    braces,
    file_at,
    glob,
    not_taken,
    parts_of,
    readable,
    stamp,
    walk,
)
from ns_ray.data.sources.idx import idx, is_idx
from ns_ray.data.sources.items import COLUMNS, Item, Items, Range, classes_of, natural
from ns_ray.data.sources.labels import suspects
from ns_ray.data.sources.listing import Listing, Packed
from ns_ray.data.sources.named import NAMED_SETS, named
from ns_ray.data.sources.tables import tables
from ns_ray.data.sources.tars import TAR_ENDINGS, tars
from ns_ray.data.sources.texts import CODECS, TEXT_ENDINGS
from ns_ray.data.sources.uniting import united
from ns_ray.data.sources.zips import zips
from ns_ray.errors import ConfigError, DataError, MissingSourceError, nearest
from ns_ray.store import open_corpus

TABLE_ENDINGS = (*TEXT_ENDINGS, ".parquet", ".arrow", ".feather")
COMPRESSED_TEXTS = tuple(kind + packed for packed in CODECS for kind in TEXT_ENDINGS)
METADATA = tuple(
    f"metadata{ending}"
    for ending in (".csv", ".tsv", ".jsonl", ".parquet", *COMPRESSED_TEXTS)
    if not ending.startswith(".json.")
)
"""Tables in a folder that tell the labels of its images, best first. A metadata.json is of what a
person or a program wanted to say of the folder."""

CACHED = re.compile(r"/(cache-|indices)[^/]*\.arrow$")
"""What Hugging Face's `datasets` keeps of its work beside the data of a `save_to_disk`."""
IN_ZIP = re.compile(r"(.+?\.zip)/+(.+)", re.IGNORECASE)
"""How a folder inside an archive is named."""


def list_source(source: str, *, setting: str = "data") -> Listing:
    """What a source holds. Labels are listed wherever there are any; unlabeled use ignores them.

    Args:
        source: see the module's docstring.
        setting: the setting the source comes from, for messages.

    Raises:
        MissingSourceError: the source is missing or empty.
        DataError: it is malformed, or lists a key twice.
        ConfigError: it is blank.
        StorageError: there is no room for what is downloaded.
    """
    where = f"{setting}={source!r}"
    if not source.strip():
        raise ConfigError(f"{where} names nothing; give a folder, a file or a named set")
    try:
        listing = _list(source, where)
        items = Items.of(listing.items)
    except UnicodeEncodeError as error:
        raise DataError(f"{where} has a name that is no Unicode text: {error.object!r}") from None
    except OSError as error:
        if full := store.full_disk(error):
            raise full from error
        raise DataError(f"{where} cannot be read: {error}") from None
    if not listing.rows:
        saw = f" ({'; '.join(listing.notes)})" if listing.notes else ""
        raise MissingSourceError(
            where,
            f"{where} holds no images{saw}; files ending in {', '.join(IMAGE_ENDINGS)} "
            f"(in any case, not hidden) count as images",
        )
    if twice := items.twice():
        raise DataError(
            f"{where} lists {len(twice):,} images more than once, such as "
            f"{twice[0]!r}; every image may be listed once"
        )
    return replace(listing, items=items, notes=(*listing.notes, *suspects(listing.classes)))


def list_sources(sources: str | Sequence[str], *, setting: str = "data") -> Listing:
    """What one source holds, or several; see `list_source` and `united`."""
    if isinstance(sources, str):
        return list_source(sources, setting=setting)
    parts = [list_source(source, setting=f"{setting}.{i}") for i, source in enumerate(sources)]
    return united(parts, labeled=True)


def _list(source: str, where: str) -> Listing:
    if source.split(":")[0] in NAMED_SETS:  # a folder of this name is reached as ./digits
        return named(source, where)
    path = store.absolute(source)
    if store.exists(path):
        fs, inner = store.filesystem(path)
        if fs.get_file_info(inner).type != pafs.FileType.Directory:
            return _files(source, [file_at(path)], where)
        if store.exists(store.join(path, "manifest.json")) or store.exists(
            store.join(path, "pointer.json")
        ):
            return _corpus(source, path)
        return _folder(source, path, where)
    if (inside := IN_ZIP.fullmatch(path)) and store.exists(inside[1]):
        return zips(source, [file_at(inside[1])], where, inside[2])
    if any(c in source for c in "*?[{"):
        patterns = dict.fromkeys([path, *braces(path)])  # a folder may be called like one
        found = {info.path: info for pattern in patterns for info in glob(pattern)}
        if not found:
            told = "no file matches this pattern; `**` stands for any number of folders"
            raise MissingSourceError(where, f"{where}: {told}")
        return _files(source, [*found.values()], where)
    there = _whats_there(source, path)
    raise MissingSourceError(where, f"{where}: there is no such file or folder{there}")


def _whats_there(source: str, path: str) -> str:
    if store.is_uri(path):
        return "; one that is not open to all needs HF_TOKEN" if path.startswith("hf://") else ""
    parent, _, name = path.rpartition("/")
    listed = os.listdir(parent or "/") if os.path.isdir(parent or "/") else []
    names = sorted((readable(one) for one in listed if not one.startswith(".")), key=natural)
    if "/" not in source.strip("/"):
        guess = nearest(source, [*names, *NAMED_SETS])
        return f"{guess}; named sets are {', '.join(NAMED_SETS)}"
    if not names:
        return f", and nothing in {parent} either"
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{nearest(name, names)}; {parent} holds {', '.join(names[:8])}{more}"


def _files(source: str, infos: list[File], where: str) -> Listing:
    """Named files: all tars, all zip archives, all tables, all IDX files, or all images."""
    if all(is_idx(info.path) for info in infos):
        return idx(source, infos, where)
    endings = {_ending(info.path) for info in infos}
    if read := _reader(endings):
        parts = parts_of(infos, base_of(infos))
        return replace(read(source, infos, where), parts=tuple(parts))
    if endings <= set(IMAGE_ENDINGS):
        return _images(source, base_of(infos), Walk(Files.of(infos)))
    if others := endings & {".gz", ".bz2", ".xz", ".zst", ".lz4"}:
        raise DataError(
            f"{where}: files ending in {', '.join(sorted(others))} are not read; unpack them, or "
            f"make tars of their images, which may end in {', '.join(TAR_ENDINGS)}"
        )
    listed = ", ".join(sorted(ending or "nothing" for ending in endings))
    raise DataError(
        f"{where} has files ending in {listed}; a source is a folder, .tar files, .zip archives, "
        f"or tables ending in {', '.join(TABLE_ENDINGS)}; those that are text may be compressed: "
        f"{', '.join(CODECS)}"
    )


def _reader(endings: set[str]) -> Callable[[str, list[File], str], Listing] | None:
    """What lists files that all end so, other than images; None where nothing does."""
    if endings <= {*TAR_ENDINGS}:
        return tars
    if endings == {".zip"}:
        return zips
    kinds = {os.path.splitext(ending)[0] for ending in endings}  # .csv of .csv.gz
    known = endings <= {*TABLE_ENDINGS, *COMPRESSED_TEXTS}
    return tables if known and len(kinds) == 1 else None


def _ending(path: str) -> str:
    """Of a name in lower case; of what is compressed, both."""
    name = store.bare(path).lower()
    both = (one for one in (*TAR_ENDINGS, *COMPRESSED_TEXTS) if name.endswith(one))
    return next(both, os.path.splitext(name)[1])


def _folder(source: str, path: str, where: str) -> Listing:
    found = walk(path)
    if found.files.ending(".lance"):
        raise DataError(
            f"{where} is a Lance table, which is not read; write it as Parquet: "
            "pyarrow.dataset.write_dataset(lance.dataset(PATH).scanner(batch_size=1000, "
            "blob_handling='all_binary').to_reader(), OUT, format='parquet'); with data.id_column "
            "the images of a pile then stay in that table"
        )
    start = len(path.rstrip("/")) + 1
    some_tables = found.files.ending((*TABLE_ENDINGS, *CODECS))
    top = {info.path[start:].lower(): info for info in some_tables}
    if named := [top[name] for name in METADATA if name in top]:
        listing = tables(source, named[:1], where)
        if told := by_folder(listing.items, listing.columns, named[0].path):
            items, note = told
            notes = (*listing.notes, note)
            listing = replace(listing, items=items, classes=classes_of(items), notes=notes)
        names = [os.path.basename(info.path) for info in named]
        more = [f"{name} is not read, {names[0]} is" for name in names[1:]]
        return replace(listing, notes=(*listing.notes, *more, *_not_in(listing, names[0], found)))
    if not found.files.ending(IMAGE_ENDINGS):
        for endings in (TAR_ENDINGS, (".parquet",), (".arrow",), (".feather",), (".zip",)):
            matching = found.files.ending(endings)
            if some := [info for info in matching if not CACHED.search(info.path)]:
                listing = _files(source, some, where)
                others = [*found.files.ending(endings, False)]
                others += [info for info in matching if CACHED.search(info.path)]
                return replace(listing, notes=(*listing.notes, *_left_out(found, others)))
        if some := [info for info in found.files if is_idx(info.path)]:
            listing = _files(source, some, where)
            left = _left_out(found, [info for info in found.files if not is_idx(info.path)])
            return replace(listing, notes=(*listing.notes, *left))
    return _images(source, path, found)


def _images(source: str, base: str, found: Walk) -> Listing:
    """Image files; the first folder below `base` is the class."""
    start = len(readable(base).rstrip("/")) + 1
    chosen = found.files.ending(IMAGE_ENDINGS)
    fingerprint = stamp(chosen, base)
    items = _whole_files(chosen, start)
    classes = classes_of(items)
    notes = _left_out(found, found.files.ending(IMAGE_ENDINGS, False))
    empty = sorted({*found.folders}.difference(classes), key=natural) if classes else []
    if empty:
        more = f" and {len(empty) - 5:,} more" if len(empty) > 5 else ""
        notes.append(f"no images in {', '.join(empty[:5])}{more}")
    return Listing(source, items, classes, fingerprint, tuple(notes))


def _whole_files(files: Files, start: int) -> Items:
    """Images by their files; keys are what comes from character `start` on."""
    uris = files.table["path"]
    keys = pc.utf8_slice_codeunits(uris, start)
    labels = pc.struct_field(pc.extract_regex(keys, r"^(?P<label>[^/]*)/"), "label")
    columns = [keys, uris, labels.cast(keys.type), files.table["size"]]
    items = Items(pa.Table.from_arrays(columns, schema=COLUMNS))
    if not files.odd:
        return items
    # A name that is no text leads nowhere as one: its bytes are kept beside.
    odd = []
    for path, size, _ in files.odd:
        key = readable(path)[start:]
        label = key.split("/", 1)[0] if "/" in key else None
        odd.append(Item(key, readable(path), label, size, Range(path, 0, size)))
    return Items.joined([items, Items.of(odd)])


def _left_out(found: Walk, other_files: Iterable[File]) -> list[str]:
    """What of a folder's files is not taken, and why."""
    return [*not_taken([info.path for info in other_files]), *found.left_out]


def _not_in(listing: Listing, name: str, found: Walk) -> list[str]:
    """Images of a folder that its table does not name, and those that are named and not there."""
    images = {info.path for info in found.files.ending(IMAGE_ENDINGS)}
    named = {item.uri for item in listing.items if item.place is None}
    told = []
    if missing := len(images - named):
        told.append(f"{missing:,} of {len(images):,} images are not in {name}, left out")
    local = (uri for uri in sorted(named - images) if not store.is_uri(uri))
    if gone := [uri for uri in local if not os.path.exists(uri)]:
        told.append(f"{len(gone):,} images of {name} are not there, such as {gone[0]}")
    return [*told, *found.left_out]


def _corpus(source: str, path: str) -> Listing:
    corpus = open_corpus(path)
    return Listing(source, [], corpus.classes, corpus.fingerprint, packed=(Packed(corpus),))
