"""What answers: the current model, its queue, and the exchange of one model for another while
requests are under way. Knows nothing about HTTP or Ray.
"""

import asyncio
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ns_ray.errors import ImageError
from ns_ray.images import smooth_pixels
from ns_ray.predictor import Predictor
from ns_ray.resources import cpus
from ns_ray.serving.batcher import Batcher
from ns_ray.serving.metrics import MAX_LABELS, Totals
from ns_ray.serving.settings import ServeConfig

WARM_UP = 16
"""Images of the first forward pass, on which a runtime is chosen and compared with torch."""

Ranked = list[dict[str, Any]]
"""[{"label": str, "score": float}, ...], the most probable first."""


class Overloaded(Exception):  # noqa: N818  a state, not a fault
    """The queue is full."""


@dataclass(frozen=True)
class Model:
    """A loaded model with its queue."""

    predictor: Predictor
    batcher: Batcher
    version: str
    ready_seconds: float


class Service:
    """Serves one model at a time.

    Attributes:
        totals: what was counted so far.
        busy_bytes: bytes of request bodies held now.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self._cpus = config.cpus or cpus()
        self.totals = Totals()
        self.busy_bytes = 0
        self._model: Model | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        """Whether a model has answered a warm-up inference."""
        return self._model is not None

    @property
    def model(self) -> Model:
        """The model that new requests go to."""
        assert self._model is not None, "asked before ready"
        return self._model

    async def load(self, bundle: str) -> None:
        """Load a model aside, warm it up, and let it answer from now on. Requests under way end on
        the model that they began with.

        Raises:
            NsRayError: it cannot be loaded; the old one stays.
        """
        start = time.monotonic()
        loop = asyncio.get_running_loop()
        predictor = await loop.run_in_executor(None, self._predictor, bundle)
        batcher = Batcher(
            predictor.pixels,
            predictor.forward,
            decoders=self._cpus,
            max_batch=self.config.max_batch,
            on_batch=lambda size: self.totals.batches.add(size),
        )
        try:
            await batcher.on_model_thread(
                functools.partial(_warm_up, predictor, self.config.max_batch)
            )
        except BaseException:
            await batcher.close()
            raise
        old = self._model
        self._model = Model(predictor, batcher, version(predictor), time.monotonic() - start)
        self.totals.version = self._model.version
        if old is not None:
            task = loop.create_task(old.batcher.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _predictor(self, bundle: str) -> Predictor:
        config = self.config
        return Predictor(
            bundle,
            config=config.predict,
            device=config.device,
            threads=self._cpus,
            batch_size=config.max_batch,
            max_pixels=config.max_pixels,
        )

    def waiting(self) -> int:
        """Images that wait for an answer."""
        return self.model.batcher.waiting

    def admit(self, images: int, size: int = 0) -> None:
        """Check that there is room for so many images and bytes more.

        Raises:
            Overloaded: there is not.
        """
        if (
            self.waiting() + images > self.config.max_queue
            or self.busy_bytes + size > self.config.max_queue_bytes
        ):
            raise Overloaded

    async def classify(
        self, images: Sequence[bytes | ImageError], top_k: int
    ) -> tuple[str, list[Ranked | ImageError]]:
        """The version of the model that answered, and the top classes of each image, or why it has
        none.

        Raises:
            Overloaded: the queue is full.
        """
        model = self.model
        self.admit(len(images))
        futures = [
            item if isinstance(item, ImageError) else model.batcher.submit(item) for item in images
        ]
        answers: list[Ranked | ImageError] = []
        try:
            for item in futures:
                try:
                    if isinstance(item, ImageError):
                        raise item
                    ranked = rank(await item, model.predictor.classes, top_k)
                except ImageError as error:
                    self.totals.image(error.reason)
                    answers.append(error)
                    continue
                self.totals.image("ok")
                if len(model.predictor.classes) <= MAX_LABELS:
                    self.totals.prediction(ranked[0]["label"])
                answers.append(ranked)
        finally:
            for item in futures:
                if isinstance(item, ImageError) or item.cancelled():
                    continue
                if item.done():
                    item.exception()  # counts as seen, also where nobody waited for it
                else:
                    item.cancel()
        return model.version, answers

    def info(self) -> dict[str, Any]:
        """What the model is, where it came from, and the limits of the server."""
        model, config = self.model, self.config
        predictor = model.predictor
        provenance = predictor.bundle.provenance
        origin = ("run", "generation", "role", "model", "teacher", "config_hash", "git_sha")
        return {
            "name": config.model_name,
            "version": model.version,
            "architecture": predictor.bundle.architecture,
            "parameters": predictor.bundle.parameters or None,
            "classes": len(predictor.classes),
            "labels": list(predictor.classes),
            "input_size": predictor.preprocess.size,
            "origin": {key: provenance[key] for key in origin if key in provenance},
            "runtime": predictor.choice.facts() if predictor.choice else None,
            "device": str(predictor.device),
            "ready_seconds": round(model.ready_seconds, 2),
            "limits": {
                "bytes": config.max_bytes,
                "pixels": config.max_pixels,
                "images": config.max_images,
                "queue": config.max_queue,
                "deadline_seconds": config.deadline,
            },
            "top_k": config.top_k,
        }


def rank(probs: np.ndarray[Any, Any], classes: Sequence[str], top_k: int) -> Ranked:
    """The `top_k` most probable classes, highest first; ties in the order of the classes."""
    top_k = min(top_k, len(classes))
    if top_k < len(classes) > 64:
        candidates = np.sort(np.argpartition(probs, -top_k)[-top_k:])
        order = candidates[np.argsort(-probs[candidates], kind="stable")]
    else:
        order = np.argsort(-probs, kind="stable")[:top_k]
    return [{"label": classes[i], "score": round(float(probs[i]), 6)} for i in order]


def version(predictor: Predictor) -> str:
    """Names a model: run and generation where the bundle knows them, and its fingerprint."""
    facts = predictor.bundle.provenance
    words = [str(facts["run"])] if facts.get("run") else []
    if facts.get("generation") is not None:
        words.append(
            f"gen-{facts['generation']:02}"
            if isinstance(facts["generation"], int)
            else str(facts["generation"])
        )
    text = "-".join([*words, predictor.bundle.fingerprint[:12]])
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in text)


def _warm_up(predictor: Predictor, max_batch: int) -> None:
    """Choose the runtime, and run every batch size once: the first pass of a size takes several
    times as long."""
    images = smooth_pixels(max(WARM_UP, max_batch), predictor.preprocess.size)
    predictor.forward(images[:WARM_UP])
    for size in range(1, max_batch + 1):
        predictor.forward(images[:size])
