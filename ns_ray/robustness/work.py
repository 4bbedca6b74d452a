"""What tasks and actors of the job do: make pictures, and put them through models. Knows nothing
about Ray.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from ns_ray.data import eval_pixels, resampling
from ns_ray.model import load
from ns_ray.robustness.job import Job, kind_of
from ns_ray.robustness.pictures import encoded, shown
from ns_ray.robustness.scores import flip_rate
from ns_ray.store import open_bundle

Row = dict[str, Any]
"""unit, model (an index), name, level, value (mistakes, share of flips, or hits), count, of a
sequence `right`, the share of its frames that the model has right (0 elsewhere), and told: `_told`.
"""

END = "/end"
"""Name of the row that says how many others a unit has."""


def make(index: int, job: Job) -> Iterator[Row]:
    """What a unit shows, as rows that travel: unit, name, level; pixels, shape, labels and at, in
    bytes. The last row is its end, with the number of counts to come of the others."""
    unit = job.units[index]
    models = len(job.missing[index])
    sent = 0
    if unit.suite == "adversarial":  # the actor makes its own, with its model
        sent = models * 2 * (1 + len(job.config.epsilons))
        yield {"unit": index, "name": "", "level": 0, **_packed()}
    else:
        for item in shown(unit, job.corpus, job.config, job.constants):
            packed = _packed(item.labels, item.at, item.pixels)
            yield {"unit": index, "name": item.name, "level": item.level, **packed}
            sent += models
    yield {"unit": index, "name": END, "level": sent, **_packed()}


def _packed(
    labels: tuple[int, ...] = (),
    at: tuple[int, ...] = (),
    pixels: np.ndarray[Any, Any] | None = None,
) -> Row:
    """Arrays as bytes: rows of one block have pictures of several shapes."""
    shape = () if pixels is None else pixels.shape
    return {
        "pixels": b"" if pixels is None else pixels.tobytes(),
        "shape": np.array(shape, np.int64).tobytes(),
        "labels": np.array(labels, np.int64).tobytes(),
        "at": np.array(at, np.int64).tobytes(),
    }


class Make:
    """Ray Data task: numbers of units in, pictures out."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __call__(self, units: dict[str, np.ndarray[Any, Any]]) -> Iterator[dict[str, list[Any]]]:
        for index in units["unit"]:
            for row in make(int(index), self._job):
                yield {name: [value] for name, value in row.items()}


class Scorer:
    """Ray Data actor: pictures in, counts out, for every model."""

    def __init__(self, job: Job, images: int) -> None:
        from ns_ray.model import Predictor

        self._job = job
        used = sorted({m for models in job.missing for m in models})
        each = max(1, images // len(used))
        self._predictors = {
            m: Predictor(
                job.bundles[m],
                config=job.predict,
                device=job.device,
                threads=job.threads,
                batch_size=job.batch_size,
                images=each,
            )
            for m in used
        }
        self._attacks: dict[int, Any] = {}

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[Any]]:
        """One row at a time."""
        row = {name: values[0] for name, values in rows.items()}
        found = list(self.score(row))
        keys = ("unit", "model", "name", "level", "value", "count", "right", "told")
        return {key: [item[key] for item in found] for key in keys}

    def score(self, row: Row) -> Iterator[Row]:
        """The counts of one row of `make`, a row for each model."""
        index, name = int(row["unit"]), str(row["name"])
        unit = self._job.units[index]
        if name == END:
            yield _row(index, -1, END, 0.0, 0.0, int(row["level"]))
        elif unit.suite == "adversarial":
            for m in self._job.missing[index]:
                yield from self._attacked(index, m)
        else:
            shape = np.frombuffer(row["shape"], np.int64)
            pixels = np.frombuffer(bytearray(row["pixels"]), np.uint8).reshape(shape)
            labels, at = (np.frombuffer(row[name], np.int64) for name in ("labels", "at"))
            for m in self._job.missing[index]:
                predicted = self._predict(m, pixels)
                hits = predicted == self._job.maps[m][kind_of(unit)][labels]
                level = float(row["level"])
                if unit.suite == "perturbations":
                    flips, right = flip_rate(name, predicted[None]), float(hits.mean())
                    yield _row(index, m, name, level, flips, len(labels), right=right)
                else:
                    told = _told(at[~hits], predicted[~hits])
                    yield _row(index, m, name, level, float((~hits).sum()), len(labels), told=told)

    def _predict(self, m: int, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """uint8 [n, side, side, 3] -> int [n]: resized to the model's resolution, not cropped."""
        predictor = self._predictors[m]
        size = predictor.preprocess.size
        if pixels.shape[1:3] != (size, size):
            how = resampling(predictor.preprocess.interpolation)
            pixels = np.stack(
                [np.array(Image.fromarray(p).resize((size, size), how)) for p in pixels]
            )
        step = self._job.batch_size
        batches = [pixels[i : i + step] for i in range(0, len(pixels), step)]
        return np.concatenate([predictor.forward(batch).argmax(axis=1) for batch in batches])

    def _attacked(self, index: int, m: int) -> Iterator[Row]:
        from ns_ray.robustness.adversarial import Attack

        predictor, config = self._predictors[m], self._job.config
        if m not in self._attacks:
            model, preprocess = load(open_bundle(self._job.bundles[m]))
            self._attacks[m] = Attack(model, preprocess, predictor.device)
        images = encoded(self._job.corpus, self._job.units[index])
        fast = self._job.predict.fast_decode
        pixels = np.stack([eval_pixels(data, predictor.preprocess, fast) for data in images])
        unit = self._job.units[index]
        labels = self._job.maps[m][kind_of(unit)][np.array(unit.labels)]
        totals: dict[tuple[str, float], float] = defaultdict(float)
        step = self._job.batch_size
        for i in range(0, len(pixels), step):
            some = slice(i, i + step)
            for name, epsilon, right in self._attacks[m].outcomes(
                pixels[some], labels[some], config.epsilons, config.pgd_steps
            ):
                totals[name, epsilon] += float(right.sum())
        for (name, epsilon), value in totals.items():
            yield _row(index, m, name, epsilon, value, len(pixels))


def _told(at: np.ndarray[Any, Any], answers: np.ndarray[Any, Any]) -> str:
    """`3:7 5:0`: images of a unit that a model has wrong, and the classes it takes them for."""
    return " ".join(f"{i}:{answer}" for i, answer in zip(at, answers, strict=True))


def _row(
    unit: int,
    model: int,
    name: str,
    level: float,
    value: float,
    count: int,
    *,
    right: float = 0.0,
    told: str = "",
) -> Row:
    return {
        "unit": unit,
        "model": model,
        "name": name,
        "level": level,
        "value": value,
        "count": count,
        "right": right,
        "told": told,
    }
