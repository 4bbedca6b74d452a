"""How the cost of labeling grows: per row, per shard, and with the number of actors.

    python benchmarks/label_scale.py

1. A tiny model on 32-pixel PNGs, one actor, few large or many small shards: least squares gives
   the seconds per row, per shard and per job.
2. The same with 1, 2 and 4 actors of one (logical) CPU each: what sharing this machine's cores
   costs.
3. Simulated accelerators: actors that wait 0.2 s per shard instead of computing, so that only Ray
   and the driver work: shards/s against the ideal, and with several shards per task.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine

from ns_ray.compute import cluster, prepare

prepare()  # before anything imports Ray

from ns_ray import store  # noqa: E402
from ns_ray.compute import Pool  # noqa: E402
from ns_ray.config import LabelConfig, ModelConfig, PredictConfig, ResourcesConfig  # noqa: E402
from ns_ray.data import encode_png, pack  # noqa: E402
from ns_ray.labeling import InferenceJob, actor, inference, inside, pseudo_label  # noqa: E402
from ns_ray.log import Meter  # noqa: E402
from ns_ray.model import build, save  # noqa: E402
from ns_ray.store import Bundle, Corpus, part_name  # noqa: E402

SHARD_SECONDS = 0.2


class Waiting(actor.ShardPredictor):
    """An accelerator that takes `SHARD_SECONDS` per shard and writes what is expected of it."""

    def _label(self, name: str, read: actor.Read) -> tuple[int, int]:
        time.sleep(SHARD_SECONDS)
        path = store.join(self._job.out, part_name(name, self._job.fingerprint))
        store.write_bytes(path, b"")
        return read.table.num_rows, 0


def images(folder: Path, count: int) -> str:
    """PNGs of noise."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        (folder / f"{i:06d}.png").write_bytes(encode_png(pixels))
    return str(folder)


def timed(teacher: Bundle, corpus: Corpus, actors: int, out: str) -> dict[str, Any]:
    """What a labeling says of itself."""
    labels = pseudo_label(
        LabelConfig(),
        teacher,
        corpus,
        pool=Pool(actors, 1.0, 0.0),
        out=out,
        title=f"{len(corpus.shards)} shards, {actors} actors",
        predict=PredictConfig(runtime="torch"),
    )
    return {"seconds": labels.seconds, **labels.facts}


def costs(teacher: Bundle, corpora: list[Corpus], work: str) -> None:
    """Table and fit of part 1."""
    print("\n| rows | shards | seconds after the start | images/s |\n|---:|---:|---:|---:|")
    design, seconds = [], []
    for index, corpus in enumerate(corpora):
        facts = timed(teacher, corpus, 1, f"{work}/one-{index}")
        spent = facts["seconds"] - facts["start_seconds"]
        design.append([corpus.rows, len(corpus.shards), 1])
        seconds.append(spent)
        rate = corpus.rows / spent
        print(f"| {corpus.rows:,} | {len(corpus.shards)} | {spent:.2f} | {rate:,.0f} |")
    row, shard, job = np.linalg.lstsq(np.array(design, float), np.array(seconds), rcond=None)[0]
    print(f"\nfit: {1e6 * row:.0f} us per row, {1e3 * shard:.1f} ms per shard, {job:.2f} s per job")


def sharing(teacher: Bundle, corpus: Corpus, work: str) -> None:
    """Table of part 2."""
    print("\n| actors | images/s, steady | start, s |\n|---:|---:|---:|")
    for actors in (1, 2, 4):
        facts = timed(teacher, corpus, actors, f"{work}/many-{actors}")
        rate = facts["steady_images_per_second"]
        print(f"| {actors} | {rate:,.0f} | {facts['start_seconds']:.1f} |")


def waiting(teacher: Bundle, corpus: Corpus, work: str) -> None:
    """Table of part 3."""
    real = actor.ShardPredictor
    actor.ShardPredictor = Waiting  # type: ignore[misc]
    print("\n| actors | shards per task | shards/s | of the ideal |\n|---:|---:|---:|---:|")
    usual = inference.TASKS_PER_ACTOR
    for actors, per_task in ((1, 1), (4, 1), (16, 1), (16, 4)):
        shards = 20 * actors * per_task if per_task == 1 else 20 * actors
        part = Corpus(**{**vars(corpus), "shards": corpus.shards[:shards]})
        inference.TASKS_PER_ACTOR = max(1, shards // (actors * per_task))
        job = InferenceJob(
            bundle=teacher.path,
            corpus=corpus.path,
            out=f"{work}/wait-{actors}-{per_task}",
            fingerprint="wait",
            batch_size=64,
            predict=PredictConfig(),
        )
        here = inside.Inside(Meter("wait", corpus.rows, "images", None))
        rows = list(inference._run(job, list(part.shards), here, Pool(actors, 0.1, 0.0), "wait"))
        spans = [(row["began"], row["ended"], 1) for row in rows]
        rate = inference.steady_rate(spans, actors) or 0.0
        print(f"| {actors} | {per_task} | {rate:.1f} | {rate * SHARD_SECONDS / actors:.2f} |")
    actor.ShardPredictor = real  # type: ignore[misc]
    inference.TASKS_PER_ACTOR = usual


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=16_384)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = build(ModelConfig(model="test_resnet", image_size=32, crop_pct=1.0), 10)
    with (
        tempfile.TemporaryDirectory() as work,
        cluster(ResourcesConfig(label_actors=4, cpus_per_actor=1.0), f"{work}/ray.log"),
    ):
        classes = [str(i) for i in range(10)]
        teacher = save(model, f"{work}/bundle", classes=classes, fingerprint="t", provenance={})
        folder = images(Path(work) / "images", args.rows)
        half = images(Path(work) / "half", args.rows // 2)
        few = pack(folder, out=f"{work}/few", classes=(), rows_per_shard=args.rows // 16)
        many = pack(folder, out=f"{work}/many", classes=(), rows_per_shard=args.rows // 320)
        less = pack(half, out=f"{work}/less", classes=(), rows_per_shard=args.rows // 32)
        print(f"\nMachine: {machine()}; test_resnet at 32 px")
        costs(teacher, [less, few, many], work)
        sharing(teacher, few, work)
        waiting(teacher, many, work)


if __name__ == "__main__":
    main()
