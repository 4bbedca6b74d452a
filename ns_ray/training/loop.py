"""What one training worker does, from the first batch to the published bundle.

Labeled and pseudo-labeled images go through one forward pass. What learns is in learner.py.
"""

import math
import time
from contextlib import closing, nullcontext
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import nn

from ns_ray.compute import Workers, present
from ns_ray.config import TrainConfig, validate
from ns_ray.errors import StageError
from ns_ray.store import open_corpus
from ns_ray.training.job import Job, Tell
from ns_ray.training.learner import Learner, of_rank_0
from ns_ray.training.loader import Loader

COMPILE_PAYS_SECONDS = 1800.0
"""torch.compile takes one to three minutes for a forward and a backward pass of the larger models
and gains a tenth or more: worth it above this."""


def train_model(job: Job, tell: Tell, workers: Workers) -> None:
    """Train as told by `job`; rank 0 calls `tell` with how it goes.

    Returns early, from a checkpoint on which others go on, when a node of these workers is about to
    go, or when they are fewer than the training has and there is room for all again.

    Args:
        job: what to do.
        tell: takes what is to be shown.
        workers: all of the training; there may be fewer at the moment.
    """
    train = validate(TrainConfig, job.train)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device, corpus = _device(job), open_corpus(job.labeled)
    learner = Learner(job, train, corpus, device, world)
    first = _begin(learner, tell if rank == 0 else _silent)
    loader = Loader(
        job, train, corpus, size=learner.size, rank=rank, world=world, first=first, device=device
    )
    model: Any = learner.model
    if world > 1:
        model = ray.train.torch.prepare_model(model, move_to_device=False)
    report = Report(tell, job, train, rank, world, first, loader, learner)
    moving = Moving(workers, rank, world, device)
    compiling = Compiling(learner.model, train, job.steps, first, world, device)
    if train.compile == "always":
        learner.note(compiled_from=first)

    own = range(rank, job.lanes, world)
    learner.train_mode()
    with closing(loader):
        for step in range(first, job.steps):
            learner.schedule.step_update(step)
            learner.optimizer.zero_grad(set_to_none=True)
            for lane, batch in zip(own, loader.step(), strict=True):
                # A lane's dropout is the same, however many workers share the lanes.
                torch.manual_seed(hash((job.seed, step, lane)) % 2**63)
                with nullcontext() if lane == own[-1] or world == 1 else model.no_sync():
                    report.add(*learner.backward(model, batch, loader.sizes))
            learner.update(step)

            done = step + 1
            if (left := compiling.after(done)) is not None:
                learner.note(compiled_from=done)
                if rank == 0:
                    tell(f"compiling the model: {left:,.0f} s of work left pay for it")
            if done % train.log_steps == 0 or done == job.steps:
                checkpoint_due = report.send(done, learner.optimizer.param_groups[0]["lr"])
                leaves = done < job.steps and moving.due(checkpoint_due)
                if (checkpoint_due or leaves) and done < job.steps and rank == 0:
                    learner.checkpoint(done, seconds=report.seconds, waited=report.waited)
                if leaves:
                    return
    if rank == 0 and (said := learner.publish(corpus.classes, report.facts())):
        tell(said)
    if world > 1:
        dist.barrier()


def _begin(learner: Learner, tell: Tell) -> int:
    """Go on from the last checkpoint, or give pretrained weights a fitted classifier; the steps
    that are done."""
    first = learner.restore()
    for line in learner.damaged:
        tell(line)
    if first == 0 and (started := learner.start_head()):
        tell(started)
    if kept := learner.other_precision():
        tell(kept)
    return first


def _silent(said: object) -> None:
    """Rank 0 says it."""


def _device(job: Job) -> torch.device:
    """Where this worker computes."""
    if job.device == "cuda":
        # Of a worker, the GPU that it was given; in the driver's process, any that is there.
        device: torch.device = ray.train.torch.get_device()
        return device
    torch.set_num_threads(job.threads)
    return torch.device("cpu")


class Moving:
    """Whether the workers leave their nodes, for others."""

    SECONDS = 5.0
    """Between two looks: of the two minutes that a cloud gives notice, few are lost."""

    def __init__(self, workers: Workers, rank: int, world: int, device: torch.device) -> None:
        self._workers, self._rank, self._world, self._device = workers, rank, world, device
        self._looked = time.monotonic()

    def due(self, checkpoint_due: bool) -> bool:
        """Ask on all workers alike; the same answer on all of them.

        Args:
            checkpoint_due: whether one is written now, so that leaving costs no step.
        """
        if self._workers.in_process:
            return False
        looks = float(time.monotonic() - self._looked >= self.SECONDS)
        if of_rank_0(looks, self._world, self._device):
            self._looked = time.monotonic()
            if ray.train.get_preemption_info() is not None:
                return True
        if not checkpoint_due or self._world == self._workers.count:
            return False
        each = self._workers.cpus, self._workers.gpus
        room = present(own=True).holds(*each) if self._rank == 0 else 0
        return bool(of_rank_0(float(room >= self._workers.count), self._world, self._device))


