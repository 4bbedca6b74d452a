"""ImageNet-C and ImageNet-P as they were released: files in folders."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ns_ray import store
from ns_ray.config import RobustnessConfig
from ns_ray.data import decode
from ns_ray.errors import DataError
from ns_ray.robustness.corruptions import STANDARD, seed_for
from ns_ray.robustness.scores import PERTURBATIONS
from ns_ray.robustness.units import Shown, Unit, names_of

VIDEO_ENDINGS = (".mp4", ".avi", ".mkv")


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
    stem = file.rpartition(".")[0]  # the same image in every folder
    return seed_for(stem, seed), stem


def shown_released(unit: Unit) -> Iterator[Shown]:
    """Everything that a unit of released files shows to the models."""
    assert unit.name is not None
    paths = [store.join(unit.place, key) for key in unit.keys]
    if unit.suite == "perturbations":
        for i, (path, label) in enumerate(zip(paths, unit.labels, strict=True)):
            yield Shown(unit.name, 0, video(path), (label,), (i,))
        return
    pictures = [np.array(decode(store.read_bytes(path))) for path in paths]
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, picture in enumerate(pictures):
        by_shape.setdefault(picture.shape, []).append(i)
    for rows in by_shape.values():
        labels = tuple(unit.labels[i] for i in rows)
        stack = np.stack([pictures[i] for i in rows])
        yield Shown(unit.name, unit.level, stack, labels, tuple(rows))


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
