"""What a scoring of robustness has to do: its units, and the models that still need each."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ns_ray import store
from ns_ray.compute import Pool
from ns_ray.config import PredictConfig, RobustnessConfig
from ns_ray.errors import DataError
from ns_ray.model import class_map
from ns_ray.robustness.corruptions import constants_for
from ns_ray.robustness.released import released_units
from ns_ray.robustness.units import Unit
from ns_ray.store import Bundle, Corpus, hash_keys


@dataclass(frozen=True)
class Job:
    """What tasks and actors are told; plain values."""

    config: RobustnessConfig
    predict: PredictConfig
    constants: str
    corpus: str
    units: tuple[Unit, ...]
    bundles: tuple[str, ...]
    missing: tuple[tuple[int, ...], ...]
    """For each unit, the models that still need it."""
    maps: tuple[tuple[np.ndarray[Any, Any], ...], ...]
    """For each model, class of an image -> class of the model, by kind of unit: see `kind_of`."""
    batch_size: int
    threads: int
    device: str


def kind_of(unit: Unit) -> int:
    """Which list of class names the labels of a unit count: see `_units`."""
    return 0 if unit.name is None else 1 if unit.suite == "corruptions" else 2


def whole_job(
    config: RobustnessConfig,
    models: Sequence[Bundle],
    corpus: Corpus,
    outs: Sequence[str],
    predict: PredictConfig,
    batch_size: int,
    pool: Pool,
) -> tuple[Job, list[str], int]:
    """The job, a fingerprint for each model, and the number of test images taken."""
    units, classes, constants, rows = _units(config, corpus)
    # Other models beside it or other batches change nothing that is stored of a model.
    beside = {"baseline", "before_fixres"}
    settings = [config.model_dump(mode="json", exclude=beside), predict.model_dump()]
    prints = [
        store.fingerprint("robustness", m.fingerprint, corpus.fingerprint, settings, constants)
        for m in models
    ]
    needed: list[set[int]] = [set() for _ in units]
    for m, (out, fingerprint) in enumerate(zip(outs, prints, strict=True)):
        if store.already(out, fingerprint) is None:
            present = set(store.list_files(out))
            for i in range(len(units)):
                if part_file(i, fingerprint) not in present:
                    needed[i].add(m)
    maps = tuple(
        tuple(class_map(model, names, corpus.path) for names in classes) for model in models
    )
    job = Job(
        config=config,
        predict=predict,
        constants=constants,
        corpus=corpus.path,
        units=tuple(units),
        bundles=tuple(model.path for model in models),
        missing=tuple(tuple(sorted(models_)) for models_ in needed),
        maps=maps,
        batch_size=batch_size,
        threads=max(1, int(pool.cpus)),
        device=pool.device,
    )
    return job, prints, rows


def _units(
    config: RobustnessConfig, corpus: Corpus
) -> tuple[list[Unit], list[tuple[str, ...]], str, int]:
    """Units of work; class names of the corpus and of released corruptions and perturbations;
    which constants; how many test images are taken."""
    chosen: list[tuple[int, str, int, str, int]] = []
    for shard, table in corpus.scan(["key", "label", "width", "height"]):
        sides = np.minimum(table["width"].to_numpy(), table["height"].to_numpy())
        keys, labels = table["key"], table["label"].to_pylist()
        hashes = hash_keys(keys, config.seed).tolist()
        chosen += [
            (h, key, label, shard.name, int(side))
            for h, key, label, side in zip(hashes, keys.to_pylist(), labels, sides, strict=True)
        ]
    chosen = sorted(chosen)[: max(config.images, config.sequences)]
    if not chosen:
        raise DataError(f"{corpus.path} has no images to corrupt")
    constants: str = config.constants
    if constants == "auto":
        constants = constants_for(float(np.median([side for *_, side in chosen])))
    classes = [corpus.classes, corpus.classes, corpus.classes]
    units: list[Unit] = []
    for suite in config.suites:
        folder = {
            "corruptions": config.released_corruptions,
            "perturbations": config.released_perturbations,
        }.get(suite)
        if folder is not None and suite != "adversarial":
            found, classes[1 if suite == "corruptions" else 2] = released_units(
                folder, config, suite
            )
            units += found
            continue
        shards = defaultdict(list)
        count = config.sequences if suite == "perturbations" else config.images
        for _, key, label, shard_name, _ in chosen[:count]:
            shards[shard_name].append((key, label))
        for name, rows in sorted(shards.items()):
            keys_, labels_ = zip(*rows, strict=True)
            units += Unit(suite, keys_, labels_, name).chunks()
    return units, classes, constants, min(config.images, len(chosen))


def part_file(index: int, fingerprint: str) -> str:
    """Name of the file with the counts of a unit."""
    return f"{index:05d}.{fingerprint[:6]}.json"
