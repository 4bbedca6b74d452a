"""Realistic JPEGs for the benchmarks: random crops of photographs that come with scikit-learn,
scikit-image and foolbox (`pip install -e '.[bench]'`), about 500 x 375 pixels and 100 kB each."""

import importlib.util
import io
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import resources
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from ns_ray.compute import cpus

SOURCES = {
    "sklearn.datasets": ["images/china.jpg", "images/flower.jpg"],
    "skimage": [
        f"data/{name}"
        for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "ihc.png")
    ],
}


def photographs() -> list[Image.Image]:
    """The whole photographs, RGB."""
    found = []
    for package, names in SOURCES.items():
        for name in names:
            data = (resources.files(package) / name).read_bytes()
            found.append(Image.open(io.BytesIO(data)).convert("RGB"))
    return found


def imagenet_photos() -> list[tuple[bytes, int]]:
    """foolbox's 20 ImageNet photographs (224 x 224, PNG) with their class indices."""
    spec = importlib.util.find_spec("foolbox")  # found, not imported: that needs more packages
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "data"
    names = sorted(f.name for f in folder.iterdir() if f.name.startswith("imagenet_"))
    return [((folder / n).read_bytes(), int(Path(n).stem.split("_")[-1])) for n in names]


def jpeg(seed: int, sources: list[Image.Image], size: tuple[int, int], quality: int) -> bytes:
    """A random crop (a half to all of a photograph), brightness changed a little, as a JPEG."""
    rng = np.random.default_rng(seed)
    source = sources[int(rng.integers(len(sources)))]
    scale = float(rng.uniform(0.5, 1.0)) ** 0.5
    width = scale * min(source.width, source.height * size[0] / size[1])
    height = width * size[1] / size[0]
    left = float(rng.uniform(0, source.width - width))
    top = float(rng.uniform(0, source.height - height))
    box = (left, top, left + width, top + height)
    image = source.resize(size, Image.Resampling.BICUBIC, box=box)
    image = ImageEnhance.Brightness(image).enhance(float(rng.uniform(0.7, 1.3)))
    noisy = np.asarray(image, np.float32) + rng.normal(0, 3, (size[1], size[0], 3))
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _write(part: range, folder: str, size: tuple[int, int], quality: int, classes: int) -> None:
    sources = photographs()
    for seed in part:
        place = Path(folder) / f"class-{seed % classes}" if classes else Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{seed:06d}.jpg").write_bytes(jpeg(seed, sources, size, quality))


def write(
    folder: str,
    count: int,
    *,
    size: tuple[int, int] = (500, 375),
    quality: int = 95,
    classes: int = 0,
) -> str:
    """Fill a folder with JPEGs, in a folder per (random) class if classes are asked for."""
    parts: Iterator[range] = (range(i, count, 4 * cpus()) for i in range(4 * cpus()))
    # Spawned: a fork of a process that imports in a thread can wait for its lock for ever.
    with ProcessPoolExecutor(cpus(), mp_context=get_context("spawn")) as pool:
        work = partial(_write, folder=folder, size=size, quality=quality, classes=classes)
        list(pool.map(work, parts))
    return folder
