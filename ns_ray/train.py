"""Training, for teacher, student and control arm alike: one `fit`, run by Ray Train.

Labeled and pseudo-labeled images go through one forward pass. Everything random in step s (order,
augmentation, dropout) follows from (seed, s), so a checkpoint is model, averaged weights, optimizer
and step; a run that was killed goes on as if it hadn't been.
"""

import io
import itertools
import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.util.queue import Empty, Queue

from ns_ray import storage
from ns_ray.bundle import Bundle, open_bundle
from ns_ray.config import ModelConfig, TrainConfig, validate
from ns_ray.errors import ConfigError, NsRayError, StageError
from ns_ray.log import Meter, progress, say
from ns_ray.resources import Workers
from ns_ray.schema import Corpus, Selection, open_corpus, open_labels, open_selection

MetricsSink = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Job:
    """All that a training worker needs to know, as plain values."""

    model: dict[str, Any]
    train: dict[str, Any]
    labeled: str
    selection: str | None
    soft: bool
    temperature: float
    start_from: str | None
    seed: int
    out: str
    checkpoint: str
    fingerprint: str
    steps: int
    loaders: int
    threads: int
    accumulate: int
    provenance: dict[str, Any]


def lane_sizes(train: TrainConfig, workers: int, pseudo: bool) -> tuple[int, int]:
    """Labeled and pseudo-labeled images of one forward pass.

    Raises:
        ConfigError: the batch cannot be shared out evenly.
    """
    lanes = workers * train.accumulate
    unlabeled = round(train.batch_size * train.unlabeled_ratio) if pseudo else 0
    for size, setting in [(train.batch_size, "batch_size"), (unlabeled, "unlabeled_ratio")]:
        if size % lanes:
            raise ConfigError(
                f"train.{setting} gives {size} images per step, which {workers} workers x "
                f"{train.accumulate} passes cannot share evenly; make it a multiple of {lanes}"
            )
    return train.batch_size // lanes, unlabeled // lanes


