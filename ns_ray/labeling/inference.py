"""A packed corpus through a pool of predictors, as one Ray Data job.

    shard names -> predictor actors (read, decode in threads, forward) -> one Parquet file a shard

Each actor reads encoded images from the shard itself, so pixels never leave the process and memory
doesn't grow with the corpus. A file appears whole, under a name that depends on its shard and the
fingerprint only: killed at any moment and rerun, the job does what is missing, and no row is lost
or written twice.
"""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from ns_ray import store
from ns_ray.compute import Pool, tasks
from ns_ray.config import NoiseConfig, PredictConfig
from ns_ray.errors import ImageError, StageError
from ns_ray.log import progress, say
from ns_ray.store import (
    REJECTED,
    REJECTED_PREFIX,
    Corpus,
    Shard,
    labels_table,
    open_corpus,
    part_name,
)

SECONDS_PER_IMAGE = 0.9e-3
"""What labeling takes in one process with a small model, or on a GPU: about a minute for 64 shards.
A large model on CPUs takes ten times as long, here as in an actor."""

TASKS_PER_ACTOR = 20
"""A task takes several shards where there are very many: the driver hands out a limited number of
tasks a second, whatever their size (docs/scale.md)."""


@dataclass(frozen=True)
class Inferred:
    """What an inference job wrote: label files by corpus shard, counts, seconds."""

    files: dict[str, str]
    rejected_files: list[str]
    rows: int
    rejected: int
    fresh: int
    """Rows that this call computed; the others were there from an interrupted one."""
    seconds: float
    waited: float
    engine: dict[str, Any]
    """What ran the model; see `engines.Choice`."""
    start_seconds: float
    """From the call to the first image: starting actors, loading the model."""
    steady_rate: float | None
    """Images/s from the first finished shard on, as long as all actors had work; None with too few
    shards to tell."""


class ShardPredictor:
    """Ray Data actor: names of shards in, files of probabilities out."""

    def __init__(
        self,
        bundle: str,
        corpus: str,
        out: str,
        fingerprint: str,
        top_k: int | None,
        batch_size: int,
        predict: dict[str, Any],
        noise: dict[str, Any] | None,
        threads: int,
        images: int,
        among: list[int] | None,
    ) -> None:
        from ns_ray.model import NoisedPredictor, Predictor

        kind = partial(NoisedPredictor, NoiseConfig(**noise)) if noise else Predictor
        self._predictor = kind(
            bundle,
            config=PredictConfig(**predict),
            threads=threads,
            batch_size=batch_size,
            images=images,
        )
        self._corpus = open_corpus(corpus)
        self._shards = {shard.name: shard for shard in self._corpus.shards}
        self._out, self._fingerprint, self._top_k = out, fingerprint, top_k
        self._among = among

    def __call__(self, batch: dict[str, np.ndarray[Any, Any]]) -> dict[str, list[Any]]:
        """The rows that `each` gives, as columns."""
        columns: dict[str, list[Any]] = {}
        for row in self.each([str(name) for name in batch["shard"]]):
            for column, value in row.items():
                columns.setdefault(column, []).append(value)
        return columns

    def each(self, names: list[str]) -> Iterator[dict[str, Any]]:
        """One row per shard: shard, rows, rejected, waited (seconds), began and ended (seconds
        since the epoch), engine (JSON). The next shard is read while one is predicted."""
        with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
            coming = [reader.submit(tasks.patiently, self._read, names[0])]
            for index, name in enumerate(names):
                began, waited_before = time.time(), self._predictor.waited
                table = coming.pop().result()
                waited = time.time() - began
                if index + 1 < len(names):
                    coming.append(reader.submit(tasks.patiently, self._read, names[index + 1]))
                rows, rejected = self._label(name, table)
                choice = self._predictor.choice
                yield {
                    "shard": name,
                    "rows": rows,
                    "rejected": rejected,
                    "waited": waited + self._predictor.waited - waited_before,
                    "began": began,
                    "ended": time.time(),
                    "engine": json.dumps(choice.facts() if choice else {}),
                }

    def _read(self, name: str) -> pa.Table:
        return self._corpus.read(self._shards[name], ["key", "image", "uri"])

    def _label(self, name: str, table: pa.Table) -> tuple[int, int]:
        """Predict a shard and write its files; the number of good and of bad images."""
        images = [image.as_buffer().to_pybytes() for image in table["image"]]
        results = self._predictor.predict(images)
        good = np.array([not isinstance(result, ImageError) for result in results], dtype=bool)
        kept = table.filter(pa.array(good))
        probs = (
            np.stack([r for r in results if not isinstance(r, ImageError)])
            if good.any()
            else (np.zeros((0, len(self._predictor.classes)), np.float32))
        )
        if self._among is not None:
            probs = among_classes(probs, np.array(self._among))
        keys = kept["key"].combine_chunks()
        labels = labels_table(keys, probs, name, self._top_k)
        bad = [r for r in results if isinstance(r, ImageError)]
        if bad:
            rows = table.filter(pa.array(~good)).select(["key", "uri"]).to_pylist()
            rejected = [
                {**row, "reason": error.reason, "detail": error.detail}
                for row, error in zip(rows, bad, strict=True)
            ]
            path = REJECTED_PREFIX + part_name(name, self._fingerprint)
            table = pa.Table.from_pylist(rejected, REJECTED)
            tasks.patiently(store.write_table, store.join(self._out, path), table)
        path = store.join(self._out, part_name(name, self._fingerprint))
        tasks.patiently(store.write_table, path, labels)
        return len(keys), len(bad)


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