class Compiling:
    """Compiles the model in the middle of a training, once it is known to pay: after some steps
    have been measured, all workers take rank 0's time."""

    WARM, MEASURED = 10, 20

    def __init__(
        self,
        model: nn.Module,
        train: TrainConfig,
        steps: int,
        first: int,
        world: int,
        device: torch.device,
    ) -> None:
        self._model, self._steps, self._first = model, steps, first
        self._world, self._device = world, device
        self._waiting = train.compile == "auto" and device.type == "cuda"
        self._started = 0.0
        if train.compile == "always":
            model.compile()

    def after(self, done: int) -> float | None:
        """Call after each step with the number of steps done. Returns the seconds of work that are
        left when it has just decided to compile."""
        if not self._waiting or done - self._first not in (self.WARM, self.WARM + self.MEASURED):
            return None
        torch.cuda.synchronize(self._device)
        now = time.monotonic()
        if done - self._first == self.WARM:
            self._started = now
            return None
        self._waiting = False
        left = (now - self._started) / self.MEASURED * (self._steps - done)
        left = of_rank_0(left, self._world, self._device)
        if left < COMPILE_PAYS_SECONDS:
            return None
        self._model.compile()
        return left


class Report:
    """Sums up losses over workers and sends them to the driver."""

    def __init__(
        self,
        tell: Tell,
        job: Job,
        train: TrainConfig,
        rank: int,
        world: int,
        first: int,
        loader: Loader,
        learner: Learner,
    ) -> None:
        self._tell, self._job, self._train, self._loader = tell, job, train, loader
        self._before = (learner.seconds, learner.waited)
        self._rank, self._world, self._first = rank, world, first
        self._sums: torch.Tensor | None = None
        self._sent_step = first
        self._started = self._sent = self._saved = time.monotonic()

    def add(self, *losses: torch.Tensor) -> None:
        """Count the loss and its two terms of one forward pass."""
        values = torch.stack([loss.detach() for loss in losses])
        self._sums = values if self._sums is None else self._sums + values

    def send(self, step: int, lr: float) -> bool:
        """Tell the driver how it goes; the same answer on all workers.

        Returns:
            Whether a checkpoint is due.

        Raises:
            StageError: the loss is not finite.
        """
        assert self._sums is not None
        now = time.monotonic()
        due = float(now - self._saved >= self._train.checkpoint_seconds)
        due = of_rank_0(due, self._world, self._sums.device)
        if self._world > 1:
            dist.all_reduce(self._sums)
        steps = step - self._sent_step
        loss, labeled, pseudo = (self._sums / self._job.lanes / steps).tolist()
        if not math.isfinite(loss):
            raise StageError(
                f"the loss became {loss} before step {step}; lower train.lr ({self._train.lr}) "
                "or set train.clip_grad"
            )
        if self._rank == 0:
            values = {
                "train_loss": loss,
                "labeled_loss": labeled,
                "pseudo_loss": pseudo,
                "lr": lr,
                "images_per_second": self._images(steps) / (now - self._sent),
                "seconds_waited": self._loader.waited,
                "resumed_at": float(self._first),
            }
            self._tell((step, values))
        self._sums, self._sent_step, self._sent = None, step, now
        if due:
            self._saved = now
        return bool(due)

    @property
    def seconds(self) -> float:
        """What the steps so far have taken, by earlier attempts too; not what they did after their
        last checkpoint, which is lost."""
        return self._before[0] + time.monotonic() - self._started

    @property
    def waited(self) -> float:
        """Those of these seconds in which the model waited for images."""
        return self._before[1] + self._loader.waited

    def facts(self) -> dict[str, Any]:
        """Seconds, rate and waiting of this training, for the bundle."""
        before = self._job.provenance  # that of the training, where this is its fine-tuning
        return {
            "seconds": round(self.seconds + before.get("seconds", 0.0), 3),
            "images_per_second": round(self._images(self._job.steps) / self.seconds, 1),
            "seconds_waited": round(self.waited + before.get("seconds_waited", 0.0), 3),
        }

    def _images(self, steps: int) -> int:
        sizes = self._loader.sizes
        return (sizes.labeled + sizes.pseudo) * self._job.lanes * steps
