"""The driver's side of Ray Train: workers are started, watched, and started anew if one is lost."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ns_ray import store
from ns_ray.compute import (
    Workers,
    asked_for,
    enough_memory,
    left_for,
    lost,
    ours,
    translated,
)
from ns_ray.errors import ConfigError, StageError
from ns_ray.log import Meter, progress, say
from ns_ray.training.job import Job, Limits, MetricsSink, Tell
from ns_ray.training.network import NodeNetwork

PATIENCE = 300.0
"""Seconds that a lost node has to come back, before its training goes on without it: what a cloud
takes for a new one at most. Of 0, 120 and 300 the best in simulation (docs/scale.md)."""
NOTICED = 20.0
"""Seconds after which Ray has noticed that a node is gone (measured: 16)."""
ROOM = "raise train.accumulate, which keeps the batch, or set train.grad_checkpointing to true"


def run_workers(
    job: Job, workers: Workers, limits: Limits, title: str, metrics: MetricsSink | None
) -> None:
    """Run the workers to the end, showing what they report. Where one was lost, start again from
    the last checkpoint: all of them, or as many as there is room for.

    Raises:
        StageError: a training failed; workers were lost too often; no node has room for one.
    """
    with progress(title, job.steps, "steps") as meter:
        show = _Show(meter, metrics)
        if workers.in_process:
            with translated(f"training {job.out}", Exception):
                make_trainer(job, workers, show).fit()
            return
        failures, count = 0, workers.count
        while True:
            before, there = meter.done, _nodes()
            try:
                with asked_for(workers, workers.count - count), _told(show) as tell:
                    make_trainer(job, workers, tell, count).fit()
                if store.already(job.out, job.fingerprint) is not None:
                    return
                say(f"{title}: the workers leave their nodes; others go on")
            except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
                failures = 1 if meter.done > before else failures + 1
                if not lost(error) or 0 <= limits.max_failures < failures:
                    raise ours(error, f"training {job.out}") from error
                meter.restarts += 1
                say(f"{title}: lost a worker; going on from the last checkpoint")
                _notice(there)
            count = _room(workers, count, limits, title)


def _room(workers: Workers, before: int, limits: Limits, title: str) -> int:
    """How many workers go on; a line where that changes."""
    try:
        count = left_for(workers, limits.max_wait, PATIENCE)
    except ConfigError as error:
        raise StageError(f"{title}: {error}; the same command continues") from error
    if count != before:
        say(f"{title}: going on with {count} of {workers.count} workers; batches stay as they are")
    return count


def _nodes() -> set[str]:
    """Ids of those that are alive."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _notice(there: set[str]) -> None:
    """Wait until Ray has noticed which node is gone; perhaps only a process is."""
    until = time.monotonic() + NOTICED
    while there <= _nodes() and time.monotonic() < until:
        time.sleep(0.5)


@contextlib.contextmanager
def _told(show: "_Show") -> Iterator[Tell]:
    """What workers call to have something shown. A queue on this node, which is there as long as
    this process, and a new one for each attempt."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    rows: Queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    watcher = threading.Thread(target=_watch, args=(rows, show), daemon=True)
    watcher.start()
    try:
        yield rows.put
    finally:
        with contextlib.suppress(ray.exceptions.RayError):
            rows.put(None)
        watcher.join(timeout=10)
        rows.shutdown()


class _Trainer(ray.train.torch.TorchTrainer):  # type: ignore[misc]
    """Ray Train's, but for its handling of Ctrl-C: Ray 2.60 takes over SIGINT in this process and
    never gives it back. An interrupt during the training then ends with exit code 1, and one during
    any later stage aborts a training that has ended, and is lost."""

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave it to the command: KeyboardInterrupt, and the training goes with its driver."""


def make_trainer(
    job: Job, workers: Workers, tell: Tell, count: int | None = None
) -> ray.train.torch.TorchTrainer:
    """What Ray Train runs for a job: workers that call `loop.train_model`; all of them, or so
    many."""

    def train_loop(config: dict[str, Any]) -> None:
        # Imported here: Ray's controller gets this function too, and has no use for torch and timm.
        from ns_ray.training.loop import train_model

        with enough_memory(f"training {config['job'].out}", ROOM):
            train_model(config["job"], config["tell"], config["workers"])

    # Ray parses URIs in its own way: it gets what we have found.
    records = store.join(job.checkpoint.rsplit("/", 2)[0], "ray")
    fs, folder = store.filesystem(records) if store.is_uri(records) else (None, records)
    per_worker = {"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})}
    return _Trainer(
        train_loop,
        torch_config=NodeNetwork(),
        train_loop_config={"job": job, "tell": tell, "workers": workers},
        scaling_config=ScalingConfig(
            # Zero is Ray Train's local mode: the function runs in this process.
            num_workers=0 if workers.in_process else count or workers.count,
            use_gpu=workers.gpus > 0,
            resources_per_worker=per_worker,
        ),
        run_config=RunConfig(
            # Our own checkpoints are atomic, Ray's record of them isn't: this folder only holds
            # what Ray insists on writing, and each attempt gets a fresh name.
            name=f"{job.fingerprint}-{time.time_ns():x}",
            storage_path=folder,
            storage_filesystem=fs,
            # Whatever happens to workers is dealt with above, where nodes are looked at first.
            failure_config=FailureConfig(
                max_failures=0, controller_failure_limit=0, max_preemption_failures=0
            ),
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
        meter.images_rate = values.get("images_per_second")
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
