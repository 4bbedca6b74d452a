"""Decoding beside the model and apart from it, on nodes that are unlike.

    python benchmarks/unlike_nodes.py [--images 24000] [--size 224] [--real 4000]

1. One machine plays four: a node of 2 CPUs with the model, and three of 4 CPUs. Decoding an image
   takes 2.5 ms of one CPU and the model 1 ms, both slept, so any machine can play them; what is
   not slept is Ray, the object store, which carries pixels of `--size`, and the labels. Whole
   labelings with `label.decode` with_model, apart and auto; images/s once all is started, beside
   the model's 1,000.
2. This machine as it is, where decoding apart should not help: JPEGs of 500 x 375 px through
   tf_efficientnet_lite0, the same three ways in turn.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from PIL import Image

from ns_ray.compute import Pool, prepare

prepare()  # before anything imports Ray

import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from ns_ray.config import Decode, LabelConfig, ModelConfig, PredictConfig  # noqa: E402
from ns_ray.data import Decoded, Preprocess, encode_png, pack  # noqa: E402
from ns_ray.labeling import actor, decoding, pseudo_label  # noqa: E402
from ns_ray.model import Predictor, build, save  # noqa: E402
from ns_ray.store import Bundle, Corpus  # noqa: E402

DECODE_SECONDS, MODEL_SECONDS = 2.5e-3, 1e-3
CLASSES = 10
WAYS: tuple[Decode, ...] = ("with_model", "apart", "auto")


def decoded_slowly(images: Iterable[bytes], preprocess: Preprocess, fast: bool) -> Decoded:
    """What `decode_batch` does, slept."""
    count = len(list(images))
    time.sleep(DECODE_SECONDS * count)
    size = preprocess.size
    return Decoded(np.zeros((count, size, size, 3), np.uint8), {}, count)


class Accelerator(Predictor):
    """Takes `MODEL_SECONDS` an image."""

    def pixels(self, data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Slept, in one of the predictor's threads."""
        time.sleep(DECODE_SECONDS)
        size = self.preprocess.size
        return np.zeros((size, size, 3), np.uint8)

    def start(self, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Any:
        """Slept as well."""
        time.sleep(MODEL_SECONDS * len(pixels))
        probs = np.full((len(pixels), len(self.classes)), 1 / len(self.classes), np.float32)
        return lambda: probs


class Pretended(actor.ShardPredictor):
    """An actor whose model is an `Accelerator`, and whose tasks sleep."""

    def __init__(self, **arguments: Any) -> None:
        import ns_ray.model

        ns_ray.model.Predictor = Accelerator  # type: ignore[misc]
        decoding.decode_batch = decoded_slowly  # type: ignore[assignment, attr-defined]
        super().__init__(**arguments)


def teacher(out: str, name: str, size: int) -> Bundle:
    """A model that nobody has trained."""
    torch.manual_seed(0)
    model = build(ModelConfig(model=name, image_size=size), CLASSES)
    classes = [str(i) for i in range(CLASSES)]
    return save(model, out, classes=classes, fingerprint="t", provenance={})


def corpus(folder: Path, images: Sequence[bytes], ending: str) -> Corpus:
    """The images, packed."""
    (folder / "images").mkdir(parents=True)
    for i, data in enumerate(images):
        (folder / "images" / f"{i:06d}{ending}").write_bytes(data)
    out = str(folder / "corpus")
    return pack(str(folder / "images"), out=out, classes=(), rows_per_shard=1000)


def noise(count: int) -> Iterator[bytes]:
    """PNGs of 12 KB."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield encode_png(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))


def photos(count: int) -> Iterator[bytes]:
    """JPEGs of 500 x 375 px and about 50 KB."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        few = rng.integers(0, 256, (47, 63, 3), dtype=np.uint8)
        file = BytesIO()
        Image.fromarray(few).resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG")
        yield file.getvalue()


def rate(model: Bundle, pile: Corpus, pool: Pool, way: Decode, out: str) -> tuple[float, str]:
    """Images/s of a whole labeling once all is started, and where it decoded in the end."""
    labels = pseudo_label(
        LabelConfig(decode=way),
        model,
        pile,
        pool=pool,
        out=out,
        title=way,
        predict=PredictConfig(),
    )
    facts = labels.facts
    steady = facts["steady_images_per_second"] or facts["images_per_second"]
    return float(steady), str(facts["engine"]["decode"])


def pretended(work: Path, images: int, size: int) -> None:
    """Part 1."""
    model = teacher(f"{work}/small", "test_resnet", size)
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes.add_node(num_cpus=2)
    for _ in range(3):
        nodes.add_node(num_cpus=4)
    ray.init(address=nodes.address, log_to_driver=False)
    pile = corpus(work / "noise", list(noise(images)), ".png")
    real = actor.ShardPredictor
    actor.ShardPredictor = Pretended  # type: ignore[misc, assignment]
    try:
        pool = Pool(actors=1, cpus=2.0, gpus=0.0, spare=12)
        whole = 1 / MODEL_SECONDS
        print(f"\n| nodes of 2, 4, 4, 4 CPUs; {size} px | images/s | of the model's | decoded |")
        print("|---|---:|---:|---|")
        for way in WAYS:
            found, where = rate(model, pile, pool, way, f"{work}/pretended-{way}")
            print(f"| {way} | {found:,.0f} | {found / whole:.2f} | {where} |", flush=True)
    finally:
        actor.ShardPredictor = real  # type: ignore[misc]
        ray.shutdown()
        nodes.shutdown()


def as_it_is(work: Path, images: int, rounds: int) -> None:
    """Part 2."""
    model = teacher(f"{work}/lite0", "tf_efficientnet_lite0", 224)
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    pile = corpus(work / "photos", list(photos(images)), ".jpg")
    pool = Pool(actors=1, cpus=2.0, gpus=0.0, spare=2)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(rounds):
        for way in WAYS:
            found[way].append(rate(model, pile, pool, way, f"{work}/real-{way}-{turn}")[0])
    ray.shutdown()
    print("\n| this machine | images/s | of with_model |\n|---|---:|---:|")
    for name, rates in found.items():
        each = statistics.median(a / b for a, b in zip(rates, found["with_model"], strict=True))
        print(f"| {name} | {statistics.median(rates):,.0f} | {each:.2f} |")


def main() -> None:
    """Measure both parts and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=24_000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--real", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"{machine()}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        pretended(Path(folder), args.images, args.size)
        if args.rounds:
            as_it_is(Path(folder), args.real, args.rounds)


if __name__ == "__main__":
    main()
