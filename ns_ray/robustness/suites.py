"""Scores models on corrupted, perturbed and attacked images, as one Ray Data job.

    units of images -> tasks that make pictures -> actors that ask every model -> counts

Every picture is decoded and corrupted once, whatever the number of models. Counts are written as
each unit is finished: killed and rerun, the job does what is missing.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ns_ray import store
from ns_ray.compute import Pool, tasks
from ns_ray.config import EvaluateConfig, PredictConfig, RobustnessConfig
from ns_ray.errors import DataError, StageError
from ns_ray.log import progress, say
from ns_ray.model import class_map
from ns_ray.robustness import scores
from ns_ray.robustness.corruptions import check_installed, constants_for
from ns_ray.robustness.pictures import Unit, names_of, released_units
from ns_ray.robustness.work import END, Job, Make, Row, Scorer, make
from ns_ray.store import Bundle, Corpus, hash_keys, open_bundle

SECONDS_PER_PICTURE = 3e-3
"""What making a picture and a forward pass take in one process with a small model, or on a GPU."""


def evaluate_robustness(
    config: RobustnessConfig,
    models: Sequence[Bundle],
    corpus: Corpus,
    *,
    outs: Sequence[str],
    names: Sequence[str],
    pool: Pool,
    title: str,
    batch_size: int = 64,
    predict: PredictConfig | None = None,
) -> list[dict[str, Any]]:
    """Score models on the same corrupted, perturbed and attacked images.

    Args:
        config: suites, images, strengths.
        models: what is scored. The first one is the baseline of the others.
        corpus: labeled test images.
        outs: a folder for each model.
        names: of the models; the first is what results say they are relative to.
        pool: the actors.
        title: name of the progress line.
        batch_size: images in one forward pass.
        predict: how images go through a model.

    Returns:
        For each model what `evaluation.json` says under `robustness`.

    Raises:
        ConfigError: the packages of the extra `robustness` are missing.
        DataError: a model doesn't know the classes, or released files are missing.
        StageError: tasks or actors kept failing; what was written is kept.
    """
    start = time.monotonic()
    check_suites(config)
    predict = predict or PredictConfig()
    job, prints, rows = _plan(config, models, corpus, outs, predict, batch_size, pool)
    if any(job.missing):
        _work(job, outs, prints, pool, title)
    results = []
    for out, fingerprint in zip(outs, prints, strict=True):
        done = store.already(out, fingerprint)
        if done is None:
            files = [_part(i, fingerprint) for i in range(len(job.units))]
            lost = set(files) - set(store.list_files(out))
            if lost:
                raise StageError(f"{len(lost)} of {len(files)} parts are not in {out}; run again")
            facts = {"rows": rows, "constants": job.constants, **_summary(out, files, config)}
            done = store.publish(
                out,
                stage="robustness",
                fingerprint=fingerprint,
                files=files,
                facts=facts,
                inputs={"corpus": corpus.fingerprint},
                seconds=time.monotonic() - start,
            )
        results.append(done.facts)
    imagenet = job.constants == "imagenet" or config.released_corruptions is not None
    return [
        _finished(result, results[0], names[0] if i else None, imagenet and len(m.classes) == 1000)
        for i, (result, m) in enumerate(zip(results, models, strict=True))
    ]


def evaluate_one(
    config: EvaluateConfig,
    model: Bundle,
    corpus: Corpus,
    *,
    out: str,
    pool: Pool,
    predict: PredictConfig,
) -> dict[str, Any]:
    """`evaluate_robustness` of one model, related to `robustness.baseline` where one is given; its
    counts go into folders of `out`, and one line to the screen."""
    robustness = config.robustness or RobustnessConfig()
    models, names = [model], [model.path]
    if robustness.baseline is not None:
        models, names = [open_bundle(robustness.baseline), model], [robustness.baseline, model.path]
    result = evaluate_robustness(
        robustness,
        models,
        corpus,
        outs=[store.join(out, name) for name in ("baseline", "robustness")[-len(models) :]],
        names=names,
        pool=pool,
        title="robustness",
        batch_size=config.batch_size,
        predict=predict,
    )[-1]
    show(result, model.path)
    return result


def check_suites(config: RobustnessConfig) -> None:
    """Fail early where the packages that the suites need are missing.

    Raises:
        ConfigError: names the package, and the extra that has it.
    """
    if set(config.suites) & {"corruptions", "perturbations"}:
        check_installed()


def _plan(
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
    # Another baseline or other batches change nothing that is stored.
    settings = [config.model_dump(mode="json", exclude={"baseline"}), predict.model_dump()]
    prints = [
        store.fingerprint("robustness", m.fingerprint, corpus.fingerprint, settings, constants)
        for m in models
    ]
    needed: list[set[int]] = [set() for _ in units]
    for m, (out, fingerprint) in enumerate(zip(outs, prints, strict=True)):
        if store.already(out, fingerprint) is None:
            present = set(store.list_files(out))
            for i in range(len(units)):
                if _part(i, fingerprint) not in present:
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


def _pictures(unit: Unit, config: RobustnessConfig) -> int:
    """About how many forward passes a unit takes for one model."""
    n = len(unit.keys)
    if unit.suite == "adversarial":  # a backward pass is worth two
        return n * len(config.epsilons) * 3 * (1 + config.pgd_steps)
    if unit.suite == "perturbations":
        return n * 31 * (1 if unit.name else len(names_of(config, "perturbations")))
    if unit.name:
        return n
    return n * (1 + len(names_of(config, "corruptions")) * len(config.severities))


def _part(index: int, fingerprint: str) -> str:
    return f"{index:05d}.{fingerprint[:6]}.json"


def _work(job: Job, outs: Sequence[str], prints: Sequence[str], pool: Pool, title: str) -> None:
    """Do the missing units, and write the counts of each as it is finished."""
    todo = [i for i, models in enumerate(job.missing) if models]
    size = {i: _pictures(job.units[i], job.config) for i in todo}
    total = sum(size[i] * len(job.missing[i]) for i in todo)
    rows: dict[int, list[Row]] = defaultdict(list)
    with progress(title, total, "pictures") as meter:
        for row in _rows(job, todo, pool, title, total):
            i = int(row["unit"])
            if row["name"] != END:
                rows[i].append(row)
                continue
            for m in job.missing[i]:
                own = [
                    [str(r["name"]), float(r["level"]), float(r["value"]), int(r["count"])]
                    for r in rows[i]
                    if r["model"] == m
                ]
                part = {"suite": job.units[i].suite, "rows": own}
                store.write_json(store.join(outs[m], _part(i, prints[m])), part)
            del rows[i]
            meter.add(size[i] * len(job.missing[i]))


def _rows(job: Job, todo: list[int], pool: Pool, title: str, total: int) -> Iterator[Row]:
    """Counts of all units, that of its end last for each unit.

    Raises:
        StageError: tasks or actors kept failing.
    """
    if tasks.done_here(total * SECONDS_PER_PICTURE, pool):
        scorer = Scorer(job, total)
        for i in todo:
            for made in make(i, job):
                yield from scorer.score(made)
        return
    import ray.data

    dataset = ray.data.from_items([{"unit": i} for i in todo], override_num_blocks=len(todo))
    counted = dataset.map_batches(Make(job), batch_size=1, num_cpus=1).map_batches(
        Scorer,
        fn_constructor_args=(job, total // pool.actors),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(pool.actors, len(todo))),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
    )
    # Rows of a unit come in any order from several actors: its end waits for all of them.
    seen: dict[int, int] = defaultdict(int)
    ends: dict[int, Row] = {}
    for row in tasks.stream(counted, title):
        i = int(row["unit"])
        if row["name"] == END:
            ends[i] = row
        else:
            seen[i] += 1
            yield row
        if i in ends and seen[i] == int(ends[i]["count"]):
            yield ends.pop(i)


def _summary(out: str, files: Sequence[str], config: RobustnessConfig) -> dict[str, Any]:
    """Rates from the counts of all units: what `evaluation.json` says, but for what needs the
    baseline."""
    totals: dict[tuple[str, str, float], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for file in files:
        part = store.read_json(store.join(out, file))
        for name, level, value, count in part["rows"]:
            total = totals[part["suite"], name, level]
            total[0] += value
            total[1] += count
    rate = {key: value / count for key, (value, count) in totals.items()}
    errors: dict[str, dict[int, float]] = defaultdict(dict)
    attacks: dict[str, dict[str, float]] = defaultdict(dict)
    flips: dict[str, float] = {}
    for (suite, name, level), value in sorted(rate.items()):
        if suite == "corruptions":
            errors[name][int(level)] = value
        elif suite == "perturbations":
            flips[name] = value
        else:
            attacks[name][f"{level:g}"] = value
    clean = errors.pop("clean", {}).get(0)
    rows = scores.corruption_rows(
        {n: errors[n] for n in names_of(config, "corruptions") if n in errors}
    )
    return {
        "clean_error": clean,
        "corruptions": rows,
        "mean_corruption_error": scores.mean_error(rows),
        "perturbations": {name: {"flip_rate": value} for name, value in flips.items()},
        "mean_flip_rate": scores.mean_flip_rate(flips),
        "adversarial": dict(attacks),
    }


def _finished(
    result: dict[str, Any], baseline: dict[str, Any], name: str | None, imagenet: bool
) -> dict[str, Any]:
    """A model's result with what relates it to the baseline and to AlexNet."""
    flips, theirs = (
        {n: row["flip_rate"] for n, row in r["perturbations"].items()} for r in (result, baseline)
    )
    related = name is not None
    return {
        **result,
        "relative_to": name,
        "relative": scores.relative_error(result["corruptions"], baseline["corruptions"])
        if related
        else None,
        "relative_flip_rate": scores.mfr(flips, theirs) if related else None,
        "mce": scores.mce(result["corruptions"]) if imagenet else None,
        "mfr": scores.mfr(flips) if imagenet else None,
    }


def show(result: dict[str, Any], name: str) -> None:
    """One line for people."""
    words = []
    if result["mean_corruption_error"] is not None:
        words.append(f"mean corruption error {result['mean_corruption_error']:.4f}")
    if result["relative"] is not None:
        words.append(f"{result['relative']:.3f} times {result['relative_to']}")
    if result["mce"] is not None:
        words.append(f"mCE {result['mce']:.4f}")
    if result["mean_flip_rate"] is not None:
        words.append(f"mean flip rate {result['mean_flip_rate']:.4f}")
    for attack, curve in result["adversarial"].items():
        points = " ".join(f"{value:.3f}" for value in curve.values())
        words.append(f"{attack.upper()} {points}")
    say(f"{name}: {', '.join(words)}")
