"""What a model says about labeled images, as its scoring left it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ns_ray import store
from ns_ray.store import (
    REJECTED_PREFIX,
    Corpus,
)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Predictions:
    """What a model says about a labeled corpus, sorted by key; all columns have the same length.

    Attributes:
        keys: keys, strings.
        shards: corpus shard of each image, strings.
        truth: index of its class.
        predicted: index of the predicted class.
        confidence: of the prediction, a fraction.
    """

    keys: Array
    shards: Array
    truth: Array
    predicted: Array
    confidence: Array

    @property
    def correct(self) -> Array:
        """Whether the model is right about each."""
        return np.asarray(self.predicted == self.truth)


def read_predictions(place: str, corpus: Corpus | None) -> Predictions | None:
    """What a model said about the images of a corpus; None where one of the two is gone.

    Args:
        place: folder or URI of the predictions.
        corpus: what was predicted.
    """
    done = store.published(place)
    if done is None or corpus is None:
        return None
    tables = []
    files = {name.split(".", 1)[0]: name for name in done.files if _is_labels(name)}
    for shard, truth in corpus.scan(["key", "label"]):
        table = store.read_table(
            store.join(place, files[shard.name]), ["key", "label", "confidence", "shard"]
        )
        rows = pc.index_in(table["key"], value_set=truth["key"].combine_chunks())
        tables.append(table.append_column("truth", truth["label"].take(rows)))
    table = pa.concat_tables(tables).sort_by("key")
    column = {name: table[name].to_numpy() for name in table.column_names}
    return Predictions(
        keys=column["key"],
        shards=column["shard"],
        truth=column["truth"],
        predicted=column["label"],
        confidence=column["confidence"],
    )


def _is_labels(name: str) -> bool:
    return name.endswith(".parquet") and not name.startswith(REJECTED_PREFIX)


def matched(a: Array, b: Array) -> tuple[Array, Array]:
    """Positions in each of two arrays of unique keys of those that both hold."""
    at_a = pc.index_in(pa.array(b), value_set=pa.array(a)).to_numpy(zero_copy_only=False)
    at_b = np.flatnonzero(~np.isnan(at_a.astype(np.float64)))
    return at_a[at_b].astype(np.int64), at_b
