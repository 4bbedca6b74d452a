"""The actor that labels: names of shards in, files of probabilities out.

It reads encoded images from the shard itself, so pixels never leave the process and memory doesn't
grow with the corpus.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ns_ray import store
from ns_ray.compute import tasks
from ns_ray.errors import ImageError
from ns_ray.labeling.decoding import Begun, Decoder
from ns_ray.labeling.foreign import HELD_OUT, LABELED, Scale, images_of, scale_of
from ns_ray.labeling.inside import Tell
from ns_ray.labeling.job import InferenceJob
from ns_ray.store import (
    REJECTED,
    REJECTED_PREFIX,
    labels_table,
    open_corpus,
    part_name,
)

if TYPE_CHECKING:
    from ns_ray.model import Predictor

Answer = np.ndarray[Any, Any] | ImageError
"""Of one image: probabilities, float32 [classes], or why there are none."""


@dataclass(frozen=True)
class Read:
    """A shard whose decoding has begun.

    Attributes:
        table: its rows.
        images: encoded.
        begun: their decoding for the first models.
    """

    table: pa.Table
    images: list[bytes]
    begun: Begun


class ShardPredictor:
    """Ray Data actor: names of shards in, files of probabilities out."""

    def __init__(
        self,
        job: InferenceJob,
        threads: int,
        images: int,
        device: str,
        spare: int = 0,
        tell: Tell | None = None,
    ) -> None:
        """
        Args:
            job: what to do.
            threads: for decoding, and of the forward pass.
            images: about how many this actor will get.
            device: cpu or cuda.
            spare: whole CPUs that no actor has, for each of them.
            tell: is told how far a shard is, after each batch.
        """
        from ns_ray.model import NoisedPredictor, Predictor

        known = tasks.patiently(images_of, job.known[0], LABELED) if job.known else []
        kind = Predictor if job.noise is None else partial(NoisedPredictor, job.noise)
        self._predictors = [
            kind(
                bundle,
                config=job.predict,
                device=device,
                threads=threads,
                batch_size=job.batch_size,
                images=images,
                known=known,
            )
            for bundle in job.bundles
        ]
        self._together = grouped(self._predictors) if job.noise is None else [self._predictors]
        how = job.decode if job.noise is None else "with_model"
        self._decoders = [Decoder(models[0], how, spare) for models in self._together]
        self._scale = self._scaled(job.known[1]) if job.known else None
        self._job, self._tell = job, tell
        self._corpus = open_corpus(job.corpus)
        self._shards = {shard.name: shard for shard in self._corpus.shards}
        self._turn = threading.Lock()

    def _scaled(self, held_out: str) -> Scale | None:
        """What foreign means to these models; None where they cannot tell."""
        if not all(predictor.knows for predictor in self._predictors):
            return None
        images = tasks.patiently(images_of, held_out, HELD_OUT)
        answers = [averaged(one) for one in zip(*self._said(images), strict=True)]
        return scale_of(np.array([a[-1] for a in answers if not isinstance(a, ImageError)]))

    def __call__(self, batch: dict[str, np.ndarray[Any, Any]]) -> dict[str, list[Any]]:
        """The rows that `each` gives, as columns; `now` is when all of them have been made."""
        columns: dict[str, list[Any]] = {}
        for row in self.each([str(name) for name in batch["shard"]]):
            for column, value in row.items():
                columns.setdefault(column, []).append(value)
        columns["now"] = [time.monotonic()] * len(columns["shard"])
        return columns

    def each(self, names: list[str]) -> Iterator[dict[str, Any]]:
        """One row per shard: shard, rows, rejected, waited (seconds), began, ended and now (seconds
        of a clock that others don't have), engine (JSON). The next shard is read while one is
        predicted, and its first images are decoded where that is done apart."""
        with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
            coming = [reader.submit(self._begin, names[0])]
            for index, name in enumerate(names):
                asked = time.monotonic()
                read = coming.pop().result()
                waited = time.monotonic() - asked
                if index + 1 < len(names):
                    coming.append(reader.submit(self._begin, names[index + 1]))
                with self._turn:
                    began, waited_before = time.monotonic(), self._waited()
                    rows, rejected = self._label(name, read)
                    ended, waited = time.monotonic(), waited + self._waited() - waited_before
                choice, decoder = self._predictors[0].choice, self._decoders[0]
                engine = choice.facts() if choice else {}
                engine["decode"] = "apart" if decoder.apart else "with_model"
                yield {
                    "shard": name,
                    "rows": rows,
                    "rejected": rejected,
                    "waited": waited,
                    "began": began,
                    "ended": ended,
                    "now": ended,
                    "engine": json.dumps(engine),
                    "decoding": decoder.said,
                }

    def _begin(self, name: str) -> Read:
        """Read a shard, and begin to decode it for the first models."""
        table = tasks.patiently(self._read, name)
        images = [image.as_buffer().to_pybytes() for image in table["image"]]
        return Read(table, images, self._decoders[0].begin(images))

    def _said(
        self,
        images: Sequence[bytes],
        begun: Begun | None = None,
        tell: Callable[[int], None] | None = None,
    ) -> list[list[Answer]]:
        """What each model says of each image. Models that want their images made alike share them.

        Args:
            images: encoded.
            begun: their decoding for the first models, where it has begun.
            tell: is told after each batch how many are done.
        """
        from ns_ray.model import Answers

        said, seen = [], 0
        for models, decoder in zip(self._together, self._decoders, strict=True):
            answers = Answers(models)
            for batch in decoder.batches(begun or decoder.begin(images)):
                answers.add(batch)
                seen += batch.images
                if tell is not None:
                    tell(seen // len(self._together))
            said += answers.all()
            begun = None
        return said

    def _waited(self) -> float:
        """Seconds that the models have waited for decoded images so far."""
        return sum(decoder.waited for decoder in self._decoders)

    def _read(self, name: str) -> pa.Table:
        return self._corpus.read(self._shards[name], ["key", "image", "uri"])

    def _label(self, name: str, read: Read) -> tuple[int, int]:
        """Predict a shard and write its files; the number of good and of bad images."""
        tell = partial(self._tell, name) if self._tell else None
        table, answers = read.table, self._said(read.images, read.begun, tell)
        results = [averaged(one) for one in zip(*answers, strict=True)]
        good = np.array([not isinstance(result, ImageError) for result in results], dtype=bool)
        kept = table.filter(pa.array(good))
        classes = len(self._predictors[0].classes)
        probs = (
            np.stack([r for r in results if not isinstance(r, ImageError)])
            if good.any()
            else (np.zeros((0, classes + 1), np.float32))
        )
        foreign = self._scale.foreign(probs[:, -1]) if self._scale else None
        probs = probs[:, :classes]
        if self._job.among is not None:
            probs = among_classes(probs, np.array(self._job.among))
        keys = kept["key"].combine_chunks()
        labels = labels_table(keys, probs, name, self._job.top_k, foreign)
        bad = [r for r in results if isinstance(r, ImageError)]
        if bad:
            rows = table.filter(pa.array(~good)).select(["key", "uri"]).to_pylist()
            rejected = [
                {**row, "reason": error.reason, "detail": error.detail}
                for row, error in zip(rows, bad, strict=True)
            ]
            path = REJECTED_PREFIX + part_name(name, self._job.fingerprint)
            table = pa.Table.from_pylist(rejected, REJECTED)
            tasks.patiently(store.write_table, store.join(self._job.out, path), table)
        path = store.join(self._job.out, part_name(name, self._job.fingerprint))
        tasks.patiently(store.write_table, path, labels)
        return len(keys), len(bad)


def grouped(predictors: Sequence["Predictor"]) -> list[list["Predictor"]]:
    """Those together that want their images made alike."""
    groups: dict[Any, list[Predictor]] = {}
    for predictor in predictors:
        groups.setdefault(predictor.preprocess, []).append(predictor)
    return list(groups.values())


def averaged(answers: Sequence[Answer]) -> Answer:
    """The mean of what several models say of one image, or why one of them says nothing.

    Args:
        answers: of each model: probabilities, float32 [classes].
    """
    if len(answers) == 1:
        return answers[0]
    probs = [answer for answer in answers if not isinstance(answer, ImageError)]
    if len(probs) < len(answers):
        return next(answer for answer in answers if isinstance(answer, ImageError))
    return np.asarray(np.mean(probs, axis=0), dtype=np.float32)


def among_classes(
    probs: np.ndarray[Any, Any], classes: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Probabilities among some classes only, as if the model had no other logits (ImageNet-A is
    scored so: 200 of the 1000 columns, then the arg-max).

    Args:
        probs: float32 [n, model's classes], not rounded to float16: what is left may be tiny.
        classes: int [c], their indices.

    Returns:
        float32 [n, c], rows summing to 1.
    """
    some = np.maximum(probs[:, classes].astype(np.float64), 1e-300)
    return np.asarray(some / some.sum(axis=1, keepdims=True), dtype=np.float32)
