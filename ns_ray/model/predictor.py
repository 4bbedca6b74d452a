"""Encoded images in, class probabilities out: the one path that labeling, evaluation and serving
share. Decodes in threads while the model works. Knows nothing about Ray, files or HTTP.
"""

import os
import threading
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import Any

import numpy as np
import torch

from ns_ray.compute import cpus, enough_memory, no_memory
from ns_ray.config import NoiseConfig, PredictConfig
from ns_ray.data import MAX_PIXELS, Augment, Decoded, Normalize, decode, eval_pixels, seeded
from ns_ray.errors import DataError, ImageError, first_line
from ns_ray.model.bundle import load
from ns_ray.model.engines import Choice, Finish, choose
from ns_ray.model.known import Known, has_pooled_features, pooled_features
from ns_ray.model.networks import add_noise, noise_in_eval
from ns_ray.store import Bundle, open_bundle

AHEAD = 2
"""Batches that are decoded before the model asks for them."""


Answer = np.ndarray[Any, Any] | ImageError
"""Of one image: float32 [classes], or why there is none."""


class Predictor:
    """A trained model, its preprocessing, and what runs it (see engines.py), which is chosen when
    the first images come.

    Attributes:
        classes: class names in the order of the probabilities.
        device: where the forward pass runs.
        choice: what runs the model; None before the first images.
        knows: whether answers have one more number than there are classes: how near the image is to
            the known ones (see known.py).
    """

    def __init__(
        self,
        bundle: str,
        *,
        config: PredictConfig | None = None,
        device: str = "auto",
        threads: int | None = None,
        batch_size: int = 64,
        images: int | None = None,
        max_pixels: int = MAX_PIXELS,
        known: Sequence[bytes] = (),
    ) -> None:
        """
        Args:
            bundle: a bundle, a run folder, or a timm local-dir.
            config: runtime, precision, and how exactly to decode.
            device: auto (CUDA where there is some), cpu, or cuda.
            threads: decoding threads, and CPU threads of the forward pass. None: all CPUs that this
                process may use.
            batch_size: images in one forward pass; a compiled model takes no other number.
            images: how many are coming; None if there is no end to them. A short job starts with
                what is ready at once.
            max_pixels: larger images are an ImageError.
            known: encoded images to compare others with, where the model has pooled features.

        Raises:
            ConfigError: there is no such bundle.
            DataError: the bundle is half-written or not a timm model.
        """
        self.bundle: Bundle = open_bundle(bundle)
        self.classes = self.bundle.classes
        self.config = config or PredictConfig()
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.threads = threads or cpus()
        self.batch_size = batch_size
        self.choice: Choice | None = None
        # A GPU works on one batch while the next is stacked and copied.
        self.in_flight = 1 if self.device.type == "cuda" else 0
        self.take_threads()
        self._images, self._max_pixels = images, max_pixels
        self._model, self.preprocess = load(self.bundle)
        self._pool = ThreadPoolExecutor(
            self.threads, thread_name_prefix="decode", initializer=_yield_to_the_model
        )
        with self.enough_memory():
            features = self._features(known)
        self.knows = features is not None
        if features is not None:
            self._model = Known(self._model, features).eval()

    def take_threads(self) -> None:
        """Let torch work with as many threads as this has: of CPUs, they are the process's."""
        if self.device.type == "cpu":
            torch.set_num_threads(self.threads)

    def _features(self, known: Sequence[bytes]) -> torch.Tensor | None:
        """Pooled features, float32 [n, features] on the CPU, of those images that can be decoded;
        None where there are none, or the model has no such features."""
        found: list[torch.Tensor] = []
        for batch in self.decoded(known):
            if batch.pixels is not None:
                model = self._model.to(self.device)
                normalize = Normalize(self.preprocess, self.device)
                images = normalize(torch.from_numpy(batch.pixels).to(self.device))
                if not found and not has_pooled_features(model, images):
                    return None
                found.append(pooled_features(model, images).cpu())
        return torch.cat(found) if found else None

    def pixels(self, data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """An encoded image as the model sees it: uint8 [size, size, 3].

        Raises:
            ImageError: it cannot be decoded.
        """
        return eval_pixels(
            data, self.preprocess, self.config.fast_decode, max_pixels=self._max_pixels
        )

    def forward(self, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, Any]:
        """uint8 [n, size, size, 3] -> float32 probabilities [n, classes]."""
        return self.start(pixels)()

    def start(self, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Finish:
        """Begin what `forward` does."""
        return self._chosen(pixels).start(pixels)

    def _chosen(self, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Choice:
        """What runs the model, chosen with the first images.

        Raises:
            DataError: its layers do not fit each other, or the images.
        """
        if self.choice is None:
            try:
                self.choice = choose(
                    self._model,
                    self.preprocess,
                    self.device,
                    pixels,
                    threads=self.threads,
                    batch_size=self.batch_size,
                    images=self._images,
                    runtime=self.config.runtime,
                    precision=self.config.precision,
                )
            except RuntimeError as error:
                if self.device.type != "cpu" or no_memory(error):
                    raise
                size, said = self.preprocess.size, first_line(error)[:300]
                raise DataError(
                    f"the model in {self.bundle.path} cannot take images of {size} px: {said}"
                ) from error
        return self.choice

    def predict(self, images: Sequence[bytes]) -> list[Answer]:
        """Probabilities, float32 [classes], of each image, or why it has none; with one more number
        where the model `knows`.

        Raises:
            ConfigError: the device has no room for a batch.
            DataError: the model cannot take them.
        """
        answers = Answers([self])
        for batch in self.decoded(images):
            answers.add(batch)
        return answers.all()[0]

    def enough_memory(self) -> AbstractContextManager[None]:
        """Inside, a device that has no room for a batch is a ConfigError that says so."""
        batch = f"a batch of {self.batch_size:,} images of {self.preprocess.size} px"
        return enough_memory(batch, "lower batch_size (of `label` and `evaluate`)")

    def decoded(self, images: Sequence[bytes]) -> Iterator[Decoded]:
        """Batches of decoded images in order, a few of them ahead of the model."""
        pending: deque[list[Future[Any]]] = deque()
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            pending.append([self._pool.submit(self._pixels_or_error, data) for data in batch])
            if len(pending) > AHEAD:
                yield _joined(pending.popleft())
        while pending:
            yield _joined(pending.popleft())

    def _pixels_or_error(self, data: bytes) -> np.ndarray[Any, Any] | ImageError:
        try:
            return self.pixels(data)
        except ImageError as error:
            return error


class Answers:
    """What models that want their images made alike say of them, batch after batch."""

    def __init__(self, models: Sequence[Predictor]) -> None:
        self._models = models
        self._found: list[list[Answer]] = [[] for _ in models]
        self._running: deque[tuple[Decoded, list[Finish]]] = deque()

    def add(self, batch: Decoded) -> None:
        """Have the models begin with a batch.

        Raises:
            ConfigError: the device has no room for it.
            DataError: a model cannot take it.
        """
        with self._models[0].enough_memory():
            pixels = batch.pixels
            begun = [] if pixels is None else [model.start(pixels) for model in self._models]
            self._running.append((batch, begun))
            while len(self._running) > self._models[0].in_flight:
                self._join()

    def all(self) -> list[list[Answer]]:
        """Of each model, what `Predictor.predict` returns; of all batches so far."""
        with self._models[0].enough_memory():
            while self._running:
                self._join()
        return self._found

    def _join(self) -> None:
        batch, begun = self._running.popleft()
        for index, found in enumerate(self._found):
            found += batch.answers(begun[index]() if begun else None)


class NoisedPredictor(Predictor):
    """A predictor with training noise on images and model: what the paper's ablation labels with.
    The same images in the same batches give the same answers."""

    def __init__(self, noise: NoiseConfig, bundle: str, **arguments: Any) -> None:
        super().__init__(bundle, **arguments)
        # Eager torch: other runtimes leave out what doesn't act in eval mode.
        self.config = self.config.model_copy(update={"runtime": "torch"})
        if noise.stochastic_depth > 0.0:
            with suppress(DataError):  # a model of timm that has none, such as VGG
                self._model, _ = load(self.bundle, drop_path_rate=noise.stochastic_depth)
        add_noise(self._model, noise)
        noise_in_eval(self._model)
        self._augment = Augment(noise, self.preprocess.size, noise.off_labeled)

    def pixels(self, data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """An encoded image as a model in training sees it."""
        image = decode(data, shrink_to=2 * self.preprocess.size)
        with seeded(zlib.crc32(data)):
            return self._augment(image)

    def start(self, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Finish:
        """Like that of a predictor, with dropout and stochastic depth."""
        self._chosen(pixels)  # measures, and so draws
        seed = zlib.crc32(pixels.tobytes())
        with seeded(seed):  # torch's generator too, by one thread at a time
            torch.manual_seed(seed)
            return super().start(pixels)


def _joined(futures: list[Future[Any]]) -> Decoded:
    return Decoded.of([future.result() for future in futures])


def _yield_to_the_model() -> None:
    """Give this thread the lowest priority: a thread of the forward pass that waits for its turn
    keeps the others waiting at the end of each layer."""
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
