"""Images in, probabilities out, in batches that form while the model is busy.

A few threads decode. What is decoded waits in one queue. One thread runs the model: it takes what
is in the queue and what is still being decoded, and hands the answers to the event loop. It never
waits for images that nobody has sent, so a lone image has the model at once
(docs/decisions/0020-own-batcher.md). A caller that goes away cancels its future, and its image is
skipped. Knows nothing about HTTP or Ray.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ns_ray.errors import ImageError

log = logging.getLogger("ray.serve")

PATIENCE = 0.05
"""Seconds that a decoded image waits at most for others that are being decoded."""

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(slots=True)
class _Image:
    """One image on its way. The thread that decodes it sets `pixels`, unless it is broken."""

    data: bytes | None
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Any]"
    pixels: Pixels | None = None


class Batcher:
    """One model's queue.

    Attributes:
        waiting: images that were submitted and have no answer yet.
    """

    def __init__(
        self,
        decode: Callable[[bytes], Pixels],
        forward: Callable[[Pixels], np.ndarray[Any, Any]],
        *,
        decoders: int,
        max_batch: int,
        sizes: Counter[int] | None = None,
    ) -> None:
        """
        Args:
            decode: encoded file -> uint8 [size, size, 3], or ImageError.
            forward: uint8 [n, size, size, 3] -> float32 [n, classes]; always called by one thread.
            decoders: decoding threads.
            max_batch: most images in one forward pass.
            sizes: counts the forward passes of each size.
        """
        self.waiting = 0
        # Images that were submitted, counted by the event loop, and that have left the queue,
        # counted by the model's thread: the difference is being decoded or ready.
        self._submitted = self._taken = 0
        self._decode, self._forward = decode, forward
        self._sizes: Counter[int] = Counter() if sizes is None else sizes
        self._max_batch = max_batch
        self._ready: queue.SimpleQueue[_Image | Callable[[], None] | None] = queue.SimpleQueue()
        self._decoders = ThreadPoolExecutor(decoders, thread_name_prefix="decode")
        self._thread = threading.Thread(target=self._run, name="forward", daemon=True)
        self._thread.start()

    def submit(self, data: bytes) -> "asyncio.Future[Any]":
        """The probabilities, float32 [classes], of an encoded image; its future raises ImageError
        where there are none. To be called on an event loop; cancel the future to give up."""
        loop = asyncio.get_running_loop()
        image = _Image(data, loop, loop.create_future())
        self.waiting += 1
        self._submitted += 1
        image.future.add_done_callback(self._done)
        self._decoders.submit(self._decode_one, image)
        return image.future

    async def predict(self, images: Sequence[bytes | ImageError]) -> list[Any]:
        """In the order of the images: probabilities, float32 [classes], or the ImageError that says
        why there are none. When the caller is cancelled, so are its images.

        Raises:
            Exception: the model failed.
        """
        waiting = [self.submit(image) for image in images if isinstance(image, bytes)]
        answers = iter(await asyncio.gather(*waiting, return_exceptions=True))
        found = [next(answers) if isinstance(image, bytes) else image for image in images]
        for item in found:
            if isinstance(item, BaseException) and not isinstance(item, ImageError):
                raise item
        return found

    async def on_model_thread(self, work: Callable[[], Any]) -> Any:
        """Run something on the thread that runs the model, between two batches."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def run() -> None:
            try:
                result, error = work(), None
            except Exception as failure:
                result, error = None, failure
            loop.call_soon_threadsafe(_settle, future, result, error)

        self._ready.put(run)
        return await future

    async def close(self) -> None:
        """Answer what was submitted, then end the threads."""
        while self.waiting:
            await asyncio.sleep(0.05)
        self._decoders.shutdown(wait=False)
        self._ready.put(None)

    def _done(self, future: "asyncio.Future[Any]") -> None:
        self.waiting -= 1

    def _decode_one(self, image: _Image) -> None:
        if not image.future.cancelled():
            try:
                assert image.data is not None
                image.pixels = self._decode(image.data)
            except Exception as error:
                _answer(image.loop, [(image.future, None, error)])
        image.data = None
        self._ready.put(image)

    def _run(self) -> None:
        while True:
            item = self._ready.get()
            if item is None:
                return
            if not isinstance(item, _Image):
                item()
                continue
            batch = self._collect(item)
            if batch:
                self._infer(batch)

    def _collect(self, first: _Image) -> list[_Image]:
        """The images in the queue and those that are being decoded, up to the largest batch;
        without those that nobody waits for now. One forward pass of all takes less time than two,
        and threads that decode would get into the model's way meanwhile."""
        batch: list[_Image] = []
        self._take(first, batch)
        until = time.monotonic() + PATIENCE
        while len(batch) < self._max_batch:
            left = until - time.monotonic() if self._submitted > self._taken else 0.0
            try:
                item = self._ready.get(timeout=left) if left > 0 else self._ready.get_nowait()
            except queue.Empty:
                break
            if not isinstance(item, _Image):
                self._ready.put(item)
                break
            self._take(item, batch)
        return batch

    def _take(self, image: _Image, batch: list[_Image]) -> None:
        self._taken += 1
        if image.pixels is not None and not image.future.cancelled():
            batch.append(image)

    def _infer(self, batch: list[_Image]) -> None:
        answers: list[tuple[asyncio.Future[Any], Any, Exception | None]]
        try:
            probs = self._forward(np.stack([image.pixels for image in batch]))  # type: ignore[misc]
            answers = [(image.future, row, None) for image, row in zip(batch, probs, strict=True)]
        except Exception as error:
            log.exception("the model failed on a batch of %d", len(batch))
            answers = [(image.future, None, error) for image in batch]
        self._sizes[len(batch)] += 1
        _answer(batch[0].loop, answers)


def _answer(
    loop: asyncio.AbstractEventLoop,
    answers: list[tuple["asyncio.Future[Any]", Any, Exception | None]],
) -> None:
    """Hand answers to the event loop, waking it once."""

    def settle() -> None:
        for future, result, error in answers:
            _settle(future, result, error)

    with contextlib.suppress(RuntimeError):  # the loop has ended: nobody is left to be told
        loop.call_soon_threadsafe(settle)


def _settle(future: "asyncio.Future[Any]", result: Any, error: Exception | None) -> None:
    if future.done():  # cancelled by a client that went away
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
