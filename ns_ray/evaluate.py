"""Scores a model on a labeled corpus, and keeps its predictions for paired tests."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from ns_ray import metrics, storage
from ns_ray.bundle import Bundle
from ns_ray.config import EvaluateConfig, PredictConfig
from ns_ray.errors import DataError
from ns_ray.inference import infer
from ns_ray.resources import Pool
from ns_ray.schema import Corpus, dense_probs, part_name


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one corpus.

    Attributes:
        path: folder of the predictions.
        scores: what `metrics.score` returns.
        keys: keys of the scored images, sorted.
        correct: whether the model is right about each.
        seconds: how long it took.
    """

    path: str
    scores: dict[str, Any]
    keys: tuple[str, ...]
    correct: tuple[bool, ...]
    seconds: float

    @property
    def top1(self) -> float:
        """Accuracy, a fraction."""
        return float(self.scores["top1"])


def evaluate(
    config: EvaluateConfig,
    model: Bundle,
    corpus: Corpus,
    *,
    pool: Pool,
    out: str,
    title: str,
    predict: PredictConfig | None = None,
) -> Evaluation:
    """Score a model on a labeled corpus, with the preprocessing and the code that label the pile.

    Args:
        config: batch size and k.
        model: what to score.
        corpus: labeled images, of the model's classes.
        pool: the actors.
        predict: how images go through the model.
        out: folder of the predictions and scores.
        title: name of the progress line.

    Raises:
        DataError: the corpus has no labels, or classes that the model doesn't know.
    """
    classes = _class_map(model, corpus)
    predict = predict or PredictConfig()
    settings = [config.model_dump(mode="json", exclude={"batch_size"}), predict.model_dump()]
    fingerprint = storage.fingerprint("evaluate", model.fingerprint, corpus.fingerprint, settings)
    done = storage.already(out, fingerprint)
    if done is None:
        inferred = infer(
            model.path,
            corpus,
            out=out,
            fingerprint=fingerprint,
            top_k=None,
            batch_size=config.batch_size,
            predict=predict,
            pool=pool,
            title=title,
        )
        keys, probs, labels = _read(corpus, out, fingerprint, len(model.classes))
        scores = metrics.score(probs, classes[labels], model.classes, config.top_k)
        scores["rejected"] = inferred.rejected
        done = storage.publish(
            out,
            stage="evaluate",
            fingerprint=fingerprint,
            files=[*inferred.files.values(), *inferred.rejected_files],
            facts={
                **scores,
                "engine": inferred.engine,
                "images_per_second": round(inferred.fresh / max(inferred.seconds, 1e-9), 1),
            },
            inputs={"model": model.fingerprint, "corpus": corpus.fingerprint},
            seconds=inferred.seconds,
        )
    else:
        keys, probs, labels = _read(corpus, out, fingerprint, len(model.classes))
    order = np.argsort(keys)
    correct = probs.argmax(axis=1) == classes[labels]
    return Evaluation(
        path=out,
        scores=done.facts,
        keys=tuple(keys[i] for i in order),
        correct=tuple(bool(correct[i]) for i in order),
        seconds=done.seconds,
    )


def _class_map(model: Bundle, corpus: Corpus) -> np.ndarray[Any, Any]:
    """Index among the model's classes of each class of the corpus."""
    if not corpus.classes:
        raise DataError(f"{corpus.path} has no labels; evaluation needs a labeled corpus")
    nameless = model.classes == tuple(str(i) for i in range(len(model.classes)))
    if nameless and len(corpus.classes) == len(model.classes):
        return np.arange(len(corpus.classes))  # by position
    unknown = [name for name in corpus.classes if name not in model.classes]
    if unknown:
        raise DataError(
            f"class {unknown[0]!r} of {corpus.path} is not a class of {model.path}, "
            f"which knows: {', '.join(model.classes[:20])}"
        )
    return np.array([model.classes.index(name) for name in corpus.classes])


def _read(
    corpus: Corpus, out: str, fingerprint: str, num_classes: int
) -> tuple[list[str], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Keys, float32 probabilities [n, classes] and int labels [n], joined by key."""
    keys: list[str] = []
    probs, labels = [], []
    for shard, truth in corpus.scan(["key", "label"]):
        table = storage.read_table(storage.join(out, part_name(shard.name, fingerprint)))
        rows = pc.index_in(table["key"], value_set=truth["key"].combine_chunks())
        keys += table["key"].to_pylist()
        probs.append(dense_probs(table, num_classes))
        labels.append(truth["label"].take(rows).to_numpy())
    return keys, np.concatenate(probs), np.concatenate(labels)
