"""Scores a model on a labeled corpus, and keeps its predictions for paired tests."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ns_ray import store
from ns_ray.compute import Pool
from ns_ray.config import EvaluateConfig, PredictConfig
from ns_ray.labeling import InferenceJob, Inferred, infer
from ns_ray.scoring.scores import score
from ns_ray.store import Bundle, Corpus, Evaluation, dense_probs, part_name, rows_of


def evaluate(
    config: EvaluateConfig,
    model: Bundle,
    corpus: Corpus,
    *,
    pool: Pool,
    out: str,
    title: str,
    predict: PredictConfig | None = None,
    others: Sequence[Bundle] = (),
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
        others: further models with the same classes in the same order; what is scored is the mean
            of the probabilities of all.

    Raises:
        DataError: the corpus has no labels, or classes that the model doesn't know.
    """
    from ns_ray.model import class_map  # imports torch

    classes = class_map(model, corpus.classes, corpus.path)
    names = corpus.classes if config.subset else model.classes
    classes_of = np.arange(len(classes)) if config.subset else classes
    among = tuple(classes.tolist()) if config.subset else None
    job = _job(config, model, others, corpus, out, predict or PredictConfig(), among)
    with store.claimed(out, job.fingerprint) as done:
        if done is None:
            inferred = infer(job, pool=pool, title=title)
            keys, probs, labels = _read(job, corpus, len(names))
            scores = score(probs, classes_of[labels], names, config.top_k)
            done = _publish(job, model, corpus, inferred, scores)
        else:
            keys, probs, labels = _read(job, corpus, len(names))
    order = np.argsort(keys)
    correct = probs.argmax(axis=1) == classes_of[labels]
    return Evaluation(
        path=out,
        scores=done.facts,
        keys=tuple(keys[i] for i in order),
        correct=tuple(bool(correct[i]) for i in order),
        seconds=done.seconds,
        fingerprint=done.fingerprint,
    )


def _job(
    config: EvaluateConfig,
    model: Bundle,
    others: Sequence[Bundle],
    corpus: Corpus,
    out: str,
    predict: PredictConfig,
    among: tuple[int, ...] | None,
) -> InferenceJob:
    settings = [
        config.model_dump(mode="json", exclude={"batch_size", "robustness"}),
        predict.model_dump(),
        *(other.fingerprint for other in others),
    ]
    return InferenceJob(
        bundle=model.path,
        corpus=corpus.path,
        out=out,
        fingerprint=store.fingerprint(
            "evaluate 2", model.fingerprint, corpus.fingerprint, settings
        ),
        batch_size=config.batch_size,
        predict=predict,
        among=among,
        others=tuple(other.path for other in others),
    )


def _publish(
    job: InferenceJob, model: Bundle, corpus: Corpus, inferred: Inferred, scores: dict[str, Any]
) -> store.Done:
    return store.publish(
        job.out,
        stage="evaluate",
        fingerprint=job.fingerprint,
        files=inferred.files,
        facts={
            **scores,
            "rejected": inferred.rejected,
            "engine": inferred.engine,
            "images_per_second": inferred.images_per_second,
        },
        inputs={"model": model.fingerprint, "corpus": corpus.fingerprint},
        seconds=inferred.seconds,
    )


def _read(
    job: InferenceJob, corpus: Corpus, num_classes: int
) -> tuple[list[str], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Keys, float32 probabilities [n, classes] and int labels [n], joined by key."""
    keys: list[str] = []
    probs, labels = [], []
    for shard, truth in corpus.scan(["key", "label"]):
        path = store.join(job.out, part_name(shard.name, job.fingerprint))
        table = store.read_labels(path)
        rows = rows_of(table, truth, path)
        keys += table["key"].to_pylist()
        probs.append(dense_probs(table, num_classes, path))
        labels.append(truth["label"].take(rows).to_numpy())
    return keys, np.concatenate(probs), np.concatenate(labels)
