"""What one training worker does, from the first batch to the published bundle.

Labeled and pseudo-labeled images go through one forward pass. Everything random in step s (order,
augmentation, dropout) follows from (seed, s), so a checkpoint is model, averaged weights, optimizer
and step; a training that was killed goes on as if it hadn't been.
"""

import io
import math
import time
from contextlib import nullcontext
from functools import partial
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn

from ns_ray import storage
from ns_ray.bundle import load_weights, preprocessing, save
from ns_ray.config import ModelConfig, TrainConfig, validate
from ns_ray.errors import StageError
from ns_ray.images import Normalize
from ns_ray.job import Job, Tell
from ns_ray.loader import Loader
from ns_ray.losses import mixed_loss
from ns_ray.models import (
    bf16_is_faster,
    build_noised,
    decay_groups,
    freeze,
    fused_arguments,
    recompute_activations,
    statistics_kept,
)
from ns_ray.rows import Sizes
from ns_ray.values import Corpus, open_corpus

COMPILE_PAYS_SECONDS = 1800.0
"""torch.compile takes one to three minutes for a forward and a backward pass of the larger models
and gains a tenth or more: worth it above this."""


def train_model(job: Job, tell: Tell) -> None:
    """Train as told by `job`; rank 0 calls `tell` with how it goes."""
    train = validate(TrainConfig, job.train)
    world = ray.train.get_context().get_world_size()
    rank = ray.train.get_context().get_world_rank()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(job.threads)
    corpus = open_corpus(job.labeled)

    learner = Learner(job, train, corpus, device)
    first = learner.restore()
    bf16 = train.precision == "bf16" or (
        train.precision == "auto" and bf16_is_faster(learner.model, device)
    )
    loader = Loader(
        job, train, corpus, size=learner.size, rank=rank, world=world, first=first, device=device
    )
    model: Any = learner.model
    if world > 1:
        model = ray.train.torch.prepare_model(model, move_to_device=False)
    report = Report(tell, job, train, rank, world, first, loader)
    compiling = Compiling(learner.model, train, job.steps, first, world, device)
    weight = train.unlabeled_ratio if train.unlabeled_weight is None else train.unlabeled_weight

    learner.train_mode()
    for step in range(first, job.steps):
        learner.schedule.step_update(step)
        learner.optimizer.zero_grad(set_to_none=True)
        for index, batch in enumerate(loader.step()):
            images = learner.normalize(batch.images)
            learner.noise_rows(loader.sizes)
            # A lane's dropout is the same, however many workers share the lanes.
            torch.manual_seed(hash((job.seed, step, rank + index * world)) % 2**63)
            last = index == job.accumulate - 1
            with nullcontext() if last or world == 1 else model.no_sync():
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    logits = model(images)
                loss, labeled_loss, pseudo_loss = mixed_loss(
                    logits.float(),
                    batch.labels,
                    batch.targets,
                    weight=weight,
                    label_smoothing=train.label_smoothing,
                    labeled_weight=train.labeled_weight,
                )
                with statistics_kept(learner.recomputed_norms):
                    torch.autograd.backward(loss / job.accumulate)
            report.add(loss, labeled_loss, pseudo_loss)
        if train.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(learner.model.parameters(), train.clip_grad)
        learner.optimizer.step()
        learner.ema.update(learner.model, step=step)

        done = step + 1
        seconds_left = compiling.after(done)
        if seconds_left is not None and rank == 0:
            tell(f"compiling the model: {seconds_left:,.0f} s of work left pay for it")
        if done % train.log_steps == 0 or done == job.steps:
            checkpoint_due = report.send(done, learner.optimizer.param_groups[0]["lr"])
            if checkpoint_due and done < job.steps and rank == 0:
                learner.checkpoint(done)
    loader.close()
    if rank == 0:
        facts = {**report.facts(), "precision": "bf16" if bf16 else "fp32"}
        learner.publish(corpus.classes, facts)
    if world > 1:
        dist.barrier()


