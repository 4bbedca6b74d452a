"""`ns-ray predict`: a table of what a model sees in images, for people who want only that.

One process, no Ray: images are read, decoded and classified in chunks of constant memory.
"""

import io
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from ns_ray import store
from ns_ray.config import PredictConfig
from ns_ray.data import Item, Row, Stream, list_source, read_rows, unread
from ns_ray.errors import ConfigError, DataError, ImageError
from ns_ray.labeling.formats import Format, write_parquet, write_rows
from ns_ray.log import Meter, aside, progress, say

if TYPE_CHECKING:
    from ns_ray.model import Predictor

CHUNK = 256
"""Images read at a time."""


def predict(
    bundle: str,
    paths: Sequence[str],
    *,
    top_k: int,
    format: Format,
    out: str | None,
    config: PredictConfig,
) -> int:
    """Classify all images of some sources, and print or write the table.

    Returns:
        How many images could not be used.

    Raises:
        ConfigError: a wrong option.
        DataError: no image could be used, or a source is missing.
    """
    if top_k < 1:
        raise ConfigError(f"--top-k {top_k} must be at least 1")
    if format == "parquet" and out is None:
        raise ConfigError("--format parquet needs --out FILE; the others can go to the screen")
    listings = [list_source(path, setting="PATH") for path in paths]
    with aside(True):  # standard output is for the table
        for path, listing in zip(paths, listings, strict=True):
            for note in listing.notes:
                say(f"{path}: {note}")
    total = sum(listing.rows for listing in listings)
    from ns_ray.model import Predictor  # torch: not for those who only ask what is here

    predictor = Predictor(bundle, config=config, images=total)
    items = itertools.chain.from_iterable(listing.each() for listing in listings)
    with progress("predict", total) if out is not None else nullcontext() as meter:
        counted = _Counted(predicted(predictor, items, top_k=top_k, meter=meter))
        if out is None:
            write_rows(counted, format, sys.stdout)
        elif format == "parquet":
            write_parquet(counted, out)
        else:
            text = io.StringIO()
            write_rows(counted, format, text)
            store.write_bytes(store.absolute(out), text.getvalue().encode())
    if counted.bad == total:
        raise DataError(f"none of the {total:,} images could be used: {counted.last}")
    if out is not None:
        say(f"{out}: {total - counted.bad:,} images, {counted.bad:,} could not be used")
    return counted.bad


class _Counted:
    """Rows on their way through, the bad ones counted."""

    def __init__(self, rows: Iterator[dict[str, Any]]) -> None:
        self._rows = rows
        self.bad, self.last = 0, ""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self._rows:
            if row["error"] is not None:
                self.bad, self.last = self.bad + 1, f"{row['filename']}: {row['error']}"
            yield row


def predicted(
    predictor: "Predictor", items: Iterable[Item], *, top_k: int, meter: Meter | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of `formats.SCHEMA`: of each image its likeliest classes, or one with its error.

    Args:
        predictor: the model.
        items: the images.
        top_k: classes per image.
        meter: counts images.
    """
    stream, left = Stream(), iter(items)
    while chunk := list(itertools.islice(left, CHUNK)):
        yield from _chunk_rows(predictor, chunk, stream, top_k)
        if meter is not None:
            meter.add(len(chunk))


def _chunk_rows(
    predictor: "Predictor", items: Sequence[Item], stream: Stream, top_k: int
) -> Iterator[dict[str, Any]]:
    files = list(_read(items, stream))
    good = [data for data in files if isinstance(data, bytes)]
    answers = iter(predictor.predict(good))
    for item, data in zip(items, files, strict=True):
        answer = data if isinstance(data, ImageError) else next(answers)
        empty = {"filename": item.uri, "rank": None, "index": None, "label": None, "prob": None}
        if isinstance(answer, ImageError):
            yield {**empty, "error": str(answer)}
            continue
        order = np.argsort(-answer, kind="stable")[:top_k]
        for rank, index in enumerate(order, start=1):
            yield {
                "filename": item.uri,
                "rank": rank,
                "index": int(index),
                "label": predictor.classes[index],
                "prob": round(float(answer[index]), 6),
                "error": None,
            }


def _read(items: Sequence[Item], stream: Stream) -> Iterator[bytes | ImageError]:
    """The encoded files; images of one row group of a Parquet file are read together."""

    def group(item: Item) -> Any:
        place = item.place
        return (place.path, place.column, place.group) if isinstance(place, Row) else id(item)

    for _, members in itertools.groupby(items, key=group):
        some = list(members)
        places = [item.place for item in some if isinstance(item.place, Row)]
        try:
            if places:
                yield from read_rows(places)
            else:
                yield some[0].read(stream)
        except ImageError as error:
            yield error
        except OSError as error:
            yield from (unread(item, error) for item in some)
