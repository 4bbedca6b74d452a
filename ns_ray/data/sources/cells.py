"""What the cells of tables say, of whatever format: paths, labels, or that they are the images."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ns_ray import store
from ns_ray.data.sources.files import PARTS
from ns_ray.data.sources.items import COLUMNS, TEXT, Item, Items
from ns_ray.data.sources.labels import LABEL_COLUMNS, PLURAL, column_named, labels_of, short
from ns_ray.data.sources.texts import PATH_COLUMNS, check_once
from ns_ray.errors import DataError

LONGEST = 255
"""Letters of a path without a dot in it, from which it is none: disks allow as many in one name."""

WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
"""How a path begins that starts at a drive or a server of Windows."""

UNUSUAL = r"^[^!-~]*$|//|/\./|^\./|/$|\\|\x00|^data:|^[A-Za-z]:/"
"""What may be no path, or is written in another way than its place is: such rows are looked at one
by one."""

CLASSES = "ClassLabel"
"""How Hugging Face calls a column of indices of names."""

NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""What Hive, Spark and pandas call the folder of rows without a value."""


@dataclass(frozen=True)
class Part:
    """The images of one table.

    Attributes:
        items: in the order of the rows.
        names: class names that its metadata may hold.
        mark: changes with the table.
        notes: what a person should know about it.
        columns: all that it has, where none of them says the labels.
    """

    items: Items
    mark: bytes
    names: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


def need_paths(names: Sequence[str], path: str, where: str) -> str:
    check_once(names, path, where)
    column = column_named(names, PATH_COLUMNS)
    if column is None:
        raise DataError(
            f"{where}: {path} has the columns {', '.join(names)}; one of "
            f"{', '.join(PATH_COLUMNS)} must name the image"
        )
    return column


def path_items(
    paths: Sequence[Any], labels: Sequence[str | None], table: str, base: str, where: str
) -> Items:
    """Rows whose image column is a path, relative to the table's folder unless absolute.

    Raises:
        DataError: one is none.
    """
    try:
        named = pa.array(paths, TEXT)
    except pa.ArrowTypeError:  # JSON may say anything
        named = pa.array([path if isinstance(path, str) else None for path in paths], TEXT)
    long = pc.greater(pc.binary_length(named), LONGEST)
    unusual = pc.or_(pc.match_substring_regex(named, UNUSUAL), long).fill_null(True)
    found = [*_one_by_one(paths, np.flatnonzero(unusual).tolist(), table, base, where)]
    folder = store.join(os.path.dirname(store.bare(table)), "")
    nothing, whole = pa.scalar("", TEXT), pc.starts_with(named, "/")
    columns = []
    for i, start in enumerate((folder[len(base) :].lstrip("/"), folder)):
        starts = pc.if_else(whole, nothing, pa.scalar(start, TEXT))
        columns.append(pc.binary_join_element_wise(starts, named, nothing))
        if found:
            own = pa.array([one[i] for one in found], TEXT)
            columns[i] = pc.replace_with_mask(columns[i], unusual, own)
    return Items.columns([*columns, labels, pa.array(np.full(len(named), -1))])


def _one_by_one(
    paths: Sequence[Any], rows: Sequence[int], table: str, base: str, where: str
) -> Iterator[tuple[str, str]]:
    """Key and place of the images of some rows, counted from 0."""
    schemes: set[str] = set()
    folder = os.path.dirname(store.bare(table))
    for row in rows:
        path = paths[row]
        if path is None or (isinstance(path, str) and not path.strip()):
            raise DataError(f"{where}: {table} has no path in row {row + 1}")
        if told := _no_path(path):
            raise DataError(f"{where}: {table} holds {short(path)} in row {row + 1:,}: {told}")
        key, uri = placed(path, folder, base)
        if store.is_uri(uri) and (scheme := uri.partition(":")[0]) not in schemes:
            schemes.add(scheme)
            store.filesystem(uri)  # refuses what cannot be read, before anything is
        yield key, uri


def _no_path(path: Any) -> str | None:
    """Why a value names no file, for people; None where it may."""
    if not isinstance(path, str) or "\0" in path:
        return "a path is text"
    if WINDOWS.match(path):
        return "it begins at a drive of Windows; write paths as they are from the table on"
    # Base64 has slashes, so none of its parts need be too long; but it has no dot.
    if path.startswith("data:") or (len(path) > LONGEST and not {".", ":"} & {*path}):
        return "it is no path; images as text are not read: write their bytes into a Parquet table"
    return None


def placed(path: str, folder: str, base: str) -> tuple[str, str]:
    """Key and place of an image whose path is in a table of that folder. Backslashes are of
    Windows, unless a file is called so."""
    if store.is_uri(path):
        return path, path
    if "\\" in path and not ("/" in path and os.path.exists(store.join(folder, path))):
        path = path.replace("\\", "/")
    if "//" in path or "/./" in path:
        path = re.sub(r"/(\.?/)+", "/", path)
    if path.startswith("/"):
        return path, path
    uri = store.join(folder, path.removeprefix("./"))
    return uri[len(base) :].strip("/"), uri


def row_labels(
    column: str | None,
    values: Sequence[Any],
    names: Sequence[str],
    table: str,
    rows: int,
    where: str,
) -> list[str | None]:
    """The label of each row: a column says it, or the folder of a partition: `label=cat`.

    Args:
        column: whose `values` these are; None: there is none.
    """
    if column is not None:
        return labels_of(values, names, f"{where}: column {column!r} of {table}")
    own = partition(table)
    if own is None:
        return [None] * rows
    own = "" if own == NO_PARTITION else unquote(own)
    return labels_of([own], names, f"{where}: {table}") * rows