def total_steps(train: TrainConfig, labeled_rows: int) -> int:
    """Optimizer steps of a training: epochs count passes over the labeled images."""
    return max(1, math.ceil(train.epochs * labeled_rows / train.batch_size))


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
        ConfigError: the batch cannot be shared among the workers, or the model cannot be built.
        StageError: training failed or diverged. Running it again continues.
    """
    lane_sizes(train, workers.count, pseudo is not None)
    start_from = teacher.path if model.init == "teacher" and teacher is not None else None
    settings = [model.model_dump(mode="json"), train.model_dump(mode="json")]
    inputs = {
        "labeled": labeled.fingerprint,
        "pseudo": pseudo.fingerprint if pseudo else None,
        "teacher": teacher.fingerprint if start_from and teacher else None,
    }
    fingerprint = storage.fingerprint("train", settings, inputs, seed)
    if storage.already(out, fingerprint) is not None:
        return open_bundle(out)
    steps = total_steps(train, labeled.rows)
    job = Job(
        model=settings[0],
        train=settings[1],
        labeled=labeled.path,
        selection=pseudo.path if pseudo else None,
        soft=bool(pseudo and pseudo.facts.get("targets", "soft") == "soft"),
        temperature=float(pseudo.facts.get("temperature", 1.0)) if pseudo else 1.0,
        start_from=start_from,
        seed=seed,
        out=out,
        checkpoint=storage.join(checkpoints, fingerprint, "last.pt"),
        fingerprint=fingerprint,
        steps=steps,
        loaders=workers.loaders,
        threads=max(1, int(workers.cpus)),
        accumulate=train.accumulate,
        provenance={**provenance, **{k: v for k, v in inputs.items() if v}, "steps": steps},
    )
    _train(job, workers, max_failures, title, metrics)
    return open_bundle(out)


def _train(
    job: Job, workers: Workers, max_failures: int, title: str, metrics: MetricsSink | None
) -> None:
    """Run the workers to the end, showing what they report; start again when one was lost."""
    rows: Queue = Queue(actor_options={"num_cpus": 0})
    with progress(title, job.steps, "steps") as meter:
        watcher = threading.Thread(target=_watch, args=(rows, meter, metrics), daemon=True)
        watcher.start()
        try:
            for attempt in itertools.count():
                try:
                    return _trainer(job, workers, rows).fit()
                except ray.train.TrainingFailedError as error:
                    if not _lost_worker(error) or 0 <= max_failures <= attempt:
                        raise _explain(error, job) from error
                    say(f"{title}: lost a worker; going on from the last checkpoint")
        finally:
            rows.put(None)
            watcher.join(timeout=10)
            rows.shutdown()


def _trainer(job: Job, workers: Workers, rows: Queue) -> ray.train.torch.TorchTrainer:
    per_worker = {"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})}
    return ray.train.torch.TorchTrainer(
        train_loop,
        train_loop_config={"job": vars(job), "rows": rows},
        scaling_config=ScalingConfig(
            num_workers=workers.count, use_gpu=workers.gpus > 0, resources_per_worker=per_worker
        ),
        run_config=RunConfig(
            # Our own checkpoints are atomic, Ray's record of them isn't: this folder only holds
            # what Ray insists on writing, and each attempt gets a fresh name.
            name=f"{job.fingerprint}-{time.time_ns():x}",
            storage_path=storage.join(job.checkpoint.rsplit("/", 2)[0], "ray"),
            failure_config=FailureConfig(max_failures=0),
        ),
    )


def _failures(error: Exception) -> list[BaseException]:
    """What went wrong in each worker."""
    found = getattr(error, "worker_failures", None) or {}
    return [getattr(failure, "cause", None) or failure for failure in found.values()] or [error]


def _lost_worker(error: Exception) -> bool:
    """Whether a process or node died, rather than code of ours failing."""
    return any(isinstance(failure, ray.exceptions.RayError) for failure in _failures(error))


def _watch(rows: Queue, meter: Meter, metrics: MetricsSink | None) -> None:
    """Show and record what rank 0 reports, until None comes."""
    waited = 0.0
    while True:
        try:
            row = rows.get(timeout=60)
        except Empty:
            continue
        except ray.exceptions.RayError:
            return
        if row is None:
            return
        step, values = row
        if meter.done == 0 and values["resumed_at"]:
            meter.skip(int(values["resumed_at"]))
        if step > meter.done:
            meter.add(step - meter.done, waited=max(0.0, values["seconds_waited"] - waited))
            waited = values["seconds_waited"]
            if metrics is not None:
                metrics(step, values)


def _explain(error: Exception, job: Job) -> NsRayError:
    """The error of ours that a worker raised, or a StageError that quotes the worker."""
    for failure in _failures(error):
        if isinstance(failure, NsRayError):
            return failure
    text = str(_failures(error)[0]).strip().splitlines()
    reason = text[-1] if text else type(error).__name__
    return StageError(
        f"training {job.out} failed: {reason}; run the same command again to continue"
    )


def train_loop(config: dict[str, Any]) -> None:
    """What one Ray Train worker does: sections for model, data, resume, loop, result."""
    import torch
    import torch.distributed as dist
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import ModelEmaV3

    from ns_ray.bundle import load_weights, preprocessing, save
    from ns_ray.loader import Loader, Sizes
    from ns_ray.losses import mixed_loss, sharpen
    from ns_ray.models import build_noised
    from ns_ray.stream import Source

    job = Job(**config["job"])
    rows: Queue = config["rows"]
    train = validate(TrainConfig, job.train)
    model_config = validate(ModelConfig, job.model)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(job.threads)
    started = time.monotonic()

    # Model
    labeled = open_corpus(job.labeled)
    torch.manual_seed(job.seed)
    pretrained = model_config.pretrained or ""
    from_folder = job.start_from or (pretrained if "/" in pretrained else None)
    if from_folder:
        model_config = model_config.model_copy(update={"pretrained": None})
    raw, live = build_noised(model_config, train.noise, len(labeled.classes))
    if from_folder:
        load_weights(raw, from_folder, len(labeled.classes))
    raw = raw.to(device, memory_format=torch.channels_last)
    spec = preprocessing(raw)
    optimizer = create_optimizer_v2(
        raw, opt=train.optimizer, lr=train.lr, weight_decay=train.weight_decay, **train.optimizer_args
    )
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="step" if train.schedule == "constant" else train.schedule,
        num_epochs=train.epochs,
        decay_epochs=train.decay_epochs,
        decay_rate=1.0 if train.schedule == "constant" else train.decay_rate,
        warmup_epochs=train.warmup_epochs,
        warmup_lr=0.0,
        step_on_epochs=False,
        updates_per_epoch=labeled.rows / train.batch_size,
    )
    # min(decay, t / (9 + t)): TensorFlow's ramp (1 + t) / (10 + t), which the reference code uses.
    ema = ModelEmaV3(raw, decay=train.ema_decay, use_warmup=True, warmup_gamma=9, warmup_power=1)

    # Resume
    first = 0
    if storage.exists(job.checkpoint):
        state = torch.load(
            io.BytesIO(storage.read_bytes(job.checkpoint)), map_location=device, weights_only=True
        )
        raw.load_state_dict(state["model"])
        ema.module.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        first = int(state["step"])
    model = ray.train.torch.prepare_model(raw, move_to_device=False) if world > 1 else raw

    # Data
    selection = open_selection(job.selection) if job.selection else None
    pseudo = None
    if selection is not None:
        labels = open_labels(selection.labels) if job.soft else None
        pseudo = Source(open_corpus(selection.corpus), selection, labels, job.soft)
    sizes = Sizes(*lane_sizes(train, world, pseudo is not None), spec.size)
    lanes = world * job.accumulate
    loaders = [
        Loader(
            Source(labeled), pseudo, sizes, train.noise,
            lane=lane, lanes=lanes, start=first, seed=job.seed, processes=job.loaders,
        )
        for lane in range(rank, lanes, world)
    ]  # fmt: skip
    mean, std = (
        torch.tensor(v, device=device).view(1, 3, 1, 1) * 255.0 for v in (spec.mean, spec.std)
    )
    weight = train.unlabeled_ratio if train.unlabeled_weight is None else train.unlabeled_weight
    noised = {
        name: torch.tensor([name not in train.noise.off_labeled] * sizes.labeled
                           + [name not in train.noise.off_unlabeled] * sizes.pseudo, device=device)
        for name in ("dropout", "stochastic_depth")
    }  # fmt: skip
    live.dropout = None if bool(noised["dropout"].all()) else noised["dropout"]
    live.depth = None if bool(noised["stochastic_depth"].all()) else noised["stochastic_depth"]
    bf16 = train.precision == "bf16" or (train.precision == "auto" and device.type == "cuda")

    # Loop
    model.train()
    sums = torch.zeros(3, device=device)
    logged, saved, waited = first, time.monotonic(), 0.0
    since = time.monotonic()
    for step in range(first, job.steps):
        scheduler.step_update(step)
        optimizer.zero_grad(set_to_none=True)
        for index, loader in enumerate(loaders):
            waiting = time.monotonic()
            batch = next(loader)
            waited += time.monotonic() - waiting
            images = torch.tensor(batch.images).to(device, non_blocking=True).permute(0, 3, 1, 2)
            images = images.to(torch.float32, memory_format=torch.channels_last)
            images = (images - mean) / std
            targets = None
            if batch.targets is not None:
                targets = torch.tensor(batch.targets, device=device)
                targets = sharpen(targets, job.temperature) if job.soft else targets
            # The same noise in every run of this step, however many workers share the lanes.
            torch.manual_seed(hash((job.seed, step, rank + index * world)) % 2**63)
            last = index == len(loaders) - 1
            quiet = nullcontext() if last or world == 1 else model.no_sync()
            with quiet:
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    logits = model(images)
                loss, labeled_loss, pseudo_loss = mixed_loss(
                    logits.float(), torch.tensor(batch.labels, device=device), targets,
                    weight=weight, label_smoothing=train.label_smoothing,
                )  # fmt: skip
                (loss / len(loaders)).backward()
            sums += torch.stack([loss, labeled_loss, pseudo_loss]).detach() / len(loaders)
        if train.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(raw.parameters(), train.clip_grad)
        optimizer.step()
        ema.update(raw, step=step)

        done = step + 1
        if done % train.log_steps and done != job.steps:
            continue
        due = torch.tensor([float(time.monotonic() - saved >= train.checkpoint_seconds)], device=device)
        if world > 1:
            dist.all_reduce(sums)
            dist.broadcast(due, 0)
        mean_losses = (sums / world / (done - logged)).tolist()
        if not math.isfinite(mean_losses[0]):
            raise StageError(
                f"the loss became {mean_losses[0]} before step {done}; lower train.lr "
                f"({train.lr}) or set train.clip_grad"
            )
        if rank == 0:
            elapsed = time.monotonic() - since
            values = {
                "train_loss": mean_losses[0],
                "labeled_loss": mean_losses[1],
                "pseudo_loss": mean_losses[2],
                "lr": optimizer.param_groups[0]["lr"],
                "images_per_second": (sizes.labeled + sizes.pseudo) * lanes * (done - logged) / elapsed,
                "seconds_waited": waited,
                "resumed_at": first,
            }
            rows.put((done, values))
        sums.zero_()
        logged, since = done, time.monotonic()
        if due.item() and done != job.steps:
            if rank == 0:
                buffer = io.BytesIO()
                state = {
                    "step": done,
                    "model": raw.state_dict(),
                    "ema": ema.module.state_dict(),
                    "optimizer": optimizer.state_dict(),
                }
                torch.save(state, buffer)
                storage.write_bytes(job.checkpoint, buffer.getvalue())
            saved = time.monotonic()

    # Result
    for loader in loaders:
        loader.close()
    if rank == 0:
        ema.module.pretrained_cfg = raw.pretrained_cfg
        facts = {**job.provenance, "seconds": round(time.monotonic() - started, 3)}
        save(ema.module, job.out, classes=labeled.classes, fingerprint=job.fingerprint, provenance=facts)
    if world > 1:
        dist.barrier()

