"""What a model is shown: corrupted pictures and sequences, made from a corpus or read from the
released benchmarks. One unit of work is some images and one suite; knows nothing about Ray.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ns_ray import store
from ns_ray.config import RobustnessConfig
from ns_ray.data import Preprocess, decode, eval_pixels
from ns_ray.errors import DataError
from ns_ray.robustness.corruptions import FAMILY, SIZES, STANDARD, corrupt
from ns_ray.robustness.scores import PERTURBATIONS
from ns_ray.store import open_corpus

EXTRA_PERTURBATIONS = ("speckle_noise", "gaussian_blur", "spatter", "shear")

IMAGES_IN_A_UNIT = 64
"""A unit is finished, or done again."""

VIDEO_ENDINGS = (".mp4", ".avi", ".mkv")

CANVAS = {
    "imagenet": Preprocess(SIZES["imagenet"], 0.875, "bilinear", (0.5,) * 3, (0.5,) * 3),
    "cifar": Preprocess(SIZES["cifar"], 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3),
}
"""The picture that is corrupted: the same for every model, whatever its resolution. ImageNet-C's is
the middle 224 pixels at a short side of 256; its mean and std are not used."""


@dataclass(frozen=True)
class Unit:
    """Some images and what is done to them.

    Attributes:
        suite: corruptions, perturbations or adversarial.
        keys: of the images; for released ones their files.
        labels: int, index among the classes of the images.
        source: corpus shard, or folder of released files.
        name, level: of released files: the corruption or perturbation, and severity.
    """

    suite: Literal["corruptions", "perturbations", "adversarial"]
    keys: tuple[str, ...]
    labels: tuple[int, ...]
    source: str
    name: str | None = None
    level: int = 0

    def chunks(self) -> "Iterator[Unit]":
        """The same images in units of at most IMAGES_IN_A_UNIT."""
        for i in range(0, len(self.keys), IMAGES_IN_A_UNIT):
            j = i + IMAGES_IN_A_UNIT
            yield replace(self, keys=self.keys[i:j], labels=self.labels[i:j])


@dataclass(frozen=True)
class Shown:
    """What goes through the models at once.

    Attributes:
        name, level: corruption and severity (`clean` and 0 for none), or perturbation and 0.
        pixels: uint8 [n, side, side, 3]: n images, or the n frames of one sequence.
        labels: int [n], or [1] of a sequence.
    """

    name: str
    level: int
    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    labels: tuple[int, ...]


def names_of(config: RobustnessConfig, suite: str) -> tuple[str, ...]:
    """The corruptions or perturbations that a config asks for."""
    if suite == "corruptions":
        return tuple(FAMILY) if config.extra else STANDARD
    return PERTURBATIONS + (EXTRA_PERTURBATIONS if config.extra else ())


def encoded(corpus: str, unit: Unit) -> list[bytes]:
    """Encoded images of a unit, in the order of its keys."""
    opened = open_corpus(corpus)
    shard = next(shard for shard in opened.shards if shard.name == unit.source)
    table = opened.read(shard, ["key", "image"])
    rows = {key: i for i, key in enumerate(table["key"].to_pylist())}
    images = table["image"]
    return [images[rows[key]].as_buffer().to_pybytes() for key in unit.keys]


def shown(unit: Unit, corpus: str, config: RobustnessConfig, constants: str) -> Iterator[Shown]:
    """Everything that a unit of corruptions or perturbations shows to the models."""
    if unit.name is not None:
        yield from _released(unit)
    elif unit.suite == "corruptions":
        yield from _corrupted(unit, encoded(corpus, unit), config, constants)
    else:
        yield from _sequences(unit, encoded(corpus, unit), config, constants)


def _corrupted(
    unit: Unit, images: Sequence[bytes], config: RobustnessConfig, constants: str
) -> Iterator[Shown]:
    canvas = CANVAS[constants]
    clean = np.stack([eval_pixels(data, canvas, fast=False) for data in images])
    yield Shown("clean", 0, clean, unit.labels)
    for name in names_of(config, "corruptions"):
        for severity in config.severities:
            changed = [
                corrupt(pixels, name, severity, constants=constants, key=key, seed=config.seed)
                for key, pixels in zip(unit.keys, clean, strict=True)
            ]
            yield Shown(name, severity, np.stack(changed), unit.labels)


def _sequences(
    unit: Unit, images: Sequence[bytes], config: RobustnessConfig, constants: str
) -> Iterator[Shown]:
    from ns_ray.robustness.perturbations import CONSTANTS, crop, sequence

    base = CONSTANTS[constants].base
    for key, label, data in zip(unit.keys, unit.labels, images, strict=True):
        image = decode(data)
        times = base / min(image.size)
        width, height = (max(base, int(side * times)) for side in image.size)
        picture = image.resize((width, height), Image.Resampling.BILINEAR)
        if constants == "cifar":
            picture = crop(picture, base)
        for name in names_of(config, "perturbations"):
            frames = sequence(picture, name, constants=constants, key=key, seed=config.seed)
            yield Shown(name, 0, frames, (label,))


def _released(unit: Unit) -> Iterator[Shown]:
    assert unit.name is not None
    paths = [store.join(unit.source, key) for key in unit.keys]
    if unit.suite == "perturbations":
        for path, label in zip(paths, unit.labels, strict=True):
            yield Shown(unit.name, 0, video(path), (label,))
        return
    pictures = [np.array(decode(store.read_bytes(path))) for path in paths]
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, picture in enumerate(pictures):
        by_shape.setdefault(picture.shape, []).append(i)
    for rows in by_shape.values():
        labels = tuple(unit.labels[i] for i in rows)
        yield Shown(unit.name, unit.level, np.stack([pictures[i] for i in rows]), labels)


def video(path: str) -> Any:
    """Frames of a video file, uint8 [frames, height, width, 3], RGB.

    Raises:
        DataError: it cannot be read.
    """
    import cv2

    with tempfile.TemporaryDirectory() as folder:
        if store.is_uri(path):
            local = str(Path(folder) / Path(path).name)
            Path(local).write_bytes(store.read_bytes(path))
            path = local
        capture = cv2.VideoCapture(path)
        frames = []
        while True:
            more, frame = capture.read()
            if not more:
                break
            frames.append(frame[..., ::-1])
        capture.release()
    if len(frames) < 2:
        raise DataError(f"{path}: a sequence of at least 2 frames was expected, read {len(frames)}")
    return np.stack(frames)


def released_units(
    folder: str, config: RobustnessConfig, suite: Literal["corruptions", "perturbations"]
) -> tuple[list[Unit], tuple[str, ...]]:
    """Units for ImageNet-C (name/severity/class/image) or ImageNet-P (name/class/video).

    Returns:
        The units, and the class names that their labels count; the first `images` or `sequences`
        files of each folder, by the hash of class and name, are taken.

    Raises:
        DataError: a folder is missing or empty.
    """
    corruptions = suite == "corruptions"
    setting = f"evaluate.robustness.released_{suite}={folder!r}"
    folder = store.absolute(folder)
    levels: tuple[int | None, ...] = tuple(config.severities) if corruptions else (None,)
    found: list[tuple[str, int, str, list[str]]] = []
    for name in names_of(config, suite):
        for level in levels:
            place = store.join(folder, name, *([] if level is None else [str(level)]))
            files = [
                file
                for file in store.list_files(place, recursive=True)
                if file.count("/") == 1
                and (corruptions or file.lower().endswith(VIDEO_ENDINGS))
                and not Path(file).name.startswith(".")
            ]
            if files:
                found.append((name, level or 0, place, files))
            elif name in (STANDARD if corruptions else PERTURBATIONS):
                raise DataError(f"{setting}: there are no files in {place}/CLASS/")
    classes = tuple(sorted({f.split("/")[0] for _, _, _, files in found for f in files}))
    index = {name: i for i, name in enumerate(classes)}
    count = config.images if corruptions else config.sequences
    units: list[Unit] = []
    for name, level, place, files in found:
        taken = sorted(files, key=lambda file: _order(file, config.seed))[:count]
        labels = tuple(index[file.split("/")[0]] for file in taken)
        units += Unit(suite, tuple(taken), labels, place, name, level).chunks()
    return units, classes


def _order(file: str, seed: int) -> tuple[int, str]:
    from ns_ray.robustness.corruptions import seed_for

    stem = file.rpartition(".")[0]  # the same image in every folder
    return seed_for(stem, seed), stem