def partition(table: str) -> str | None:
    """What the folder of a partition says of the labels in a table, as it is written there; None
    where there is no such folder."""
    for part in os.path.dirname(store.bare(table)).split("/"):
        name, _, value = part.partition("=")
        if value and name.lower() in LABEL_COLUMNS:
            return value
    return None


def by_folder(
    images: Sequence[Item], columns: Sequence[str], table: str, start: int = 0
) -> tuple[Items, str] | None:
    """Images of a folder whose table says no labels, with those that the folders in it say, as they
    do without a table, and a note of that. None where not each is in one, there is one only, or
    they are parts of a set.

    Args:
        columns: of the table; none where it says the labels.
        start: where their paths in that folder begin in their keys.
    """
    found = Items.of(images)
    labeled = found.table["label"].null_count < len(found)  # by the folder of a partition
    if labeled or not columns or found.places is not None:
        return None
    inside = pc.utf8_slice_codeunits(found.table["key"], start)
    below = pc.extract_regex(inside, r"^(?P<label>[^/:.][^/:]*)/")
    labels = pc.struct_field(below, "label").cast(TEXT)
    names = labels.unique().to_pylist()
    if None in names or len(names) < 2 or {name.lower() for name in names} <= {*PARTS}:
        return None
    told = f"{os.path.basename(table)} has the columns {', '.join(columns)}, which say no labels"
    items = Items(found.table.set_column(2, COLUMNS.field("label"), labels))
    return items, f"{told}: the folders of its images do"


def image_column(kind: pa.Schema, path: str, where: str) -> str:
    """The column that holds images, or else the one that names them: files that are named beside
    the images themselves may be nowhere. Where no name tells, the one that holds bytes.

    Raises:
        DataError: there is none, or several hold bytes.
    """
    check_once(kind.names, path, where)
    images: list[str] = [one.name for one in kind if is_images(encoded(one.type))]
    own = column_named(images, PATH_COLUMNS)
    if own is None and len(images) == 1 and column_named(kind.names, PATH_COLUMNS) is None:
        return images[0]
    return own or need_paths(kind.names, path, where)


def label_column(kind: pa.Schema, path: str) -> str | None:
    """The column of labels of a table: called so, or the only ClassLabel of Hugging Face's
    metadata, or PLURAL."""
    own = column_named(kind.names, LABEL_COLUMNS)
    if own is not None:
        return own
    features = _features(kind)
    classes = [name for name in kind.names if _feature(features, name).get("_type") == CLASSES]
    if classes:
        return classes[0] if len(classes) == 1 else None
    own = only_plural(kind.names, path)
    whole = own is not None and pa.types.is_integer(encoded(kind.field(own).type))
    return own if whole else None


def only_plural(names: Sequence[str], path: str) -> str | None:
    """The column PLURAL of a table, if there is one only and no folder says the labels."""
    found = [name for name in names if name.strip().lower() == PLURAL]
    return found[0] if len(found) == 1 and partition(path) is None else None


def encoded(kind: pa.DataType) -> pa.DataType:
    """The type of a column's values, however they are stored."""
    while True:
        if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        elif isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        else:
            return kind


def is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return any(is_(kind) for is_ in (types.is_string, types.is_large_string, types.is_string_view))


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    wide = (types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(is_(kind) for is_ in (types.is_binary, *wide))


def is_images(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return _is_bytes(kind)
    at = kind.get_field_index("bytes")
    own = encoded(kind.field(at).type) if at >= 0 else None
    return own is not None and (_is_bytes(own) or pa.types.is_null(own))


def check_there(uri: str, table: str, column: str, where: str) -> None:
    """Fail where an image that is named, not stored, is not there."""
    if not store.exists(uri):
        raise DataError(
            f"{where}: column {column!r} of {table} holds paths without bytes, and there is no "
            f"{uri}; the images are not embedded: put them beside the table, or write it "
            "with their bytes (datasets: `push_to_hub`, or `embed_table_storage`)"
        )


def class_names(kind: pa.Schema, path: str, where: str) -> list[str]:
    """The names that labels stand for, of Hugging Face's metadata; none where it has none.

    Raises:
        DataError: they are no different names.
    """
    names = _names_of_labels(kind, path)
    if wrong := sorted(name for name in {*names} if names.count(name) > 1 or not name.strip()):
        raise DataError(
            f"{where}: {path} calls several of its classes {wrong[0]!r}, or one nothing; "
            "each class needs a name of its own"
        )
    return names


def _names_of_labels(kind: pa.Schema, path: str) -> list[str]:
    column = label_column(kind, path)
    return [str(name) for name in _feature(_features(kind), column).get("names") or []]


def _features(kind: pa.Schema) -> Any:
    """What Hugging Face's metadata says of each column; nothing where there is none."""
    raw = (kind.metadata or {}).get(b"huggingface")
    if raw is None:
        return {}
    try:
        return json.loads(raw)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}


def _feature(features: Any, column: str | None) -> dict[str, Any]:
    # A list of ClassLabels is no dictionary; its values are refused as lists.
    found = features.get(column) if isinstance(features, dict) else None
    return found if isinstance(found, dict) else {}
