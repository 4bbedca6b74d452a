"""Labeling and training on one CUDA device, against timm's loop and against the device's own limit.

    pip install -e '.[bench]'
    python benchmarks/gpu.py [--out gpu.json] [--models resnet50 ...] [--images 12288]

Photographs of about 500 x 375 pixels, models without trained weights, bf16 and channels_last on
all sides, each side in a process of its own:

- labeling: forward passes alone (batches already on the device, eager and compiled), decoding alone
  (all cores), copying alone, timm's loop with its best flags (a loader process per core, pinned
  memory, compiled, or eager where that is faster), and `pseudo_label` on a packed corpus;
- training resnet50 at 224 px: the bare step on one ready batch, timm's loop (its loader with
  prefetcher, a process per core), and `fit` from the call to the published bundle.

Prints tables and writes all figures, with the name of the card, as JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from machine import machine

MODELS = ("resnet50", "efficientnet_b0", "vit_small_patch16_224")
BATCH = 256


def _bf16() -> Any:
    import torch

    return torch.autocast("cuda", torch.bfloat16)


def _seconds(work: Callable[[], object], runs: int) -> float:
    """Of one run, all of them queued before they are waited for."""
    import torch

    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(runs):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / runs


def card() -> dict[str, Any]:
    """The device, and what drives it."""
    import torch

    return {
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "machine": machine(),
    }


def bundle(name: str, out: str) -> str:
    """An untrained model of 1000 classes, as a run leaves it."""
    import timm
    import torch

    from ns_ray.model import save

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=1000).eval()
    classes = [f"class {n}" for n in range(1000)]
    return save(model, out, classes=classes, fingerprint=name, provenance={}).path


def forward(name: str) -> dict[str, float]:
    """Images/s of forward passes of a batch that is on the device; of copies to it, too."""
    import timm
    import torch

    model = timm.create_model(name).eval().cuda().to(memory_format=torch.channels_last)
    images = torch.randn(BATCH, 3, 224, 224, device="cuda")
    images = images.to(memory_format=torch.channels_last)
    pinned = torch.zeros(BATCH, 224, 224, 3, dtype=torch.uint8).pin_memory()
    found = {}
    with torch.inference_mode(), _bf16():
        for kind in ("eager", "compiled"):
            run = torch.compile(model) if kind == "compiled" else model
            work = partial(run, images)
            _seconds(work, 5)
            rates = [BATCH / _seconds(work, 20) for _ in range(3)]
            found[kind] = statistics.median(rates)
    copy = _seconds(lambda: pinned.to("cuda", non_blocking=True), 20)
    return {**found, "copy": BATCH / copy}


def decode(folder: str) -> dict[str, float]:
    """Images/s of decoding to 224 px as the predictor does, with some numbers of threads, and with
    as many processes as there are CPUs."""
    from ns_ray.compute import cpus, keep_memory
    from ns_ray.data import Preprocess, eval_pixels

    keep_memory()
    spec = Preprocess(224, 0.875, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    data = [file.read_bytes() for file in sorted(Path(folder).glob("*.jpg"))[:2048]]
    found = {}
    for threads in sorted({1, max(1, cpus() // 2), cpus(), 2 * cpus()}):
        some = data[: min(len(data), 256 * threads)]
        with ThreadPoolExecutor(threads) as pool:
            start = time.perf_counter()
            for _ in pool.map(lambda d: eval_pixels(d, spec), some):
                pass
            found[str(threads)] = len(some) / (time.perf_counter() - start)
    batches = [data[at : at + 64] for at in range(0, len(data), 64)]
    with ProcessPoolExecutor(cpus(), get_context("spawn")) as processes:
        for _ in range(2):  # the first time they start and import
            start = time.perf_counter()
            list(processes.map(_decoded, batches))
        found["processes"] = len(data) / (time.perf_counter() - start)
    return found


def _decoded(images: list[bytes]) -> int:
    from ns_ray.data import Preprocess, decode_batch

    spec = Preprocess(224, 0.875, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return decode_batch(images, spec, True).images


def timm_labels(name: str, folder: str, compiled: str) -> dict[str, float]:
    """Images/s of the loop that one would write with timm, twice over the folder. The model is
    warm: batches that are made while it compiles would not count."""
    import timm
    import torch
    from timm.data import ImageDataset, create_transform, resolve_model_data_config
    from torch.utils.data import DataLoader

    from ns_ray.compute import cpus

    torch.set_num_threads(1)
    model = timm.create_model(name).eval().cuda().to(memory_format=torch.channels_last)
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    run = torch.compile(model) if compiled == "compiled" else model
    loader = DataLoader(
        ImageDataset(folder, transform=transform),
        batch_size=BATCH,
        num_workers=cpus(),
        pin_memory=True,
        drop_last=True,
        persistent_workers=True,
    )
    warm = torch.randn(BATCH, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
    done, start = 0, 0.0
    with torch.inference_mode(), _bf16():
        _seconds(lambda: run(warm), 5)
        for _ in range(2):
            for images, _ in loader:
                images = images.to("cuda", non_blocking=True).to(memory_format=torch.channels_last)
                run(images).softmax(dim=1).cpu()
                if start:
                    done += len(images)
                else:  # the first batch is not counted: workers start during it
                    start = time.perf_counter()
    return {"rate": done / (time.perf_counter() - start)}


def our_labels(folder: str, corpus: str, where: Literal["auto", "with_model"]) -> dict[str, Any]:
    """What `_DONE.json` of a labeling says, and the seconds of the call."""
    from ns_ray.compute import cluster, prepare

    prepare()
    from ns_ray.compute import resources
    from ns_ray.config import LabelConfig, ResourcesConfig
    from ns_ray.labeling import pseudo_label
    from ns_ray.store import open_bundle, open_corpus

    config = ResourcesConfig()
    with tempfile.TemporaryDirectory() as out, cluster(config, f"{out}/log") as found:
        start = time.perf_counter()
        labels = pseudo_label(
            LabelConfig(decode=where),
            open_bundle(folder),
            open_corpus(corpus),
            pool=resources.pool(config, found),
            out=f"{out}/labels",
            title="label",
        )
        return {**labels.facts, "call_seconds": time.perf_counter() - start}


def _training_model(name: str) -> Any:
    import timm
    import torch

    model = timm.create_model(name, num_classes=10, drop_path_rate=0.1)
    return model.train().cuda().to(memory_format=torch.channels_last)


def _step(model: Any, optimizer: Any, images: Any, labels: Any) -> None:
    import torch

    optimizer.zero_grad(set_to_none=True)
    with _bf16():
        logits = model(images)
    loss = torch.nn.functional.cross_entropy(logits.float(), labels, label_smoothing=0.1)
    torch.autograd.backward(loss)
    optimizer.step()


def bare(name: str) -> list[float]:
    """Images/s of the step alone, three times."""
    import torch

    model = _training_model(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
    images = torch.randn(BATCH, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH,), device="cuda")
    _seconds(lambda: _step(model, optimizer, images, labels), 5)
    return [BATCH / _seconds(lambda: _step(model, optimizer, images, labels), 10) for _ in range(3)]


def timm_training(name: str, folder: str, images: int) -> float:
    """Images/s of a plain loop with timm's parts; the first batch is not counted."""
    import torch
    from timm.data import ImageDataset, create_loader
    from timm.utils import ModelEmaV3

    from ns_ray.compute import cpus

    torch.set_num_threads(1)
    model = _training_model(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
    ema = ModelEmaV3(model, decay=0.999)
    loader = create_loader(
        ImageDataset(folder),
        input_size=(3, 224, 224),
        batch_size=BATCH,
        is_training=True,
        use_prefetcher=True,
        num_workers=cpus(),
        hflip=0.5,
        color_jitter=None,
        auto_augment="rand-m9-n2",
        interpolation="bicubic",
        pin_memory=True,
        device=torch.device("cuda"),
    )
    warm = torch.randn(BATCH, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
    classes = torch.randint(0, 10, (BATCH,), device="cuda")
    _seconds(lambda: _step(model, optimizer, warm, classes), 5)
    done, start = 0, 0.0

    def batches() -> Iterator[Any]:
        while True:
            yield from loader

    for pixels, labels in batches():
        _step(model, optimizer, pixels.to(memory_format=torch.channels_last), labels)
        ema.update(model)
        if not start:
            start = time.perf_counter()
            continue
        done += len(labels)
        if done >= images:
            break
    torch.cuda.synchronize()
    return done / (time.perf_counter() - start)


def our_training(name: str, labeled: str, pile: str, epochs: str, work: str) -> dict[str, Any]:
    """Seconds and images of a training from the call to the published bundle."""
    from train_speed import ours

    return dict(ours(name, 224, BATCH, labeled, pile, epochs, work))


SIDES: dict[str, Callable[..., Any]] = {
    "card": card,
    "bundle": bundle,
    "forward": forward,
    "decode": decode,
    "timm_labels": timm_labels,
    "our_labels": our_labels,
    "bare": bare,
    "timm_training": timm_training,
    "our_training": our_training,
}


def apart(side: str, *arguments: Any) -> Any:
    """The result of one side, in a process of its own, with the allocator as it comes."""
    command = [sys.executable, "-W", "ignore", __file__, "--side", side, *map(str, arguments)]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    start = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environ)
    print(f"[{time.perf_counter() - start:5.1f} s] {side} {arguments[0] if arguments else ''}")
    return json.loads(done.stdout.splitlines()[-1])


def label(name: str, photos: str, corpus: str, decoding: float, work: str) -> dict[str, Any]:
    """All sides of labeling with one model."""
    folder = apart("bundle", name, f"{work}/{name}")
    alone = apart("forward", name)
    kind = "compiled" if alone["compiled"] > alone["eager"] else "eager"
    plain = apart("timm_labels", name, photos, kind)["rate"]
    rates, sides = {}, {}
    for where in ("with_model", "auto"):
        facts = apart("our_labels", folder, corpus, where)
        del facts["classes"]
        rates[where] = facts["steady_images_per_second"] or facts["images_per_second"]
        sides[where] = facts
    ours = rates["auto"]
    limit = min(alone["eager"], decoding)
    print(
        f"| {name} | {alone['eager']:.0f} | {alone['compiled']:.0f} | {decoding:.0f} "
        f"| {plain:.0f} ({kind}) | {rates['with_model']:.0f} | {ours:.0f} "
        f"| {ours / plain:.2f} | {ours / limit:.2f} |"
    )
    return {"forward": alone, "timm": plain, "timm_kind": kind, "ours": sides}


def train(labeled: str, pile: str, work: str, images: int) -> dict[str, Any]:
    """All sides of training resnet50."""
    step = statistics.median(apart("bare", "resnet50"))
    epochs = 12 * BATCH * 4 / images  # in quarters of the images, which are labeled: 48 steps
    found = apart("our_training", "resnet50", labeled, pile, epochs, work)
    plain = apart("timm_training", "resnet50", pile, 40 * BATCH)
    rate = found["rate"]
    print(f"| resnet50 | {step:.0f} | {plain:.0f} | {rate:.0f} | {rate / plain:.2f} |")
    return {"bare": step, "timm": plain, "ours": found}


def main() -> None:
    """Measure all sides and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--images", type=int, default=12_288)
    parser.add_argument("--parts", nargs="+", default=["label", "train"])
    parser.add_argument("--out", default="gpu.json")
    parser.add_argument("--side", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side, *rest = args.side
        values = [int(value) if value.isdigit() else value for value in rest]
        print(json.dumps(SIDES[side](*values)))
        return

    from photos import write

    from ns_ray.compute import cluster, prepare

    prepare()  # before anything imports Ray
    from ns_ray.config import ResourcesConfig
    from ns_ray.data import pack

    found: dict[str, Any] = apart("card")
    print(found)

    def keep(**facts: Any) -> None:
        found.update(facts)
        Path(args.out).write_text(json.dumps(found, indent=2))

    with tempfile.TemporaryDirectory() as work:
        start = time.perf_counter()
        labeled = write(f"{work}/labeled", args.images // 4, classes=10)
        pile = write(f"{work}/pile", args.images)
        with cluster(ResourcesConfig(), f"{work}/ray.log"):
            corpus = pack(pile, out=f"{work}/corpus", classes=(), rows_per_shard=512).path
        print(f"[{time.perf_counter() - start:5.1f} s] photographs, packed")
        if "label" in args.parts:
            decoding = apart("decode", pile)
            keep(decode=decoding)
            print(
                "| | forward | compiled | decode | timm | ours, decoding beside | ours "
                "| against timm | of the limit |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|"
            )
            for name in args.models:
                keep(**{name: label(name, pile, corpus, max(decoding.values()), work)})
        if "train" in args.parts:
            print("| | bare step | timm | ours, whole | against timm |\n|---|---:|---:|---:|---:|")
            keep(train=train(labeled, pile, work, args.images))


if __name__ == "__main__":
    main()