def infer(
    bundle: str,
    corpus: Corpus,
    *,
    out: str,
    fingerprint: str,
    top_k: int | None,
    batch_size: int,
    predict: PredictConfig,
    pool: Pool,
    title: str,
    noise: NoiseConfig | None = None,
    among: list[int] | None = None,
) -> Inferred:
    """Write probabilities for every image of a corpus into `out`, one file per shard.

    Args:
        bundle, corpus: the model and the images.
        fingerprint: of the job's inputs; part of the file names.
        top_k: probabilities kept per row; None keeps all.
        batch_size: images in a forward pass.
        predict: how images go through the model.
        pool: the actors.
        title: name of the progress line.
        noise: for model and images; None, but for an ablation.
        among: write probabilities among these classes only. None: all.

    Raises:
        StageError: actors kept failing; what was written is kept.
    """
    start, called = time.monotonic(), time.time()
    present = set(store.list_files(out))
    names = {shard.name: part_name(shard.name, fingerprint) for shard in corpus.shards}
    missing = [shard for shard in corpus.shards if names[shard.name] not in present]
    arguments = {
        "bundle": bundle,
        "corpus": corpus.path,
        "out": out,
        "fingerprint": fingerprint,
        "top_k": top_k,
        "batch_size": batch_size,
        "predict": predict.model_dump(),
        "noise": noise.model_dump(mode="json") if noise else None,
        "images": sum(shard.rows for shard in missing) // pool.actors,
        "threads": max(1, int(pool.cpus)),
        "among": among,
    }
    fresh, waited = 0, 0.0
    engine: dict[str, Any] = {}
    spans: list[tuple[float, float, int]] = []
    with progress(title, corpus.rows) as meter:
        meter.skip(corpus.rows - sum(shard.rows for shard in missing))
        if missing:
            for row in _run(arguments, missing, pool, title):
                done = int(row["rows"]) + int(row["rejected"])
                fresh, waited = fresh + done, waited + float(row["waited"])
                spans.append((float(row["began"]), float(row["ended"]), done))
                if not engine:
                    engine = json.loads(str(row["engine"]))
                    if engine.get("note"):
                        say(f"{title}: {engine['note']}")
                meter.add(done, waited=float(row["waited"]) / pool.actors)
    present = set(store.list_files(out))
    lost = [name for name in names.values() if name not in present]
    if lost:
        raise StageError(f"{len(lost)} of {len(names)} shards are not in {out}; run it again")
    bad = sorted({REJECTED_PREFIX + file for file in names.values()} & present)
    rejected = sum(store.read_table(store.join(out, file), ["key"]).num_rows for file in bad)
    return Inferred(
        files=names,
        rejected_files=bad,
        rows=corpus.rows - rejected,
        rejected=rejected,
        fresh=fresh,
        seconds=time.monotonic() - start,
        waited=waited,
        engine=engine,
        start_seconds=min((began for began, _, _ in spans), default=called) - called,
        steady_rate=steady_rate(spans, pool.actors),
    )


def steady_rate(spans: list[tuple[float, float, int]], actors: int) -> float | None:
    """Images/s while every actor was at work and none was on its first shard, which includes the
    choice of a runtime.

    Args:
        spans: when each shard began and ended, in seconds, and its images.
        actors: how many worked.
    """
    ends = sorted(end for _, end, _ in spans)
    if len(spans) <= 2 * actors:
        return None
    first, last = ends[actors - 1], ends[-actors]
    done = 0.0
    for began, ended, images in spans:
        inside = min(ended, last) - max(began, first)
        if inside > 0:
            done += images * inside / (ended - began)
    return done / (last - first) if last > first else None


def seconds(images: int) -> float:
    """What labeling takes in one process, the model's loading not counted."""
    return images * SECONDS_PER_IMAGE


def _run(
    arguments: dict[str, Any], shards: list[Shard], pool: Pool, title: str
) -> Iterator[dict[str, Any]]:
    """A row of counts as each shard is finished.

    Raises:
        NsRayError: of ours, as an actor raised it.
        StageError: actors kept failing.
    """
    names = [shard.name for shard in shards]
    if tasks.done_here(seconds(sum(shard.rows for shard in shards)), pool):
        with tasks.translated(title, OSError):
            yield from ShardPredictor(**arguments).each(names)
        return
    import ray.data

    per_task = max(1, len(names) // (TASKS_PER_ACTOR * pool.actors))
    dataset = ray.data.from_items(
        [{"shard": name} for name in names], override_num_blocks=-(-len(names) // per_task)
    )
    labeled = dataset.map_batches(
        ShardPredictor,
        fn_constructor_kwargs=arguments,
        batch_size=per_task,
        compute=ray.data.ActorPoolStrategy(size=min(pool.actors, len(names))),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
    )
    yield from tasks.stream(labeled, title)
