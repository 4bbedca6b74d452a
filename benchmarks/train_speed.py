"""A whole training through ns_ray against the bare step and against timm's training loop.

    pip install -e '.[bench]'
    python benchmarks/train_speed.py                 # efficientnet_b0, 20,000 images of 32 px
    python benchmarks/train_speed.py --size 224      # tf_efficientnet_lite0 from 500 x 375 JPEGs

The same model, batch, noise (RandAugment, shift or crop, flip) and moving average on each side:

- bare: forward, backward and SGD step on one ready batch, nothing else;
- timm: its loader (two workers), transforms, optimizer and ModelEmaV3 in a plain loop,
  channels_last, which is the fastest of its flags on a CPU; the start of workers is not counted;
- ours: `fit` on a quarter labeled and three quarters pseudo-labeled images: everything from the
  call to the published bundle counts, checkpoints too.
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
from typing import Any

from machine import machine, record
from memory import Peaks, cells, watched

NOISE_32 = {"randaugment": "rand-m9-n2-p1.0", "crop_scale": None, "crop_padding": 0.125}
NOISE_224 = {"randaugment": "rand-m9-n2-p1.0", "crop_scale": (0.08, 1.0)}


def _model(name: str, size: int, classes: int) -> Any:
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=classes, drop_rate=0.2, drop_path_rate=0.2)
    return model.train().to(memory_format=torch.channels_last)


def bare(name: str, size: int, batch: int, rounds: int) -> list[float]:
    """Images/s of the step alone, some times."""
    import torch

    from ns_ray.compute import keep_memory

    keep_memory()
    model = _model(name, size, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,))
    rates = []
    steps = max(2, 3000 // batch) if size < 64 else 3
    for _ in range(rounds + 1):
        start = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            torch.autograd.backward(loss)
            optimizer.step()
        rates.append(steps * batch / (time.perf_counter() - start))
    return rates[1:]


def timm_loop(
    name: str, size: int, batch: int, folder: str, images: int, rounds: int
) -> list[float]:
    """Images/s of a plain loop with timm's parts, some times over `images` images."""
    import torch
    from timm.data import ImageDataset, create_loader
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV3

    model = _model(name, size, 10)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.01, momentum=0.9)
    ema = ModelEmaV3(model, decay=0.999)
    small = size < 64
    loader = create_loader(
        ImageDataset(folder),
        input_size=(3, size, size),
        batch_size=batch,
        is_training=True,
        use_prefetcher=False,
        num_workers=2,
        hflip=0.5,
        color_jitter=None,
        auto_augment="rand-m9-n2",
        scale=None if not small else (0.6, 1.0),
        interpolation="bicubic",
        device=torch.device("cpu"),
    )
    rates = []
    for _ in range(rounds):
        done, start = 0, 0.0
        for pixels, labels in loader:
            logits = model(pixels.to(memory_format=torch.channels_last))
            loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            ema.update(model)
            if not start:  # the first batch is not counted: workers start during it
                start = time.perf_counter()
            else:
                done += len(labels)
            if done + batch >= images:
                break
        rates.append(done / (time.perf_counter() - start))
    return rates


def ours(
    name: str, size: int, batch: int, labeled: str, pile: str, epochs: str, work: str
) -> dict[str, Any]:
    """Seconds and images of a training from the call to the published bundle."""
    from ns_ray.compute import cluster, prepare

    prepare()  # before anything imports Ray
    from ns_ray.compute import resources
    from ns_ray.config import (
        LabelConfig,
        ModelConfig,
        ResourcesConfig,
        SelectConfig,
        TrainConfig,
        validate,
    )
    from ns_ray.data import pack
    from ns_ray.labeling import pseudo_label
    from ns_ray.selection import select
    from ns_ray.training import Limits, fit

    config = ResourcesConfig()
    train = validate(
        TrainConfig,
        {
            "epochs": float(epochs),
            "batch_size": batch // 4,
            "unlabeled_ratio": 3,
            "optimizer_args": {"momentum": 0.9},
            "lr": 0.01,
            "checkpoint_seconds": 30,
            "noise": NOISE_32 if size < 64 else NOISE_224,
        },
    )
    model = ModelConfig(model=name, image_size=size, crop_pct=1.0)
    with cluster(config, f"{work}/ray.log") as found:
        workers, pool = resources.workers(config, found), resources.pool(config, found)
        seen = pack(labeled, out=f"{work}/labeled")
        unseen = pack(pile, out=f"{work}/pile", classes=())
        settings: dict[str, Any] = {"workers": workers, "limits": Limits(max_failures=0), "seed": 0}
        one_step = train.model_copy(update={"epochs": train.batch_size / seen.rows})
        start = time.perf_counter()
        teacher = fit(
            model,
            one_step,
            labeled=seen,
            checkpoints=f"{work}/teacher-ckpt",
            out=f"{work}/teacher",
            title="teacher, one step",
            provenance={},
            **settings,
        )
        first_step = time.perf_counter() - start
        labels = pseudo_label(
            LabelConfig(), teacher, unseen, pool=pool, out=f"{work}/labels", title="label"
        )
        chosen = select(
            SelectConfig(threshold=0.0, per_class=None),
            labels,
            seed=0,
            labeled_counts=seen.class_counts,
            previous=None,
            out=f"{work}/selection",
        )
        start = time.perf_counter()
        student = fit(
            model,
            train,
            labeled=seen,
            pseudo=chosen,
            teacher=teacher,
            checkpoints=f"{work}/ckpt",
            out=f"{work}/student",
            title="student",
            provenance={},
            **settings,
        )
        seconds = time.perf_counter() - start
        steps = round(train.epochs * seen.rows / train.batch_size)
    return {
        "rate": steps * batch / seconds,
        "seconds": seconds,
        "images": steps * batch,
        "waited": student.provenance["seconds_waited"],
        "first_step": first_step,
    }


