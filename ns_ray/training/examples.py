"""What training reads of a corpus, chunk by chunk: images with their targets. Knows no models."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ns_ray import store
from ns_ray.errors import DataError
from ns_ray.store import Corpus, PseudoLabels, Selection, schema
from ns_ray.training.rows import Chunk, Stream


@dataclass(frozen=True)
class Examples:
    """Images with their targets: labeled ones, or selected pseudo-labeled ones."""

    corpus: Corpus
    selection: Selection | None = None
    labels: PseudoLabels | None = None
    soft: bool = True
    labeled: bool = True
    """Whether every image must have a label; without one its target is null."""

    def stream(self, lanes: int, seed: int) -> Stream:
        """The order in which training sees them."""
        counts = [
            shard.rows if self.selection is None else self.selection.counts.get(shard.name, 0)
            for shard in self.corpus.shards
        ]
        sizes = tuple(shard.bytes for shard in self.corpus.shards)
        return Stream(tuple(counts), sizes, lanes, seed)

    def load(self, chunk: Chunk) -> pa.Table:
        """Permuted rows of a chunk: key, image, target (an int32 class, or float32 [classes]), and
        weight (float32) where the selection has weights.

        Raises:
            DataError: a selected key is missing from the corpus or from the pseudo-labels.
        """
        tables = [self._shard(index) for index in chunk.shards]
        table = pa.concat_tables(tables, promote_options="default")
        order = np.random.default_rng(chunk.seed).permutation(table.num_rows)
        return table.take(pa.array(order)).combine_chunks()

    def _shard(self, index: int) -> pa.Table:
        shard = self.corpus.shards[index]
        if self.selection is None:
            table = self.corpus.read(shard, ["key", "image", "label"])
            if self.labeled and (missing := table["label"].null_count):
                raise DataError(
                    f"{self.corpus.path}: {missing:,} images of {shard.name} have no label; name a "
                    "source whose images all have one"
                )
            return table.rename_columns(["key", "image", "target"])
        weight = ["weight"] if "weights" in self.selection.facts else []
        chosen = self.selection.read(shard.name, ["key", "label", "copies", *weight])
        images = self.corpus.read(shard, ["key", "image"])
        where = _rows_of(chosen["key"], images["key"], f"corpus shard {shard.name}")
        targets: pa.Array = chosen["label"].combine_chunks()
        if self.soft and self.labels is not None:
            probs = self.labels.read(shard.name)
            rows = _rows_of(chosen["key"], probs["key"], f"pseudo-labels of {shard.name}")
            file = store.join(self.labels.path, self.labels.files[shard.name])
            dense = schema.dense_probs(probs.take(rows), len(self.labels.classes), file)
            targets = pa.FixedSizeListArray.from_arrays(pa.array(dense.reshape(-1)), dense.shape[1])
        table = pa.table({"key": chosen["key"], "image": images["image"].take(where)})
        table = table.append_column("target", targets)
        for name in weight:
            table = table.append_column(name, chosen[name])
        copies = chosen["copies"].to_numpy()
        return table.take(pa.array(np.repeat(np.arange(len(copies)), copies)))


def _rows_of(keys: pa.ChunkedArray, among: pa.ChunkedArray, what: str) -> pa.Array:
    rows = pc.index_in(keys, value_set=among.combine_chunks())
    if rows.null_count:
        missing = keys.filter(pc.is_null(rows))[0].as_py()
        raise DataError(f"key {missing!r} is missing from the {what}; label and select again")
    return rows.combine_chunks()
