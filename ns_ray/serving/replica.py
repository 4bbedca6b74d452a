"""One replica: the model that answers, what was counted, and the exchange of one model for another
while requests are under way. Knows nothing about HTTP or Ray.
"""

import asyncio
import functools
import time
from dataclasses import dataclass
from typing import Any

from ns_ray.compute import cpus
from ns_ray.data import smooth_pixels
from ns_ray.model import Predictor
from ns_ray.serving.batcher import Batcher
from ns_ray.serving.settings import ServeConfig
from ns_ray.serving.totals import Totals

WARM_UP = 16
"""Images of the first forward pass, on which a runtime is chosen and compared with torch."""


@dataclass(frozen=True)
class Model:
    """A loaded model with its queue."""

    predictor: Predictor
    batcher: Batcher
    version: str
    ready_seconds: float

    def facts(self, config: ServeConfig) -> dict[str, Any]:
        """What the model is, where it came from, and the limits of the server."""
        predictor = self.predictor
        provenance = predictor.bundle.provenance
        origin = ("run", "generation", "role", "model", "teacher", "config_hash", "git_sha")
        return {
            "name": config.model_name,
            "version": self.version,
            "architecture": predictor.bundle.architecture,
            "parameters": predictor.bundle.parameters or None,
            "classes": len(predictor.classes),
            "labels": list(predictor.classes),
            "input_size": predictor.preprocess.size,
            "origin": {key: provenance[key] for key in origin if key in provenance},
            "runtime": predictor.choice.facts() if predictor.choice else None,
            "device": str(predictor.device),
            "ready_seconds": round(self.ready_seconds, 2),
            "limits": {
                "bytes": config.max_bytes,
                "pixels": config.max_pixels,
                "images": config.max_images,
                "queue": config.max_queue,
                "deadline_seconds": config.deadline,
            },
            "top_k": config.top_k,
        }


class Replica:
    """Serves one model at a time.

    Attributes:
        totals: what it counts.
        model: what new requests go to; None until a model has answered its warm-up.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self._cpus = config.cpus or cpus()
        self.totals = Totals()
        self.model: Model | None = None
        self._closing: set[asyncio.Task[None]] = set()

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
            sizes=self.totals.batches,
        )
        try:
            await batcher.on_model_thread(
                functools.partial(_warm_up, predictor, self.config.max_batch)
            )
        except BaseException:
            await batcher.close()
            raise
        old = self.model
        self.model = Model(predictor, batcher, version(predictor), time.monotonic() - start)
        self.totals.version = self.model.version
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