class Learner:
    """The model, its averaged weights, the optimizer and the schedule.

    Attributes:
        model: the model that is trained.
        ema: its averaged weights: what is evaluated, and what teaches.
        size: side of the input in pixels.
        recomputed_norms: see `models.statistics_kept`.
        normalize: makes pixels what the model takes.
    """

    def __init__(self, job: Job, train: TrainConfig, corpus: Corpus, device: torch.device) -> None:
        self._job, self._train, self._device = job, train, device
        config = validate(ModelConfig, job.model)
        torch.manual_seed(job.seed)
        pretrained = config.pretrained or ""
        folder = job.start_from or (pretrained if "/" in pretrained else None)
        if folder:
            config = config.model_copy(update={"pretrained": None})
        model, self._live = build_noised(config, train.noise, len(corpus.classes))
        if folder:
            load_weights(model, folder)
        self.recomputed_norms = recompute_activations(model) if train.grad_checkpointing else []
        self._frozen = freeze(model, job.trained_groups) if job.trained_groups else []
        self.model = model.to(device).to(memory_format=torch.channels_last)
        spec = preprocessing(model)
        self.size = spec.size
        self.normalize = Normalize(spec, device)
        self.optimizer = create_optimizer_v2(
            self.model,
            opt=train.optimizer,
            lr=train.lr,
            weight_decay=train.weight_decay,
            param_group_fn=partial(decay_groups, weight_decay=train.weight_decay)
            if train.decay_biases
            else None,
            **fused_arguments(train.optimizer, device),
            **train.optimizer_args,
        )
        constant = train.schedule == "constant"
        self.schedule, _ = create_scheduler_v2(
            self.optimizer,
            sched="step" if constant else train.schedule,
            num_epochs=train.epochs,
            decay_epochs=train.decay_epochs,
            decay_rate=1.0 if constant else train.decay_rate,
            warmup_epochs=train.warmup_epochs,
            warmup_lr=0.0,
            step_on_epochs=False,
            updates_per_epoch=corpus.rows / train.batch_size,
        )
        # min(decay, t / (9 + t)): the ramp (1 + t) / (10 + t) of the reference code, t two steps
        # behind. Unramped, the average stays near the first weights for long.
        self.ema = ModelEmaV3(
            self.model, decay=train.ema_decay, use_warmup=True, warmup_gamma=9, warmup_power=1
        )

    def train_mode(self) -> None:
        """Training mode, but for frozen layers: no noise in them, and their BatchNorm keeps its
        statistics."""
        self.model.train()
        for module in self._frozen:
            module.eval()

    def noise_rows(self, sizes: Sizes) -> None:
        """Say which rows of the next batch have dropout and stochastic depth."""
        for attribute, name in (("dropout", "dropout"), ("depth", "stochastic_depth")):
            on = [name not in self._train.noise.off_labeled] * sizes.labeled
            on += [name not in self._train.noise.off_unlabeled] * sizes.pseudo
            live = None if all(on) else torch.tensor(on, device=self._device)
            setattr(self._live, attribute, live)

    def restore(self) -> int:
        """Load the last checkpoint, if there is one; the number of steps it has behind it."""
        if not storage.exists(self._job.checkpoint):
            return 0
        data = io.BytesIO(storage.read_bytes(self._job.checkpoint))
        state = torch.load(data, map_location=self._device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])

    def checkpoint(self, step: int) -> None:
        """Save all that the steps from here on depend on."""
        state = {
            "step": step,
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        storage.write_bytes(self._job.checkpoint, buffer.getvalue())

    def publish(self, classes: tuple[str, ...], facts: dict[str, Any]) -> None:
        """Write the bundle."""
        model = self.ema.module
        model.pretrained_cfg = self.model.pretrained_cfg
        save(
            model,
            self._job.out,
            classes=classes,
            fingerprint=self._job.fingerprint,
            provenance={**self._job.provenance, **facts},
        )


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
        if self._world > 1:
            shared = torch.tensor([left], device=self._device)
            dist.broadcast(shared, 0)
            left = shared.item()
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
    ) -> None:
        self._tell, self._job, self._train, self._loader = tell, job, train, loader
        self._rank, self._world, self._first = rank, world, first
        self._sums: torch.Tensor | None = None
        self._sent_step = first
        self._started = self._sent = self._saved = time.monotonic()

    def add(self, *losses: torch.Tensor) -> None:
        """Count the loss and its two terms of one forward pass."""
        values = torch.stack([loss.detach() for loss in losses]) / self._job.accumulate
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
        due = torch.tensor(
            [float(now - self._saved >= self._train.checkpoint_seconds)], device=self._sums.device
        )
        if self._world > 1:
            dist.all_reduce(self._sums)
            dist.broadcast(due, 0)
        steps = step - self._sent_step
        loss, labeled, pseudo = (self._sums / self._world / steps).tolist()
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
        if due.item():
            self._saved = now
        return bool(due.item())

    def facts(self) -> dict[str, Any]:
        """Seconds, rate and waiting of this training, for the bundle."""
        seconds = time.monotonic() - self._started
        return {
            "seconds": round(seconds + float(self._job.provenance.get("seconds", 0.0)), 3),
            "images_per_second": round(self._images(self._job.steps - self._first) / seconds, 1),
            "seconds_waited": round(self._loader.waited, 3),
        }

    def _images(self, steps: int) -> int:
        sizes = self._loader.sizes
        return (sizes.labeled + sizes.pseudo) * self._world * self._job.accumulate * steps