def apart(side: str, *arguments: Any) -> tuple[Any, Peaks]:
    """The result of one side and the memory it took, in a process of its own, with the allocator as
    it comes."""
    command = [sys.executable, "-W", "ignore", __file__, "--side", side, *map(str, arguments)]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
    with watched(process.pid) as peaks:
        said, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return json.loads(said.splitlines()[-1]), peaks


def main() -> None:
    """Measure all sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=32, choices=[32, 224])
    parser.add_argument("--model")
    parser.add_argument("--images", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="add the ratios to history.csv")
    parser.add_argument("--side", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side, *rest = args.side
        numbers = [int(value) if value.isdigit() else value for value in rest]
        sides: dict[str, Callable[..., Any]] = {"bare": bare, "timm": timm_loop, "ours": ours}
        print(json.dumps(sides[side](*numbers)))
        return

    from photos import write

    small = args.size < 64
    name = args.model or ("efficientnet_b0" if small else "tf_efficientnet_lite0")
    images = args.images or (20_000 if small else 1024)
    batch = args.batch or (256 if small else 64)
    epochs = args.epochs or (10.0 if small else 2.0)
    pixels = (args.size, args.size) if small else (500, 375)
    with tempfile.TemporaryDirectory() as work:
        labeled = write(f"{work}/labeled-images", images // 4, size=pixels, classes=10)
        pile = write(f"{work}/pile-images", images - images // 4, size=pixels)
        few = min(images - images // 4, 40 * batch if small else 6 * batch)
        memory: dict[str, Peaks] = {}
        step, memory["bare step"] = apart("bare", name, args.size, batch, args.rounds)
        plain, memory["timm's loop"] = apart("timm", name, args.size, batch, pile, few, args.rounds)
        arguments = (name, args.size, batch, labeled, pile, epochs, work)
        found, memory["ours, whole"] = apart("ours", *arguments)
        step += apart("bare", name, args.size, batch, args.rounds)[0]

    step_rate, plain_rate, rate = statistics.median(step), statistics.median(plain), found["rate"]
    print(
        f"\nMachine: {machine()}; {name} at {args.size} px, batch {batch}, {images:,} images, "
        f"{found['images']:,} seen by ours in {found['seconds']:.0f} s\n"
    )
    print("| | images/s | against the bare step | against timm | memory, MiB |")
    print("|---|---:|---:|---:|---:|")
    for title, rates in (("bare step", step), ("timm's loop", plain), ("ours, whole", [rate])):
        middle = statistics.median(rates)
        spread = f" ({min(rates):.0f} to {max(rates):.0f})" if len(rates) > 1 else ""
        print(
            f"| {title}{spread} | {middle:.0f} | {middle / step_rate:.2f} "
            f"| {middle / plain_rate:.2f} | {cells(memory[title])} |"
        )
    if args.record:
        ratios = {"of the bare step": rate / step_rate, "of timm's loop": rate / plain_rate}
        ratios["waiting"] = found["waited"] / found["seconds"]
        record(f"train_speed --size {args.size} --epochs {epochs:g}", ratios)
    print(
        f"\nours: {found['waited']:.1f} s of it waiting for batches; "
        f"{found['first_step']:.1f} s from the call to the end of a training of one step"
    )


if __name__ == "__main__":
    main()
