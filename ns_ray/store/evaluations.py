"""Scores of a model, as a light frozen value, and its predictions, image by image."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ns_ray.errors import DamagedFileError
from ns_ray.store.corpora import Corpus
from ns_ray.store.labels import file_of, read_labels
from ns_ray.store.publication import published
from ns_ray.store.schema import REJECTED_PREFIX, dense_probs, shard_of

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one corpus.

    Attributes:
        path: folder of the predictions.
        scores: what `ns_ray.scoring.scores.score` returns.
        keys: keys of the scored images, sorted.
        correct: whether the model is right about each.
        seconds: how long it took.
        fingerprint: of model, corpus and settings.
    """

    path: str
    scores: dict[str, Any]
    keys: tuple[str, ...]
    correct: tuple[bool, ...]
    seconds: float
    fingerprint: str = ""

    @property
    def top1(self) -> float:
        """Accuracy, a fraction."""
        return float(self.scores["top1"])

    def beside(self, other: "Evaluation") -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Whether this model and the other are right, on the images that both have scored."""
        right = dict(zip(self.keys, self.correct, strict=True))
        both = [
            (right[key], correct)
            for key, correct in zip(other.keys, other.correct, strict=True)
            if key in right
        ]
        pairs = np.array(both, dtype=np.bool_).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]


@dataclass(frozen=True)
class Predictions:
    """What a model says about a labeled corpus, sorted by key; all columns have the same length.

    Attributes:
        keys: keys, strings.
        shards: corpus shard of each image, strings.
        truth: index of its class.
        predicted: index of the predicted class.
        confidence: of the prediction, float32, a fraction.
        probs: float32 [n, classes], rows summing to 1; None unless asked for.
    """

    keys: Array
    shards: Array
    truth: Array
    predicted: Array
    confidence: Array
    probs: Array | None = None

    @property
    def correct(self) -> Array:
        """Whether the model is right about each."""
        return np.asarray(self.predicted == self.truth)


def read_predictions(
    place: str, corpus: Corpus | None, *, probs: bool = False
) -> Predictions | None:
    """What a model said about the images of a corpus; None where one of the two is gone.

    Args:
        place: folder or URI of the predictions.
        corpus: what was predicted.
        probs: read the probabilities, too; the model knows the classes of the corpus.
    """
    done = published(place)
    if done is None or corpus is None:
        return None
    tables, dense = [], []
    columns = ["key", "label", "confidence", "shard"]
    files = {shard_of(name): name for name in done.files if _is_labels(name)}
    for shard, truth in corpus.scan(["key", "label"]):
        path = file_of(place, files, shard.name)
        table = read_labels(path, None if probs else columns)
        if probs:
            dense.append(dense_probs(table, len(corpus.classes), path))
            table = table.select(columns)
        rows = rows_of(table, truth, path)
        tables.append(table.append_column("truth", truth["label"].take(rows)))
    table = pa.concat_tables(tables, promote_options="default")
    order = pc.sort_indices(table["key"])
    table = table.take(order)
    column = {name: table[name].to_numpy() for name in table.column_names}
    return Predictions(
        keys=column["key"],
        shards=column["shard"],
        truth=column["truth"],
        predicted=column["label"],
        confidence=column["confidence"],
        probs=np.concatenate(dense)[order.to_numpy()] if probs else None,
    )


def rows_of(table: pa.Table, among: pa.Table, path: str) -> pa.Array:
    """In which rows of a corpus shard the keys of its predictions are.

    Args:
        table: with a key column, unlike any other of its rows.
        among: the shard, with its key column.
        path: of the predictions.

    Raises:
        DamagedFileError: a key is not in the shard, or twice in the predictions.
    """
    rows = pc.index_in(table["key"], value_set=among["key"].combine_chunks()).combine_chunks()
    if rows.null_count:
        key = table["key"].filter(pc.is_null(rows))[0].as_py()
        raise DamagedFileError(path, f"it has the key {key!r}, which its corpus shard lacks")
    if pc.count_distinct(rows).as_py() < len(rows):
        raise DamagedFileError(path, "it has a key twice")
    return rows


def _is_labels(name: str) -> bool:
    return name.endswith(".parquet") and not name.startswith(REJECTED_PREFIX)
