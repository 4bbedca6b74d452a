"""IDX files, as of MNIST: train-images-idx3-ubyte with train-labels-idx1-ubyte, also .gz."""

import gzip
import os
import re
import zlib
from typing import Any

import numpy as np

from ns_ray import store
from ns_ray.data.sources.files import File, base_of, file_at, readable, stamp
from ns_ray.data.sources.items import Item, Pixels, classes_of
from ns_ray.data.sources.listing import Listing
from ns_ray.data.sources.streams import open_stream
from ns_ray.errors import DataError

IDX_NAME = re.compile(r"(.*?)[-.]?(images|labels)[-.]idx[134]-ubyte(\.gz)?", re.IGNORECASE)
LABEL_NAMES = ("-labels-idx1-ubyte", "-labels.idx1-ubyte")
"""What follows the name of a part, plain or with .gz."""

Array = np.ndarray[Any, Any]


def is_idx(path: str) -> bool:
    """Whether a file is one by its name."""
    return IDX_NAME.fullmatch(os.path.basename(store.bare(path))) is not None


def idx(source: str, infos: list[File], where: str) -> Listing:
    """Images of some IDX files; their labels are in files of the same name beside them.

    Files of EMNIST are turned upright, and its mapping.txt names the classes.

    Raises:
        DataError: one is damaged, or there are labels without images or of another number.
    """
    base = base_of(infos)
    items: list[Item] = []
    used, parts, emnist = {info.path: info for info in infos}, set(), False
    images = [info for info in infos if _what(info.path) == "images"]
    if not images:
        raise DataError(f"{where} holds labels without their images; name those as well")
    for info in images:
        part = _part(info.path)
        found = _beside(part, [n + end for n in LABEL_NAMES for end in ("", ".gz")])
        names: list[str | None] = []
        if found:
            used |= {found.path: found}
            names = _names(found, part)
        pixels = _pixels(info.path)
        if os.path.basename(part).lower().startswith("emnist-"):
            pixels, emnist = pixels.swapaxes(1, 2), True
        if found and len(names) != len(pixels):
            raise DataError(
                f"{info.path} holds {len(pixels):,} images, but {found.path} {len(names):,} labels"
            )
        prefix = readable(part[len(base) :].strip("/"))
        for i, image in enumerate(pixels):
            place = Pixels(image.tobytes(), image.shape)
            label = names[i] if names else None
            items.append(
                Item(f"{prefix}/{i:05d}", f"{readable(info.path)}#{i}", label, image.size, place)
            )
        words = {*re.split(r"[^a-z0-9]", os.path.basename(part).lower())}
        parts |= {w for w, own in (("train", {"train"}), ("test", {"test", "t10k"})) if words & own}
    turned = ("images of EMNIST, which lie on their side in its files, are turned upright",)
    return Listing(
        name=source,
        items=items,
        classes=classes_of(items),
        fingerprint=stamp(used.values(), base),
        notes=turned if emnist else (),
        parts=tuple(sorted(parts, reverse=True)),
    )


def _what(path: str) -> str:
    found = IDX_NAME.fullmatch(os.path.basename(store.bare(path)))
    assert found is not None
    return found[2].lower()


def _part(path: str) -> str:
    """The path up to what says that it holds images: .../train."""
    found = IDX_NAME.fullmatch(os.path.basename(store.bare(path)))
    assert found is not None
    return store.join(os.path.dirname(path), found[1])


def _beside(part: str, names: list[str]) -> File | None:
    paths = (part + name for name in names)
    return next((file_at(path) for path in paths if store.exists(path)), None)


def _names(found: File, part: str) -> list[str | None]:
    """The class of each image: its number, or the letter that EMNIST's mapping gives it, whose
    lines are a number and the codes of its letters."""
    labels = read_idx(found.path)
    if labels.ndim != 1:
        raise DataError(f"{found.path} holds values {labels.shape}, expected labels (n,)")
    mapping = re.sub(r"-(train|test)$", "-mapping.txt", part)
    named: dict[str, str] = {}
    if mapping != part and store.exists(mapping):
        lines = [line.split() for line in store.read_bytes(mapping).decode("ascii").splitlines()]
        named = {line[0]: chr(int(line[1])) for line in lines if line}
    return [named.get(str(label), str(label)) for label in labels]


def _pixels(path: str) -> Array:
    """Gray or RGB images, uint8 [n, height, width(, 3)]."""
    pixels = read_idx(path)
    gray, color = pixels.ndim == 3, pixels.ndim == 4 and pixels.shape[-1] == 3
    if not (gray or color) or not all(pixels.shape[1:]):
        expected = "images (n, height, width) or (n, height, width, 3)"
        raise DataError(f"{path} holds values {pixels.shape}, expected {expected}")
    return pixels


def read_idx(path: str) -> Array:
    """The uint8 values of an IDX file: a magic number that ends in the number of dimensions, the
    dimensions as big-endian int32, the values.

    Raises:
        DataError: it is none, or cut off.
        OSError: it cannot be read.
    """
    try:
        with open_stream(path) as stream:
            data = stream.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a readable gzip file: {error}") from None
    if data[:3] != b"\0\0\x08" or len(data) < 4 or len(data) < 4 + 4 * data[3]:
        raise DataError(f"{path} is not an IDX file of bytes: it begins with {data[:4].hex()}")
    shape = np.frombuffer(data, dtype=">i4", count=data[3], offset=4)
    values = np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * data[3])
    if values.size != int(np.prod(shape, dtype=np.int64)) or (shape < 0).any():
        raise DataError(f"{path} holds {values.size:,} values, its header says {shape.tolist()}")
    return values.reshape(shape)
