"""The other sides of label_speed.py: how one would label a pile without ns_ray.

Each is a whole labeling with probabilities written to disk, given the model that timm opens from a
folder, channels_last, in the precision that this processor is faster with; all CPUs run the forward
pass. Each says its images/s from the end of its first batch on, and the seconds until then.
"""

import json
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from machine import forward_rates

from ns_ray.compute import cpus

BATCH = 64


class Model:
    """uint8 pixels in, probabilities out; the model as an expert would set it up."""

    def __init__(self, bundle: str) -> None:
        import timm
        import torch
        from timm.data import resolve_model_data_config

        torch.set_num_threads(cpus())
        model = timm.create_model(f"local-dir:{bundle}", pretrained=True).eval()
        self.model = model.to(memory_format=torch.channels_last)
        forward = forward_rates(self.model)
        self.bf16 = forward["bf16"] > forward["fp32"]
        config = resolve_model_data_config(model)
        self.mean = 255 * torch.tensor(config["mean"]).view(1, 3, 1, 1)
        self.std = 255 * torch.tensor(config["std"]).view(1, 3, 1, 1)

    def __call__(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """uint8 [n, size, size, 3] -> float32 [n, classes]."""
        import torch

        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            images = torch.tensor(pixels).permute(0, 3, 1, 2).float()
            images = ((images - self.mean) / self.std).to(memory_format=torch.channels_last)
            probs: np.ndarray[Any, Any] = self.model(images).float().softmax(dim=1).numpy()
        return probs


def square(bundle: str) -> Callable[[bytes], np.ndarray[Any, Any]]:
    """timm's evaluation transform up to its last step: uint8 [size, size, 3]."""
    import timm
    from PIL import Image
    from timm.data import create_transform, resolve_model_data_config

    config = resolve_model_data_config(timm.create_model(f"local-dir:{bundle}", pretrained=False))
    resize_and_crop = create_transform(**config, is_training=False).transforms[:2]

    def pixels(data: bytes) -> np.ndarray[Any, Any]:
        image = Image.open(BytesIO(data)).convert("RGB")
        for step in resize_and_crop:
            image = step(image)
        return np.asarray(image)

    return pixels


def rate(ends: list[float], counts: list[int], began: float) -> dict[str, Any]:
    """Images/s after the first batch, and seconds until it ended.

    Args:
        ends: of each batch, by a clock that all processes share.
        counts: images of each batch.
        began: by the same clock.
    """
    order = np.argsort(ends)
    first, last = ends[order[0]], ends[order[-1]]
    done = sum(counts) - counts[order[0]]
    return {"rate": done / (last - first), "start": first - began}


def timm_inference(bundle: str, folder: str) -> dict[str, Any]:
    """What timm's inference script does: its dataset, loader and transforms, a loop, a table."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import timm
    import torch
    from timm.data import create_dataset, create_loader, resolve_model_data_config

    began = time.monotonic()
    model = timm.create_model(f"local-dir:{bundle}", pretrained=True).eval()
    model = model.to(memory_format=torch.channels_last)
    forward = forward_rates(model)
    bf16 = forward["bf16"] > forward["fp32"]
    config = resolve_model_data_config(model)
    loader = create_loader(
        create_dataset("", root=folder),
        batch_size=BATCH,
        use_prefetcher=False,
        num_workers=cpus(),
        device=torch.device("cpu"),
        **{k: config[k] for k in ("input_size", "interpolation", "mean", "std", "crop_pct")},
    )
    probs, ends, counts = [], [], []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for images, _ in loader:
            logits = model(images.contiguous(memory_format=torch.channels_last))
            probs.append(logits.float().softmax(dim=1).numpy())
            ends.append(time.monotonic())
            counts.append(len(images))
    with tempfile.TemporaryDirectory() as out:
        names = loader.dataset.filenames(basename=True)
        table = pa.table({"name": names, "probs": list(np.concatenate(probs))})
        pq.write_table(table, f"{out}/results.parquet")
    return rate(ends, counts, began)


def ray_data(bundle: str, corpus: str) -> dict[str, Any]:
    """Ray Data: Parquet in, actors that decode, one with the model, Parquet out."""
    import pyarrow.parquet as pq
    import ray

    ray.init(num_cpus=2 * cpus(), include_dashboard=False, log_to_driver=False)
    began = time.monotonic()

    class Decode:
        def __init__(self) -> None:
            self.pixels = square(bundle)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            pixels = np.stack([self.pixels(data) for data in batch["image"]])
            return {"key": batch["key"], "pixels": pixels}

    class Predict:
        def __init__(self) -> None:
            self.model = Model(bundle)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            probs = self.model(batch["pixels"])
            now = np.full(len(probs), time.monotonic())
            return {"key": batch["key"], "probs": probs, "now": now}

    shards = sorted(str(file) for file in Path(corpus).glob("shard-*"))
    workers = cpus()
    with tempfile.TemporaryDirectory() as out:
        pile = ray.data.read_parquet(shards, columns=["key", "image"])
        pile = pile.map_batches(
            Decode, batch_size=BATCH, compute=ray.data.ActorPoolStrategy(size=workers), num_cpus=1
        )
        pile = pile.map_batches(
            Predict, batch_size=BATCH, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=1
        )
        pile.write_parquet(out)
        files = sorted(Path(out).glob("*.parquet"))
        times = np.concatenate([pq.read_table(f, columns=["now"])["now"].to_numpy() for f in files])
    ray.shutdown()
    ends, counts = np.unique(times, return_counts=True)
    return rate(ends.tolist(), counts.tolist(), began)


def daft(bundle: str, corpus: str) -> dict[str, Any]:
    """Daft: Parquet in, images decoded and resized in Rust, a class with the model, Parquet out. It
    has no center crop: whole images become squares, which is less work than timm's transform."""
    import daft
    import pyarrow.parquet as pq
    from daft import DataType, Series, col

    size = json.loads(Path(f"{bundle}/config.json").read_text())["pretrained_cfg"]["input_size"][-1]
    began = time.monotonic()

    @daft.cls
    class Predict:
        def __init__(self) -> None:
            self.model = Model(bundle)

        @daft.method.batch(  # type: ignore[untyped-decorator]
            return_dtype=DataType.list(DataType.float32()), batch_size=BATCH
        )
        def __call__(self, pixels: Series) -> Series:
            probs = self.model(np.stack(pixels.to_pylist()))
            now = np.full((len(probs), 1), time.monotonic() - began, np.float32)
            return Series.from_pylist(list(np.concatenate([probs, now], axis=1)))

    with tempfile.TemporaryDirectory() as out:
        pile = daft.read_parquet(f"{corpus}/shard-*").select("key", "image")
        decoded = col("image").decode_image(mode="RGB").resize(size, size)
        pile = pile.with_column("pixels", decoded)
        pile = pile.select("key", Predict()(col("pixels")).alias("probs"))
        pile.write_parquet(out)
        tables = [pq.read_table(file) for file in sorted(Path(out).glob("*.parquet"))]
    times = np.concatenate([[row[-1] for row in t["probs"].to_pylist()] for t in tables])
    ends, counts = np.unique(times, return_counts=True)
    return rate((began + ends).tolist(), counts.tolist(), began)
