"""The driver's side of Ray Train: workers are started, watched, and started anew if one is lost."""

import itertools
import threading
import time
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.util.queue import Empty, Queue

from ns_ray import store
from ns_ray.compute import Workers, lost, ours, translated
from ns_ray.log import Meter, progress, say
from ns_ray.training.job import Job, MetricsSink, Tell


def run_workers(
    job: Job, workers: Workers, max_failures: int, title: str, metrics: MetricsSink | None
) -> None:
    """Run the workers to the end, showing what they report; start again when one was lost.

    Raises:
        StageError: a training failed, or workers were lost more than `max_failures` times.
    """
    with progress(title, job.steps, "steps") as meter:
        show = _Show(meter, metrics)
        if workers.in_process:
            with translated(f"training {job.out}", Exception):
                make_trainer(job, workers, show).fit()
            return
        rows: Queue = Queue(actor_options={"num_cpus": 0})
        watcher = threading.Thread(target=_watch, args=(rows, show), daemon=True)
        watcher.start()
        try:
            for attempt in itertools.count():
                try:
                    make_trainer(job, workers, rows.put).fit()
                    return
                except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
                    if not lost(error) or 0 <= max_failures <= attempt:
                        raise ours(error, f"training {job.out}") from error
                    say(f"{title}: lost a worker; going on from the last checkpoint")
        finally:
            rows.put(None)
            watcher.join(timeout=10)
            rows.shutdown()


class _Trainer(ray.train.torch.TorchTrainer):  # type: ignore[misc]
    """Ray Train's, but for its handling of Ctrl-C: Ray 2.60 takes over SIGINT in this process and
    never gives it back. An interrupt during the training then ends with exit code 1, and one during
    any later stage aborts a training that has ended, and is lost."""

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave it to the command: KeyboardInterrupt, and the training goes with its driver."""


def make_trainer(job: Job, workers: Workers, tell: Tell) -> ray.train.torch.TorchTrainer:
    """What Ray Train runs for a job: workers that call `loop.train_model`."""

    def train_loop(config: dict[str, Any]) -> None:
        # Imported here: Ray's controller gets this function too, and has no use for torch and timm.
        from ns_ray.training.loop import train_model

        train_model(config["job"], config["tell"])

    per_worker = {"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})}
    return _Trainer(
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
            storage_path=store.join(job.checkpoint.rsplit("/", 2)[0], "ray"),
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
