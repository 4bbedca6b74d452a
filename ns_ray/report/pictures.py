"""Galleries, and the thumbnails of their pictures.

Pictures are read all at once, from the row groups that hold them.
"""

import base64
import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ns_ray import store
from ns_ray.data import decode
from ns_ray.errors import ImageError
from ns_ray.report.facts import Run
from ns_ray.store import Corpus

SHOWN = 12
"""Pictures in a gallery."""
SIDE = 112
"""Longest side of a thumbnail in pixels."""
LOSSLESS_SIDE = 64
"""Smaller images are kept as they are."""
READERS = 4
"""Shards that are read at a time."""


@dataclass(frozen=True)
class Wanted:
    """An image to show.

    Attributes:
        corpus: `unlabeled`, `validation` or `test`; `corruptions` of a corrupted one, `copies` of
            one that was left out.
        caption: lines below the picture; the first one stands out.
        words: what is said about it where the picture can't be seen.
    """

    corpus: str
    shard: str
    key: str
    caption: tuple[str, ...]
    words: str


@dataclass(frozen=True)
class Gallery:
    """Some images, and what they have in common.

    Attributes:
        total: images that the shown ones were chosen from.
        each: pictures that one of these images has.
    """

    title: str
    note: str
    pictures: tuple[Wanted, ...]
    total: int
    each: int = 1


@dataclass(frozen=True)
class Thumbnail:
    """A picture inside the page: a data URI, and its size in pixels."""

    source: str
    width: int
    height: int


def thumbnails(run: Run, galleries: Iterable[Gallery]) -> dict[tuple[str, str], Thumbnail]:
    """Thumbnails by corpus and key of every image that can be read."""
    wanted: dict[tuple[str, str], set[str]] = {}
    for gallery in galleries:
        for picture in gallery.pictures:
            wanted.setdefault((picture.corpus, picture.shard), set()).add(picture.key)
    corpora = {name: run.corpus(name) for name, _ in wanted}
    shards = [
        (name, corpus, shard, sorted(keys))
        for (name, shard), keys in sorted(wanted.items())
        if (corpus := corpora[name]) is not None
    ]
    found: dict[tuple[str, str], Thumbnail] = {}
    with ThreadPoolExecutor(READERS) as pool:
        for name, part in pool.map(_read_shard, shards):
            found |= {(name, key): thumb for key, thumb in part.items()}
    return found


def _read_shard(wanted: tuple[str, Corpus, str, list[str]]) -> tuple[str, dict[str, Thumbnail]]:
    name, corpus, shard_name, keys = wanted
    file = next(shard.file for shard in corpus.shards if shard.name == shard_name)
    path = store.join(corpus.path, file)
    table = store.read_rows(path, "key", keys, ["key", "image"])
    found = {}
    for key, data in zip(table["key"].to_pylist(), table["image"], strict=True):
        try:
            found[str(key)] = thumbnail(data.as_buffer().to_pybytes())
        except ImageError:
            continue
    return name, found


def thumbnail(data: bytes, side: int = SIDE) -> Thumbnail:
    """A small picture of an encoded image, its longest side at most so many pixels.

    Raises:
        ImageError: it cannot be decoded.
    """
    image = decode(data, shrink_to=side)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    if max(image.size) <= LOSSLESS_SIDE:
        kind = "png"
        image.save(buffer, "PNG", optimize=True)
    else:
        kind = "webp"
        image.save(buffer, "WEBP", quality=78)
    text = base64.b64encode(buffer.getvalue()).decode()
    return Thumbnail(f"data:image/{kind};base64,{text}", image.width, image.height)
