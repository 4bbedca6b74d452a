"""What a unit shows to the models: corrupted pictures and sequences, made from a corpus."""

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from ns_ray import store
from ns_ray.config import RobustnessConfig
from ns_ray.data import Preprocess, decode, eval_pixels
from ns_ray.robustness.corruptions import SIZES, Pixels, corrupt
from ns_ray.robustness.released import shown_released
from ns_ray.robustness.units import Shown, Unit, names_of
from ns_ray.store import open_corpus

CANVAS = {
    "imagenet": Preprocess(SIZES["imagenet"], 0.875, "bilinear", (0.5,) * 3, (0.5,) * 3),
    "cifar": Preprocess(SIZES["cifar"], 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3),
}
"""The picture that is corrupted: the same for every model, whatever its resolution. ImageNet-C's is
the middle 224 pixels at a short side of 256; its mean and std are not used."""


def encoded(corpus: str, unit: Unit) -> list[bytes]:
    """Encoded images of a unit, in the order of its keys."""
    opened = open_corpus(corpus)
    shard = next(shard for shard in opened.shards if shard.name == unit.place)
    table = opened.read(shard, ["key", "image"])
    rows = {key: i for i, key in enumerate(table["key"].to_pylist())}
    images = table["image"]
    return [images[rows[key]].as_buffer().to_pybytes() for key in unit.keys]


def shown(unit: Unit, corpus: str, config: RobustnessConfig, constants: str) -> Iterator[Shown]:
    """Everything that a unit of corruptions or perturbations shows to the models."""
    if unit.name is not None:
        yield from shown_released(unit)
    elif unit.suite == "corruptions":
        yield from _corrupted(unit, encoded(corpus, unit), config, constants)
    else:
        yield from _sequences(unit, encoded(corpus, unit), config, constants)


def _corrupted(
    unit: Unit, images: Sequence[bytes], config: RobustnessConfig, constants: str
) -> Iterator[Shown]:
    canvas = CANVAS[constants]
    clean = np.stack([eval_pixels(data, canvas, fast=False) for data in images])
    every = tuple(range(len(clean)))
    yield Shown("clean", 0, clean, unit.labels, every)
    for name in names_of(config, "corruptions"):
        for severity in config.severities:
            changed = [
                corrupt(pixels, name, severity, constants=constants, key=key, seed=config.seed)
                for key, pixels in zip(unit.keys, clean, strict=True)
            ]
            yield Shown(name, severity, np.stack(changed), unit.labels, every)


def _sequences(
    unit: Unit, images: Sequence[bytes], config: RobustnessConfig, constants: str
) -> Iterator[Shown]:
    from ns_ray.robustness.moving import crop
    from ns_ray.robustness.perturbations import sequence
    from ns_ray.robustness.sizes import CONSTANTS

    base = CONSTANTS[constants].base
    rows = zip(unit.keys, unit.labels, images, strict=True)
    for i, (key, label, data) in enumerate(rows):
        image = decode(data)
        times = base / min(image.size)
        width, height = (max(base, int(side * times)) for side in image.size)
        picture = image.resize((width, height), Image.Resampling.BILINEAR)
        if constants == "cifar":
            picture = crop(picture, base)
        for name in names_of(config, "perturbations"):
            frames = sequence(picture, name, constants=constants, key=key, seed=config.seed)
            yield Shown(name, 0, frames, (label,), (i,))


def corrupted_again(
    unit: Unit, corpus: str, name: str, severity: int, *, constants: str, seed: int
) -> Pixels:
    """A corrupted picture as it was scored, uint8 [side, side, 3].

    Args:
        unit: one that was scored, but with one image only.
    """
    if unit.name is not None:
        return np.asarray(next(shown_released(unit)).pixels[0])
    opened, (key,) = open_corpus(corpus), unit.keys
    file = next(shard.file for shard in opened.shards if shard.name == unit.place)
    rows = store.read_rows(store.join(opened.path, file), "key", [key], ["key", "image"])
    data = rows["image"][0].as_buffer().to_pybytes()
    clean = eval_pixels(data, CANVAS[constants], fast=False)
    return corrupt(clean, name, severity, constants=constants, key=key, seed=seed)
