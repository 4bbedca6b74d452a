"""Scores models on corrupted, perturbed and attacked images, as one Ray Data job.

    units of images -> tasks that make pictures -> actors that ask every model -> counts

Every picture is decoded and corrupted once, whatever the number of models. Counts are written as
each unit is finished: killed and rerun, the job does what is missing.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from ns_ray import store
from ns_ray.compute import Pool
from ns_ray.config import EvaluateConfig, PredictConfig, RobustnessConfig
from ns_ray.errors import StageError
from ns_ray.robustness.corruptions import check_installed
from ns_ray.robustness.job import Job, part_file, whole_job
from ns_ray.robustness.results import related, show, summary
from ns_ray.robustness.running import run_job
from ns_ray.store import Bundle, Corpus, open_bundle


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
    job, prints, rows = whole_job(config, models, corpus, outs, predict, batch_size, pool)
    with ExitStack() as claims:
        for out, fingerprint in zip(outs, prints, strict=True):
            claims.enter_context(store.claimed(out, fingerprint))
        if any(job.missing):
            run_job(job, outs, prints, pool, title)
        results = [
            _published(job, out, fingerprint, rows, corpus, start)
            for out, fingerprint in zip(outs, prints, strict=True)
        ]
    imagenet = job.constants == "imagenet" or config.released_corruptions is not None
    return [
        related(result, results[0], names[0] if i else None, imagenet and len(m.classes) == 1000)
        for i, (result, m) in enumerate(zip(results, models, strict=True))
    ]


def _published(
    job: Job, out: str, fingerprint: str, rows: int, corpus: Corpus, start: float
) -> dict[str, Any]:
    """A model's result, published now where it isn't yet.

    Args:
        rows: test images taken.
        start: of the job, in seconds of the monotonic clock.

    Raises:
        StageError: counts are missing.
    """
    done = store.already(out, fingerprint)
    if done is None:
        files = [part_file(i, fingerprint) for i in range(len(job.units))]
        lost = set(files) - set(store.list_files(out))
        if lost:
            raise StageError(f"{len(lost)} of {len(files)} parts are not in {out}; run again")
        facts = {"rows": rows, "constants": job.constants, **summary(out, files, job.config)}
        done = store.publish(
            out,
            stage="robustness",
            fingerprint=fingerprint,
            files=files,
            facts=facts,
            inputs={"corpus": corpus.fingerprint},
            seconds=time.monotonic() - start,
        )
    return done.facts


def evaluate_beside(
    config: EvaluateConfig,
    models: Sequence[Bundle],
    corpus: Corpus,
    *,
    names: Sequence[str],
    outs: Sequence[str],
    baseline: str,
    pool: Pool,
    predict: PredictConfig,
) -> list[dict[str, Any]]:
    """`evaluate_robustness` of models, related to `robustness.baseline` where one is given, whose
    counts go into the folder `baseline`, and to the first of them else; and a line of each to the
    screen."""
    robustness = config.robustness or RobustnessConfig()
    shown, named, places = [*models], [*names], [*outs]
    if robustness.baseline is not None:
        shown.insert(0, open_bundle(robustness.baseline))
        named.insert(0, robustness.baseline)
        places.insert(0, baseline)
    results = evaluate_robustness(
        robustness,
        shown,
        corpus,
        outs=places,
        names=named,
        pool=pool,
        title="robustness",
        batch_size=config.batch_size,
        predict=predict,
    )[-len(models) :]
    for result, name in zip(results, names, strict=True):
        show(result, name)
    return results


def check_suites(config: RobustnessConfig) -> None:
    """Fail early where the packages that the suites need are missing.

    Raises:
        ConfigError: names the package, and the extra that has it.
    """
    if set(config.suites) & {"corruptions", "perturbations"}:
        check_installed()
