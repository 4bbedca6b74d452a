"""Seconds from a command to its first pseudo-label and to its first training step, and what the
whole `digits` run costs against its parts.

    python benchmarks/startup.py [--rounds 5]

The first pseudo-labels are there when a file with them is; the shards have 64 images, so that
waiting for the rest of a shard doesn't count. The first training step is the first row of
metrics.jsonl with `train.log_steps=1`, which includes packing the images.

The parts of `digits`, in one process without Ray: each training's steps on a ready batch, making
its batches (decode and noise, spread over all CPUs), and decoding and classifying the images that
are labeled and scored.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from machine import machine


def first(command: list[str], there: Callable[[], bool]) -> float:
    """Seconds from the start of a command until `there()`; the command is then ended."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not there():
        if process.poll() is not None and not there():
            sys.exit(f"{' '.join(command)} ended with {process.returncode}")
        time.sleep(0.02)
    seconds = time.perf_counter() - start
    process.terminate()
    process.wait()
    return seconds


def first_label(bundle: str, corpus: str) -> float:
    """`ns-ray label` on a packed corpus."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "ns_ray", "label", "--bundle", bundle, "--data", corpus]
        found = Path(out, "labels")
        return first([*command, "--out", str(found)], lambda: any(found.glob("*.parquet")))


def first_step() -> float:
    """`python -m ns_ray.run` on the digits."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "ns_ray.run", "--set", f"storage={out}"]
        metrics = Path(out, "digits", "metrics.jsonl")
        return first(
            [*command, "--set", "train.log_steps=1"],
            lambda: metrics.exists() and metrics.stat().st_size > 0,
        )


def whole_digits(storage: str) -> float:
    """Seconds of a whole run from its first log line on."""
    command = [sys.executable, "-u", "-m", "ns_ray.run", "--set", f"storage={storage}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()  # the first corpus is packed: Ray and torch are up
    start = time.perf_counter()
    process.stdout.read()
    process.wait()
    return time.perf_counter() - start


def parts(run: str, threads: int) -> dict[str, float]:
    """Seconds of each part of the digits run, alone."""
    import numpy as np
    import torch
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV3

    from ns_ray.compute import keep_memory
    from ns_ray.config import Images, chosen_in, load_recipe, settle, train_config
    from ns_ray.data import Augment, decode
    from ns_ray.model import Predictor, build_noised, precision_for
    from ns_ray.store import open_corpus
    from ns_ray.training import mixed_loss

    keep_memory()
    torch.set_num_threads(threads)
    corpora = {n: open_corpus(f"{run}/corpora/{n}") for n in ("labeled", "unlabeled", "test")}
    tables = {
        name: [image.as_py() for _, table in corpus.scan(["image"]) for image in table["image"]]
        for name, corpus in corpora.items()
    }
    # What the run chose for its images: steps, noise and the number of teachers.
    chosen = chosen_in(Path(run, "config.yaml").read_bytes())
    counts = Images(len(tables["labeled"]), len(tables["unlabeled"]))
    config, _ = settle(load_recipe("digits", []), counts, chosen)
    teachers = config.label.teachers or 1
    seconds = {"steps": 0.0, "batches": 0.0, "labeling and scoring": 0.0}
    trainings = [(config.teacher, False)] * teachers + [(s, True) for s in config.students]
    for model_config, pseudo in [*trainings, (config.students[-1], False)]:
        train = train_config(config.train, model_config)
        images = train.batch_size * (1 + (int(train.unlabeled_ratio) if pseudo else 0))
        count = round(train.epochs * len(tables["labeled"]) / train.batch_size)
        model, _ = build_noised(model_config, train.noise, 10)
        model = model.train().to(memory_format=torch.channels_last)
        optimizer = create_optimizer_v2(
            model, opt=train.optimizer, lr=train.lr, weight_decay=train.weight_decay
        )
        ema = ModelEmaV3(model, decay=0.98)
        batch = torch.randn(images, 3, 32, 32).to(memory_format=torch.channels_last)
        labels = torch.randint(0, 10, (train.batch_size,))
        rest = images - train.batch_size
        targets = torch.full((rest, 10), 0.1) if rest else None
        half = precision_for("auto", model, torch.device("cpu")) == "bf16"
        for step in range(count + 5):
            if step == 5:
                start = time.perf_counter()
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                logits = model(batch)
            loss, _, _ = mixed_loss(
                logits.float(), labels, targets, weight=7.0, label_smoothing=0.1
            )
            torch.autograd.backward(loss)
            optimizer.step()
            ema.update(model)
        seconds["steps"] += time.perf_counter() - start
        augment = Augment(train.noise, 32)
        start = time.perf_counter()
        some = tables["unlabeled"][:500]
        for data in some:
            augment(decode(data))
        each = (time.perf_counter() - start) / len(some)
        seconds["batches"] += each * images * count / threads
    predictor = Predictor(f"{run}/model", images=1)
    scored = [tables["unlabeled"]] * (teachers + 1) + [tables["test"]] * 4
    predictor.predict(scored[0][:64])
    start = time.perf_counter()
    for images_ in scored:
        results = predictor.predict(images_)
        assert not any(isinstance(r, Exception) for r in results)
    seconds["labeling and scoring"] = time.perf_counter() - start
    assert np.isfinite(list(seconds.values())).all()
    return seconds


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.parts:
        from ns_ray.compute import cpus

        print(json.dumps(parts(args.parts, cpus())))
        return
    from models import imagenet_bundle
    from photos import write

    from ns_ray.compute import cluster, prepare

    prepare()  # before anything imports Ray
    from ns_ray.config import ResourcesConfig
    from ns_ray.data import pack

    with tempfile.TemporaryDirectory() as work:
        bundle = imagenet_bundle("tf_efficientnet_lite0", f"{work}/bundle")
        folder = write(f"{work}/photos", 2048)
        with cluster(ResourcesConfig(), f"{work}/ray.log"):
            corpus = pack(folder, out=f"{work}/corpus", classes=(), rows_per_shard=64).path
        labels = [first_label(bundle, corpus) for _ in range(args.rounds)]
        steps = [first_step() for _ in range(args.rounds)]
        wholes, bares = [], []
        for turn in range(args.rounds):  # in turn: a machine has slower minutes
            storage = f"{work}/{turn}"
            wholes.append(whole_digits(storage))
            command = [sys.executable, __file__, "--parts", f"{storage}/digits"]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            bares.append(json.loads(done.stdout.splitlines()[-1]))

    print(f"\nMachine: {machine()}; median of {args.rounds}\n")
    print("| | seconds |\n|---|---:|")
    for title, values in (("first pseudo-label", labels), ("first training step", steps)):
        spread = f"{min(values):.1f} to {max(values):.1f}"
        print(f"| command to {title} ({spread}) | {statistics.median(values):.1f} |")
    print("\n| digits, after start-up | seconds | against its parts |\n|---|---:|---:|")
    for title in bares[0]:
        print(f"| {title} | {statistics.median(bare[title] for bare in bares):.1f} | |")
    together = [sum(bare.values()) for bare in bares]
    ratios = [whole / parts for whole, parts in zip(wholes, together, strict=True)]
    print(f"| its parts together | {statistics.median(together):.1f} | 1.00 |")
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"| the whole run ({spread}) | {statistics.median(wholes):.1f} ", end="")
    print(f"| {statistics.median(ratios):.2f} |")


if __name__ == "__main__":
    main()
