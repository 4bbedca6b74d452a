"""Pseudo-labeling against the loop that one would write with timm, and against the machine's limit.

    pip install -e '.[bench]'
    python benchmarks/label_speed.py [--model tf_efficientnet_lite0] [--images 4096]

Photographs of about 500 x 375 pixels; ImageNet weights where they can be had. Sides, each in
processes of its own, in turn:

- plain: timm + DataLoader with two workers, channels_last, timm's transform, and bf16 autocast or
  fp32, whichever this processor is measured to do faster (without bf16 instructions, bf16 takes ten
  times as long);
- timm's inference script, plain Ray Data and Daft, as an expert would write them (label_rivals.py);
- ours: `pseudo_label` on a packed corpus through Ray Data, start-up given apart;
- limit: 1 / (1 / forward alone + 1 / decode alone), each on all cores, of the runtime that ours
  chose.

Also prints how often the answers agree with fp32 torch after timm's own transform.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import label_rivals
import numpy as np
from machine import forward_rates, machine, record
from memory import cells, watched


def plain(bundle: str, folder: str, images: int, rounds: int) -> dict[str, Any]:
    """Images/s of the plain loop, some times over `images` images, after a warm-up, in the faster
    precision; and images/s of its forward pass in both."""
    import timm
    import torch
    from timm.data import ImageDataset, create_transform, resolve_model_data_config
    from torch.utils.data import DataLoader, Subset

    model = timm.create_model(f"local-dir:{bundle}", pretrained=True).eval()
    model = model.to(memory_format=torch.channels_last)
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    dataset = ImageDataset(folder, transform=transform)
    forward = forward_rates(model)
    best = max(forward, key=lambda precision: forward[precision])
    rates = []
    for _ in range(rounds):
        loader = DataLoader(Subset(dataset, range(images)), batch_size=64, num_workers=2)
        done, start = 0, 0.0
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=best == "bf16"):
            for batch, _ in loader:
                model(batch.to(memory_format=torch.channels_last)).softmax(dim=1)
                if not start:  # the first batch is not counted: workers start during it
                    start = time.perf_counter()
                else:
                    done += len(batch)
        rates.append(done / (time.perf_counter() - start))
    return {"rates": rates, "precision": best, "forward": forward}


def ours(bundle: str, corpus: str, precision: str) -> dict[str, Any]:
    """What `_DONE.json` of a labeling says, on a local Ray."""
    from ns_ray.compute import cluster, prepare

    prepare()
    from ns_ray.compute import resources
    from ns_ray.config import LabelConfig, PredictConfig, ResourcesConfig
    from ns_ray.labeling import pseudo_label
    from ns_ray.store import open_bundle, open_corpus

    with tempfile.TemporaryDirectory() as out, cluster(ResourcesConfig(), f"{out}/log") as found:
        labels = pseudo_label(
            LabelConfig(),
            open_bundle(bundle),
            open_corpus(corpus),
            pool=resources.pool(ResourcesConfig(), found),
            out=f"{out}/labels",
            title="label",
            predict=PredictConfig.model_validate({"precision": precision}),
        )
        return dict(labels.facts)


def limit(bundle: str, folder: str, precision: str, rounds: int) -> dict[str, Any]:
    """Images/s of decoding alone and of the forward pass alone, some times each."""
    from ns_ray.compute import cpus, keep_memory
    from ns_ray.config import PredictConfig
    from ns_ray.data import eval_pixels
    from ns_ray.model import Predictor

    keep_memory()
    predictor = Predictor(bundle, config=PredictConfig.model_validate({"precision": precision}))
    files = sorted(Path(folder).glob("*.jpg"))[:512]
    data = [file.read_bytes() for file in files]
    decode, forward = [], []
    with ThreadPoolExecutor(cpus()) as pool:
        for _ in range(rounds):
            start = time.perf_counter()
            pixels = list(pool.map(lambda d: eval_pixels(d, predictor.preprocess), data))
            decode.append(len(data) / (time.perf_counter() - start))
    batches = [np.stack(pixels[i : i + 64]) for i in range(0, len(pixels), 64)]
    predictor.forward(batches[0])
    for _ in range(rounds):
        start = time.perf_counter()
        for batch in batches:
            predictor.forward(batch)
        forward.append(len(pixels) / (time.perf_counter() - start))
    return {"decode": decode, "forward": forward}


def agreement(bundle: str, folder: str) -> dict[str, Any]:
    """Top-1 agreement with fp32 torch after timm's transform, and the largest difference."""
    import io

    import timm
    import torch
    from photos import imagenet_photos, jpeg
    from PIL import Image
    from timm.data import create_transform, resolve_model_data_config

    from ns_ray.config import PredictConfig
    from ns_ray.model import Predictor

    model = timm.create_model(f"local-dir:{bundle}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    photos = [data for data, _ in imagenet_photos()]
    known = [Image.open(io.BytesIO(photo)).convert("RGB") for photo in photos]
    objects = [jpeg(seed, known, (500, 375), 95) for seed in range(300)]
    scenes = [f.read_bytes() for f in sorted(Path(folder).glob("*.jpg"))[:300]]
    data = photos + objects + scenes
    expected = []
    with torch.inference_mode():
        for start in range(0, len(data), 50):
            images = [Image.open(io.BytesIO(d)).convert("RGB") for d in data[start : start + 50]]
            batch = torch.stack([transform(image) for image in images])
            expected.append(model(batch).softmax(dim=1).numpy())
    reference = np.concatenate(expected)
    rows = []
    for runtime, precision, fast in [
        ("torch", "fp32", False),
        ("torch", "fp32", True),
        ("openvino", "fp32", False),
        ("openvino", "fp32", True),
        ("openvino", "bf16", False),
        ("openvino", "bf16", True),
    ]:
        config = PredictConfig.model_validate(
            {"runtime": runtime, "precision": precision, "fast_decode": fast}
        )
        found = np.stack([np.asarray(p) for p in Predictor(bundle, config=config).predict(data)])
        same = found.argmax(axis=1) == reference.argmax(axis=1)
        rows.append(
            {
                "name": f"{runtime} {precision}, {'fast' if fast else 'exact'} decode",
                "photos": f"{same[: len(photos)].sum()}/{len(photos)}",
                "objects": float(same[len(photos) : -len(scenes)].mean()),
                "scenes": float(same[-len(scenes) :].mean()),
                "difference": float(np.abs(found - reference).max()),
            }
        )
    confidence = reference.max(axis=1)
    return {
        "rows": rows,
        "objects": float(confidence[len(photos) : -len(scenes)].mean()),
        "scenes": float(confidence[-len(scenes) :].mean()),
    }


def apart(side: str, *arguments: str) -> dict[str, Any]:
    """The result of one side, in a process of its own, with the allocator as it comes (ns_ray sets
    its own: that is part of what is measured); `memory` are its peaks."""
    command = [sys.executable, "-W", "ignore", __file__, "--side", side, *arguments]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
    with watched(process.pid) as peaks:
        said, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    result: dict[str, Any] = json.loads(said.splitlines()[-1])
    return {**result, "memory": peaks}


def highest(runs: list[dict[str, Any]]) -> str:
    """The memory of the run that took most."""
    return cells(max((run["memory"] for run in runs), key=lambda peaks: float(peaks["all"])))


RATES = ("decode", "forward")
RIVALS = {"timm": "timm's inference script", "ray_data": "Ray Data", "daft": "Daft"}


def main() -> None:
    """Measure all sides and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--plain-images", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="add the ratios to history.csv")
    parser.add_argument("--side", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side, *rest = args.side
        sides: dict[str, Callable[..., Any]] = {
            "plain": plain,
            "ours": ours,
            "limit": limit,
            "agreement": agreement,
            "timm": label_rivals.timm_inference,
            "ray_data": label_rivals.ray_data,
            "daft": label_rivals.daft,
        }
        numbers = [int(value) if value.isdigit() else value for value in rest]
        print(json.dumps(sides[side](*numbers)))
        return

    from models import imagenet_bundle
    from photos import write

    from ns_ray.compute import cluster, prepare

    prepare()  # before anything imports Ray
    from ns_ray.config import ResourcesConfig
    from ns_ray.data import pack

    with tempfile.TemporaryDirectory() as work:
        folder = write(f"{work}/photos", args.images)
        bundle = imagenet_bundle(args.model, f"{work}/bundle")
        rows = min(1024, args.images // 8)  # the steady rate is told from shards after the first
        with cluster(ResourcesConfig(), f"{work}/ray.log"):
            corpus = pack(folder, out=f"{work}/corpus", classes=(), rows_per_shard=rows).path
        few, rounds = str(args.plain_images), str(args.rounds)
        # In turn, and the limit on both sides of ours: shared machines change their speed.
        found, limits = {}, {}
        loops: list[dict[str, Any]] = []
        rivals: dict[str, list[dict[str, Any]]] = {name: [] for name in RIVALS}
        for precision in ("auto", "fp32"):
            for name, runs in rivals.items() if args.rounds > 1 or not loops else ():
                runs.append(apart(name, bundle, folder if name == "timm" else corpus))
            loops.append(apart("plain", bundle, folder, few, rounds))
            before = apart("limit", bundle, folder, precision, rounds)
            found[precision] = apart("ours", bundle, corpus, precision)
            after = apart("limit", bundle, folder, precision, rounds)
            limits[precision] = {k: statistics.median(before[k] + after[k]) for k in RATES}
            if found[precision]["engine"]["precision"] == "fp32":
                break
        agree = apart("agreement", bundle, folder)

    rates = [rate for loop in loops for rate in loop["rates"]]
    base = statistics.median(rates)
    used = " or ".join(sorted({loop["precision"] for loop in loops}))
    print(f"\nMachine: {machine()}; {args.model}, {args.images:,} JPEGs of about 500 x 375\n")
    print("| | images/s | against plain | against the limit | memory, MiB |")
    print("|---|---:|---:|---:|---:|")
    spread = f"{min(rates):.0f} to {max(rates):.0f}"
    title = f"plain: timm + DataLoader, {used}, channels_last ({spread})"
    print(f"| {title} | {base:.0f} | 1.0 | | {highest(loops)} |")
    for rival, runs in rivals.items():
        each = [side["rate"] for side in runs]
        middle, start = statistics.mean(each), statistics.mean(side["start"] for side in runs)
        spread = f"{min(each):.0f} to {max(each):.0f}; {start:.0f} s to its first batch"
        title = f"{RIVALS[rival]} ({spread})"
        print(f"| {title} | {middle:.0f} | {middle / base:.1f} | | {highest(runs)} |")
    ratios: dict[str, float] = {}
    for precision, facts in found.items():
        both = limits[precision]
        top = 1 / (1 / both["forward"] + 1 / both["decode"])
        steady = facts["steady_images_per_second"]
        name = f"{facts['engine']['runtime']} {facts['engine']['precision']}"
        rate = f"{steady:.0f} | {steady / base:.1f} | {steady / top:.2f}"
        print(f"| ours, {name} | {rate} | {highest([facts])} |")
        of = {"the limit": top, "a timm loop": base}
        of |= {RIVALS[n]: statistics.mean(side["rate"] for side in r) for n, r in rivals.items()}
        ratios |= {f"labeling {name}, of {side}": steady / rate for side, rate in of.items()}
        print(
            f"| limit, {name}: forward {both['forward']:.0f}, decode {both['decode']:.0f} "
            f"| {top:.0f} | {top / base:.1f} | 1.00 | |"
        )
    if args.record:
        record(f"label_speed --model {args.model} --images {args.images}", ratios)
    for loop in loops:
        alone = ", ".join(f"{p} {rate:.0f}" for p, rate in loop["forward"].items())
        print(f"\nplain, forward pass alone in images/s: {alone}")
    for facts in found.values():
        print(
            f"\nours, {facts['engine']['precision']}: {facts['start_seconds']:.1f} s from the call "
            f"to the first image, {facts['images_per_second']:.0f} images/s with it"
        )
    print(
        "\nTop-1 agreement with fp32 torch after timm's transform: on foolbox's 20 ImageNet "
        f"photos, on 300 crops of them (mean confidence {agree['objects']:.2f}), and on 300 crops "
        f"of scenes that are no ImageNet class (mean confidence {agree['scenes']:.2f}):\n"
    )
    print("| | photos | crops | scenes | largest difference |\n|---|---:|---:|---:|---:|")
    for row in agree["rows"]:
        print(
            f"| {row['name']} | {row['photos']} | {row['objects']:.1%} | {row['scenes']:.1%} "
            f"| {row['difference']:.3f} |"
        )


if __name__ == "__main__":
    main()
