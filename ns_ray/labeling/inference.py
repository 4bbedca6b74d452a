"""A packed corpus through a pool of predictors, as one Ray Data job.

    shard names -> predictor actors (read, decode in threads, forward) -> one Parquet file a shard

A file appears whole, under a name that depends on its shard and the fingerprint only: killed at any
moment and rerun, the job does what is missing, and no row is lost or written twice.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ns_ray import store
from ns_ray.compute import Pool, tasks, translated
from ns_ray.errors import StageError
from ns_ray.labeling import actor
from ns_ray.labeling.inside import Inside, noted
from ns_ray.labeling.job import InferenceJob
from ns_ray.log import progress, say
from ns_ray.store import REJECTED_PREFIX, Shard, open_corpus, part_name

SECONDS_PER_IMAGE = 0.9e-3
"""What labeling takes in one process with a small model, or on a GPU: about a minute for 64 shards.
A large model on CPUs takes ten times as long, here as in an actor."""

TASKS_PER_ACTOR = 20
"""A task takes several shards where there are very many: the driver hands out a limited number of
tasks a second, whatever their size (docs/scale.md)."""


@dataclass(frozen=True)
class Inferred:
    """What an inference job wrote: files, counts, seconds."""

    files: list[str]
    """Of labels, then of rejected images."""
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

    @property
    def images_per_second(self) -> float:
        """Of those that this call computed."""
        return round(self.fresh / max(self.seconds, 1e-9), 1)


def infer(job: InferenceJob, *, pool: Pool, title: str) -> Inferred:
    """Write probabilities for every image of a corpus, one file per shard.

    Args:
        job: what goes in, and what is written of it.
        pool: the actors.
        title: name of the progress line.

    Raises:
        StageError: actors kept failing; what was written is kept.
    """
    start = time.monotonic()
    corpus = open_corpus(job.corpus)
    names = {shard.name: part_name(shard.name, job.fingerprint) for shard in corpus.shards}
    present = set(store.list_files(job.out))
    missing = [shard for shard in corpus.shards if names[shard.name] not in present]
    fresh, waited = 0, 0.0
    engine: dict[str, Any] = {}
    decoding = ""
    spans: list[tuple[float, float, int]] = []
    with progress(title, corpus.rows) as meter:
        meter.skip(corpus.rows - sum(shard.rows for shard in missing))
        if missing:
            inside = Inside(meter)
            for row in _run(job, missing, inside, pool, title):
                inside.end(str(row["shard"]))
                done = int(row["rows"]) + int(row["rejected"])
                fresh, waited = fresh + done, waited + float(row["waited"])
                spans.append(span(row, time.monotonic()))
                first, engine = not engine, json.loads(str(row["engine"]))
                if first and engine.get("note"):
                    say(f"{title}: {engine['note']}")
                if row["decoding"] and row["decoding"] != decoding:
                    decoding = str(row["decoding"])
                    say(f"{title}: {decoding}")
                meter.add(done, waited=float(row["waited"]) / pool.actors)
    present = set(store.list_files(job.out))
    lost = [name for name in names.values() if name not in present]
    if lost:
        raise StageError(f"{len(lost)} of {len(names)} shards are not in {job.out}; run it again")
    bad = sorted({REJECTED_PREFIX + file for file in names.values()} & present)
    rejected = sum(store.read_table(store.join(job.out, file), ["key"]).num_rows for file in bad)
    return Inferred(
        files=[*names.values(), *bad],
        rows=corpus.rows - rejected,
        rejected=rejected,
        fresh=fresh,
        seconds=time.monotonic() - start,
        waited=waited,
        engine=engine,
        start_seconds=max(0.0, min((began for began, _, _ in spans), default=start) - start),
        steady_rate=steady_rate(spans, pool.actors),
    )


def span(row: Mapping[str, Any], now: float) -> tuple[float, float, int]:
    """When a shard began and ended by the clock of this process, and its images. The actors' clocks
    tell how long ago that was: those of two machines may be hours apart.

    Args:
        row: of `ShardPredictor.each`.
        now: seconds, when the row has come: a moment after it was sent.
    """
    ahead = float(row["now"]) - now
    images = int(row["rows"]) + int(row["rejected"])
    return float(row["began"]) - ahead, float(row["ended"]) - ahead, images


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


def seconds(images: int, models: int = 1) -> float:
    """What labeling takes in one process, the models' loading not counted."""
    return images * models * SECONDS_PER_IMAGE


def _run(
    job: InferenceJob, shards: list[Shard], inside: Inside, pool: Pool, title: str
) -> Iterator[dict[str, Any]]:
    """A row of counts as each shard is finished.

    Raises:
        NsRayError: of ours, as an actor raised it.
        StageError: actors kept failing.
    """
    names, images = [shard.name for shard in shards], sum(shard.rows for shard in shards)
    arguments: dict[str, Any] = {
        "job": job,
        "threads": max(1, int(pool.cpus)),
        "images": images // pool.actors,
        "device": pool.device,
        "spare": pool.spare,
    }
    if tasks.done_here(seconds(images, len(job.bundles)), pool):
        with translated(title, OSError):
            yield from actor.ShardPredictor(**arguments, tell=inside.tell).each(names)
        return
    import ray.data

    per_task = max(1, len(names) // (TASKS_PER_ACTOR * pool.actors))
    dataset = ray.data.from_items(
        [{"shard": name} for name in names], override_num_blocks=-(-len(names) // per_task)
    )
    with noted(inside, pool.actors) as tell:
        labeled = dataset.map_batches(
            actor.ShardPredictor,
            fn_constructor_kwargs={**arguments, "tell": tell},
            batch_size=per_task,
            compute=ray.data.ActorPoolStrategy(
                size=min(pool.actors, len(names)),
                # One reads and decodes ahead, where the other has the model.
                max_concurrent_calls_per_actor=2 if pool.gpus or job.decode == "apart" else None,
            ),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus or None,
        )
        yield from tasks.stream(labeled, title, cpus=pool.cpus, gpus=pool.gpus)
