"""Encoded images in, class probabilities out: the one path that labeling, evaluation and serving
share. Decodes in threads while the model works. Knows nothing about Ray, files or HTTP.
"""

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from ns_ray.bundle import Bundle, load, open_bundle
from ns_ray.errors import ImageError
from ns_ray.images import eval_pixels

AHEAD = 2
"""Batches that are decoded before the model asks for them."""


class Predictor:
    """A trained model, its preprocessing, and the device it runs on.

    Attributes:
        classes: class names in the order of the probabilities.
        device: where the forward pass runs.
        waited: seconds spent waiting for decoded images so far.
    """

    def __init__(
        self,
        bundle: str,
        *,
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        batch_size: int = 64,
    ) -> None:
        """
        Args:
            bundle: a bundle, a run folder, or a timm local-dir.
            device: auto (CUDA where there is some), cpu, or cuda.
            precision: auto (bf16 on CUDA, fp32 elsewhere), fp32 or bf16.
            threads: decoding threads, and CPU threads of the forward pass. None: all cores.
            batch_size: images in one forward pass.

        Raises:
            ConfigError: there is no such bundle.
            DataError: the bundle is half-written or not a timm model.
        """
        self.bundle: Bundle = open_bundle(bundle)
        self.classes = self.bundle.classes
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.threads = threads or os.cpu_count() or 1
        self.batch_size = batch_size
        self.waited = 0.0
        if self.device.type == "cpu":
            torch.set_num_threads(self.threads)
        if precision == "auto":
            precision = "bf16" if self.device.type == "cuda" else "fp32"
        self._dtype = torch.bfloat16 if precision == "bf16" else None
        model, self.preprocess = load(self.bundle)
        self._model = model.to(self.device).to(memory_format=torch.channels_last)
        mean, std = (
            torch.tensor(v, device=self.device).view(1, 3, 1, 1) * 255.0
            for v in (self.preprocess.mean, self.preprocess.std)
        )
        self._mean, self._std = mean, std
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")

    def pixels(self, data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """An encoded image as the model sees it: uint8 [size, size, 3].

        Raises:
            ImageError: it cannot be decoded.
        """
        return eval_pixels(data, self.preprocess)

    def forward(self, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, Any]:
        """uint8 [n, size, size, 3] -> float32 probabilities [n, classes]."""
        with torch.inference_mode():
            batch = torch.from_numpy(pixels)
            if self.device.type == "cuda":
                batch = batch.pin_memory().to(self.device, non_blocking=True)
            images = batch.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last)
            images = (images - self._mean) / self._std
            with torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not None):
                logits = self._model(images)
            probs: np.ndarray[Any, Any] = logits.float().softmax(dim=1).cpu().numpy()
        return probs

    def predict(self, images: Sequence[bytes]) -> list[np.ndarray[Any, Any] | ImageError]:
        """Probabilities, float32 [classes], of each image, or why it has none."""
        results: list[np.ndarray[Any, Any] | ImageError] = []
        for batch in self._decoded(images):
            good = [item for item in batch if not isinstance(item, ImageError)]
            probs = iter(self.forward(np.stack(good)) if good else [])
            results += [item if isinstance(item, ImageError) else next(probs) for item in batch]
        return results

    def _decoded(
        self, images: Sequence[bytes]
    ) -> Iterator[list[np.ndarray[Any, np.dtype[np.uint8]] | ImageError]]:
        """Batches of decoded images in order, a few of them ahead of the model."""
        pending: deque[list[Future[Any]]] = deque()
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            pending.append([self._pool.submit(self._pixels_or_error, data) for data in batch])
            if len(pending) > AHEAD:
                yield self._collect(pending.popleft())
        while pending:
            yield self._collect(pending.popleft())

    def _collect(self, futures: list[Future[Any]]) -> list[Any]:
        start = time.monotonic()
        items = [future.result() for future in futures]
        self.waited += time.monotonic() - start
        return items

    def _pixels_or_error(self, data: bytes) -> np.ndarray[Any, Any] | ImageError:
        try:
            return self.pixels(data)
        except ImageError as error:
            return error
