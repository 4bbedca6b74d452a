"""How far a labeling is inside its shards: the line on the screen moves with every batch.

In this process the actor is asked. Ray's actors leave a note in the key-value store of the head now
and then: that takes no further process, and nobody waits for a note that is lost.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any
from uuid import uuid4

from ns_ray.log import Meter

Tell = Callable[[str, int], None]
"""Takes a shard, and how many of its images are done."""

SECONDS = 2.0
"""Between two notes of an actor."""
NOTES = 50.0
"""Notes a second of all actors, at most: there may be a thousand."""


class Inside:
    """Images of shards that are not finished, shown by the meter of a stage."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._images: dict[str, int] = {}
        self._ended: set[str] = set()

    def tell(self, shard: str, images: int) -> None:
        """So many images of a shard are done."""
        if shard not in self._ended:
            self._images[shard] = images
            self._meter.begin(sum(self._images.values()))

    def end(self, shard: str) -> None:
        """The shard is finished: its images are counted by the meter from here on."""
        self._ended.add(shard)
        self._images.pop(shard, None)
        self._meter.begun = sum(self._images.values())


class Notes:
    """What an actor calls; each has a copy of it.

    Args:
        prefix: how the keys of all begin.
        seconds: between two notes.
    """

    def __init__(self, prefix: str, seconds: float) -> None:
        self._prefix, self._seconds = prefix, seconds
        self._key, self._last = "", time.monotonic()

    def __call__(self, shard: str, images: int) -> None:
        """Leave a note, if it is time."""
        if time.monotonic() - self._last >= self._seconds:
            self._last = time.monotonic()
            self._key = self._key or self._prefix + uuid4().hex
            with suppress(Exception):
                _store().internal_kv_put(self._key.encode(), f"{images} {shard}".encode(), True)


@contextmanager
def noted(inside: Inside, actors: int) -> Iterator[Notes]:
    """What Ray's actors call; a thread passes on what they have noted."""
    prefix, seconds = f"ns-ray inside {uuid4().hex} ", max(SECONDS, actors / NOTES)
    over = threading.Event()

    def watch() -> None:
        with suppress(Exception):  # a head that is gone, or a Ray without such a store
            while not over.wait(seconds):
                for key in _store().internal_kv_keys(prefix.encode()):
                    images, _, shard = (
                        (_store().internal_kv_get(key) or b"").decode().partition(" ")
                    )
                    if shard:
                        inside.tell(shard, int(images))

    watcher = threading.Thread(target=watch, name="inside", daemon=True)
    watcher.start()
    try:
        yield Notes(prefix, seconds)
    finally:
        over.set()
        watcher.join(timeout=seconds)
        with suppress(Exception):
            _store().internal_kv_del(prefix.encode(), True)


def _store() -> Any:
    from ray.runtime_context import get_runtime_context

    return _client(get_runtime_context().gcs_address)


@cache
def _client(address: str) -> Any:
    """Our own: closing one of several clusters takes that of the process away from the others."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    return GcsClient(address=address)
