"""Training, for teacher, student and control arm alike: one `fit`.

This says what is trained and whether it has been. How workers are started is in workers.py, what
one of them does in loop.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from ns_ray import store
from ns_ray.compute import Workers
from ns_ray.config import ModelConfig, TrainConfig, fixres_config
from ns_ray.errors import ConfigError
from ns_ray.store import Bundle, Corpus, Selection, open_bundle
from ns_ray.training.job import Job, Limits, MetricsSink, lane_sizes, total_steps

LIMITS = Limits()


class Data(NamedTuple):
    """What a training is made of."""

    labeled: Corpus
    validation: Corpus | None
    pseudo: Selection | None
    teacher: Bundle | None


def fit(
    model: ModelConfig,
    train: TrainConfig,
    *,
    labeled: Corpus,
    validation: Corpus | None = None,
    temperature: float | None = None,
    pseudo: Selection | None = None,
    teacher: Bundle | None = None,
    seed: int,
    workers: Workers,
    limits: Limits = LIMITS,
    checkpoints: str,
    out: str,
    title: str,
    provenance: Mapping[str, Any],
    metrics: MetricsSink | None = None,
) -> Bundle:
    """Train a model and publish it as a bundle.

    Args:
        model: architecture and start weights.
        train: settings, this model's overrides included.
        labeled: the labeled images.
        validation: those that the temperature is fitted on; None: it is `temperature`, or 1.
        pseudo: the selected pseudo-labels, or None for a teacher or control arm.
        teacher: start weights where `model.init` is `teacher`.
        seed: decides weights, order, augmentation and dropout.
        workers: DDP workers and their resources.
        limits: what it bears.
        checkpoints, out: folders of the training state and of the bundle.
        title: name of the progress line.
        provenance: facts for the bundle.
        metrics: called with (step, values) as they come.

    Raises:
        ConfigError: the batch cannot be shared, the model not be built, or its teacher is missing.
        StageError: training failed or diverged. Running it again continues.
    """
    lane_sizes(train, workers.count, pseudo is not None)
    data = Data(labeled, validation, pseudo, _start(model, teacher, title))
    job = _job((model, train), data, workers, seed, provenance, temperature)
    folder = store.join(checkpoints, job.fingerprint)
    job = replace(job, out=out, checkpoint=store.join(folder, "last.pt"))
    with store.claimed(out, job.fingerprint) as done:
        if done is not None:
            return open_bundle(out)
        from ns_ray.training.workers import run_workers  # imports Ray and torch

        if (finer := fixres_config(model, train)) is not None:
            lane_sizes(finer[1], workers.count, False)
            trained = _trained(folder)
            if store.already(trained, job.fingerprint) is None:
                first = replace(job, out=trained, validation=None, given_temperature=None)
                run_workers(first, workers, limits, title, metrics)
            metrics = _after(job.steps, metrics)
            job = _fine_tuning(job, *finer, trained, labeled.rows, workers.count)
            title += " fixres"
        run_workers(job, workers, limits, title, metrics)
    return open_bundle(out)


def before_fixres(model: Bundle) -> str:
    """Folder of the bundle that a model with `fixres` was before it: `fit` keeps it among the
    checkpoints, which lie beside the model in a run."""
    return _trained(store.join(model.path.rpartition("/")[0], "checkpoints", model.fingerprint))


def _trained(checkpoints: str) -> str:
    return store.join(checkpoints, "trained")


def _start(model: ModelConfig, teacher: Bundle | None, title: str) -> Bundle | None:
    """The bundle whose weights a model starts from."""
    if model.init != "teacher":
        return None
    if teacher is None:
        raise ConfigError(
            f"{title}: init=teacher, but there is no teacher to start from; use scratch"
        )
    return teacher


def _job(
    model: tuple[ModelConfig, TrainConfig],
    data: Data,
    workers: Workers,
    seed: int,
    provenance: Mapping[str, Any],
    temperature: float | None,
) -> Job:
    """A training as plain values, but for the places that it writes to."""
    labeled, pseudo = data.labeled, data.pseudo
    if not model[1].calibrate:
        data = data._replace(validation=None)
    inputs = {name: made.fingerprint if made else None for name, made in data._asdict().items()}
    if data.validation is None:  # as it was before there was a temperature
        del inputs["validation"]
    if temperature is not None:
        inputs["temperature"] = f"{temperature:g}"
    # Which of the training settings are the model's own, and which the run's, makes no difference.
    settings = [
        model[0].model_dump(mode="json", exclude={"train"}),
        model[1].model_dump(mode="json"),
    ]
    steps = total_steps(model[1], labeled.rows)
    return Job(
        model=settings[0],
        train=settings[1],
        labeled=labeled.path,
        validation=data.validation.path if data.validation else None,
        given_temperature=temperature,
        selection=pseudo.path if pseudo else None,
        soft=bool(pseudo and pseudo.facts.get("targets", "soft") == "soft"),
        temperature=float(pseudo.facts.get("temperature", 1.0)) if pseudo else 1.0,
        start_from=data.teacher.path if data.teacher else None,
        seed=seed,
        out="",
        checkpoint="",
        fingerprint=store.fingerprint("train", settings, inputs, seed),
        steps=steps,
        loaders=workers.loaders,
        in_turn=workers.in_turn,
        threads=max(1, int(workers.cpus)),
        device=workers.device,
        lanes=workers.count * model[1].accumulate,
        trained_groups=0,
        provenance={**provenance, **{k: v for k, v in inputs.items() if v}, "steps": steps},
    )


def _fine_tuning(
    job: Job, model: ModelConfig, train: TrainConfig, start: str, rows: int, workers: int
) -> Job:
    """What comes after a training: fewer layers, larger and clean labeled images."""
    assert model.fixres is not None
    trained = open_bundle(start).provenance
    before = {name: trained[name] for name in ("seconds", "seconds_waited")}
    if train.precision == "auto":  # one training, one precision
        train = train.model_copy(update={"precision": trained["precision"]})
    steps = total_steps(train, rows)
    return replace(
        job,
        model=model.model_dump(mode="json"),
        train=train.model_dump(mode="json"),
        selection=None,
        start_from=start,
        checkpoint=store.join(job.checkpoint.rpartition("/")[0], "fixres.pt"),
        steps=steps,
        lanes=workers * train.accumulate,
        trained_groups=model.fixres.trained_groups,
        provenance={**job.provenance, "fixres_steps": steps, **before},
    )


def _after(steps: int, metrics: MetricsSink | None) -> MetricsSink | None:
    """A sink whose steps follow those of the training."""
    return None if metrics is None else lambda step, values: metrics(steps + step, values)
