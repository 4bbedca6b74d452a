"""Training, for teacher, student and control arm alike: one `fit`, run by Ray Train.

This is the driver's side: what to train, with which resources, and what to do when a worker is
lost. What a worker does is in loop.py.
"""

import itertools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.util.queue import Empty, Queue

from ns_ray import storage, tasks
from ns_ray.config import ModelConfig, TrainConfig, fixres_config
from ns_ray.errors import ConfigError
from ns_ray.job import Job, Tell, lane_sizes, total_steps
from ns_ray.log import Meter, progress, say
from ns_ray.resources import Workers
from ns_ray.values import Bundle, Corpus, Selection, open_bundle

MetricsSink = Callable[[int, Mapping[str, float]], None]


def fit(
    model: ModelConfig,
    train: TrainConfig,
    *,
    labeled: Corpus,
    pseudo: Selection | None = None,
    teacher: Bundle | None = None,
    seed: int,
    workers: Workers,
    max_failures: int = 3,
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
        pseudo: the selected pseudo-labels, or None for a teacher or control arm.
        teacher: start weights where `model.init` is `teacher`.
        seed: decides weights, order, augmentation and dropout.
        workers: DDP workers and their resources.
        max_failures: restarts after a lost worker or node; -1 for no limit.
        checkpoints: folder of the training state.
        out: folder of the bundle.
        title: name of the progress line.
        provenance: facts for the bundle.
        metrics: called with (step, values) as they come.

    Raises:
        ConfigError: the batch cannot be shared among the workers, the model cannot be built, or it
            is to start from a teacher and there is none.
        StageError: training failed or diverged. Running it again continues.
    """
    lane_sizes(train, workers.count, pseudo is not None)
    job = _job(
        (model, train), (labeled, pseudo, _start(model, teacher, title)), workers, seed, provenance
    )
    folder = storage.join(checkpoints, job.fingerprint)
    job = replace(job, out=out, checkpoint=storage.join(folder, "last.pt"))
    if storage.already(out, job.fingerprint) is not None:
        return open_bundle(out)
    finer = fixres_config(model, train)
    if finer is not None:
        lane_sizes(finer[1], workers.count, False)
        trained = storage.join(folder, "trained")
        if storage.already(trained, job.fingerprint) is None:
            _train(replace(job, out=trained), workers, max_failures, title, metrics)
        metrics = _after(job.steps, metrics)
        job, title = _fine_tuning(job, *finer, trained, labeled.rows), f"{title} fixres"
    _train(job, workers, max_failures, title, metrics)
    return open_bundle(out)


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
    data: tuple[Corpus, Selection | None, Bundle | None],
    workers: Workers,
    seed: int,
    provenance: Mapping[str, Any],
) -> Job:
    """A training as plain values, but for the places that it writes to."""
    labeled, pseudo, start = data
    inputs = {
        name: made.fingerprint if made else None
        for name, made in zip(("labeled", "pseudo", "teacher"), data, strict=True)
    }
    settings = [config.model_dump(mode="json") for config in model]
    steps = total_steps(model[1], labeled.rows)
    return Job(
        model=settings[0],
        train=settings[1],
        labeled=labeled.path,
        selection=pseudo.path if pseudo else None,
        soft=bool(pseudo and pseudo.facts.get("targets", "soft") == "soft"),
        temperature=float(pseudo.facts.get("temperature", 1.0)) if pseudo else 1.0,
        start_from=start.path if start else None,
        seed=seed,
        out="",
        checkpoint="",
        fingerprint=storage.fingerprint("train", settings, inputs, seed),
        steps=steps,
        loaders=workers.loaders,
        in_turn=workers.in_turn,
        threads=max(1, int(workers.cpus)),
        accumulate=model[1].accumulate,
        trained_groups=0,
        provenance={**provenance, **{k: v for k, v in inputs.items() if v}, "steps": steps},
    )


def _fine_tuning(job: Job, model: ModelConfig, train: TrainConfig, start: str, rows: int) -> Job:
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
        checkpoint=storage.join(job.checkpoint.rpartition("/")[0], "fixres.pt"),
        steps=steps,
        accumulate=train.accumulate,
        trained_groups=model.fixres.trained_groups,
        provenance={**job.provenance, "fixres_steps": steps, **before},
    )


def _after(steps: int, metrics: MetricsSink | None) -> MetricsSink | None:
    """A sink whose steps follow those of the training."""
    return None if metrics is None else lambda step, values: metrics(steps + step, values)


def _train(
    job: Job, workers: Workers, max_failures: int, title: str, metrics: MetricsSink | None
) -> None:
    """Run the workers to the end, showing what they report; start again when one was lost."""
    with progress(title, job.steps, "steps") as meter:
        show = _Show(meter, metrics)
        if workers.in_process:
            with tasks.translated(f"training {job.out}", Exception):
                _trainer(job, workers, show).fit()
            return
        rows: Queue = Queue(actor_options={"num_cpus": 0})
        watcher = threading.Thread(target=_watch, args=(rows, show), daemon=True)
        watcher.start()
        try:
            for attempt in itertools.count():
                try:
                    _trainer(job, workers, rows.put).fit()
                    return
                except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
                    if not tasks.lost(error) or 0 <= max_failures <= attempt:
                        raise tasks.ours(error, f"training {job.out}") from error
                    say(f"{title}: lost a worker; going on from the last checkpoint")
        finally:
            rows.put(None)
            watcher.join(timeout=10)
            rows.shutdown()


def _trainer(job: Job, workers: Workers, tell: Tell) -> ray.train.torch.TorchTrainer:
    def train_loop(config: dict[str, Any]) -> None:
        # Imported here: Ray's controller gets this function too, and has no use for torch and timm.
        from ns_ray.loop import train_model

        train_model(config["job"], config["tell"])

    per_worker = {"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})}
    return ray.train.torch.TorchTrainer(
        train_loop,
        train_loop_config={"job": job, "tell": tell},
        scaling_config=ScalingConfig(
            # Zero is Ray Train's local mode: the function runs in this process.
            num_workers=0 if workers.in_process else workers.count,
            use_gpu=workers.gpus > 0,
            resources_per_worker=per_worker,
        ),
        run_config=RunConfig(
            # Our own checkpoints are atomic, Ray's record of them isn't: this folder only holds
            # what Ray insists on writing, and each attempt gets a fresh name.
            name=f"{job.fingerprint}-{time.time_ns():x}",
            storage_path=storage.join(job.checkpoint.rsplit("/", 2)[0], "ray"),
            failure_config=FailureConfig(max_failures=0),
        ),
    )


class _Show:
    """Shows and records what rank 0 reports."""

    def __init__(self, meter: Meter, metrics: MetricsSink | None) -> None:
        self._meter, self._metrics, self._waited = meter, metrics, 0.0

    def __call__(self, row: tuple[int, dict[str, float]] | str) -> None:
        if isinstance(row, str):
            say(f"{self._meter.name}: {row}")
            return
        step, values = row
        meter, waited = self._meter, values["seconds_waited"]
        if meter.done == 0 and values["resumed_at"]:
            meter.skip(int(values["resumed_at"]))
        if step > meter.done:
            meter.add(step - meter.done, waited=max(0.0, waited - self._waited))
            self._waited = waited
            if self._metrics is not None:
                self._metrics(step, values)


def _watch(rows: Queue, show: _Show) -> None:
    """Pass on what comes, until None does."""
    while True:
        try:
            row = rows.get(timeout=60)
        except Empty:
            continue
        except ray.exceptions.RayError:
            return
        if row is None:
            return
        show(row)
