"""What learns on a training worker: model, averaged weights, optimizer, and their checkpoint.

Everything random in step s (order, augmentation, dropout) follows from (seed, s), so a checkpoint
is model, averaged weights, optimizer and step, and what the machine has decided: a training that
was killed goes on as if it hadn't been.
"""

import math
import platform
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from ns_ray.config import ModelConfig, TrainConfig, validate
from ns_ray.data import Normalize
from ns_ray.errors import DamagedFileError
from ns_ray.model import (
    batch_norms,
    build_noised,
    decay_groups,
    freeze,
    fused_arguments,
    load_weights,
    precision_for,
    preprocessing,
    recompute_activations,
    save,
    statistics_kept,
)
from ns_ray.store import Corpus, Count, Seconds, holding, open_corpus, open_selection
from ns_ray.training.calibration import calibrate, divide
from ns_ray.training.checkpoints import Checkpoints
from ns_ray.training.head import Head, clearly_better, start_head
from ns_ray.training.job import Job
from ns_ray.training.loader import DeviceBatch
from ns_ray.training.losses import balanced_weights, dense, log_prior, mixed_loss
from ns_ray.training.mixing import mix
from ns_ray.training.rows import Sizes


@dataclass(frozen=True)
class _State:
    """What a checkpoint holds; older ones only what has no default."""

    step: Count
    model: dict[str, Any]
    ema: dict[str, Any]
    optimizer: dict[str, Any]
    precision: Literal["fp32", "bf16"] = "fp32"
    made_on: list[dict[str, Any]] = field(default_factory=list)
    seconds: Seconds = 0.0
    waited: Seconds = 0.0


HEAD_ALONE = (
    "held-out images clearly prefer the fitted classifier on frozen features, which is taken"
)


class Learner:
    """The model, its averaged weights, the optimizer and the schedule.

    Attributes:
        model: the model that is trained.
        ema: its averaged weights: what is evaluated, and what teaches.
        size: side of the input in pixels.
        precision: fp32 or bf16: what forward passes compute in, from the first step to the last.
        made_on: what the weights depend on besides settings and data, for each stretch of steps
            since it changed: device, workers, threads, from which step on the model is compiled.
        seconds, waited: seconds of work behind the last checkpoint, by all attempts so far, and
            those of them in which the model waited for images.
        damaged: a line for people about each checkpoint that could not be used.
    """

    def __init__(
        self, job: Job, train: TrainConfig, corpus: Corpus, device: torch.device, world: int = 1
    ) -> None:
        self._job, self._train, self._corpus, self._device = job, train, corpus, device
        self._world = world
        self._config = config = validate(ModelConfig, job.model)
        torch.manual_seed(job.seed)
        folder = job.start_from or config.start_folder
        if folder:
            config = config.model_copy(update={"pretrained": None})
        model, self._live = build_noised(config, train.noise, len(corpus.classes))
        if folder:
            load_weights(model, folder)
        self._recomputed_norms = recompute_activations(model) if train.grad_checkpointing else []
        self._fresh_head = bool(config.pretrained) and not folder
        self._frozen = freeze(model, job.trained_groups) if job.trained_groups else []
        if train.batch_norm == "kept":
            self._frozen += batch_norms(model)
        self.model = model.to(device).to(memory_format=torch.channels_last)
        spec = preprocessing(model)
        self.size = spec.size
        self._normalize = Normalize(spec, device)
        self.precision = precision_for(train.precision, self.model, device)
        self.made_on: list[dict[str, Any]] = []
        self.seconds = self.waited = 0.0
        self._checkpoints = Checkpoints(job.checkpoint)
        self.damaged: list[str] = []
        self.optimizer = make_optimizer(self.model, train, device)
        self.schedule = make_schedule(self.optimizer, train, corpus.rows)
        self.ema = average_of(self.model, train)
        self._weights: torch.Tensor | None = None
        if train.class_weights is not None:
            self._weights = balanced_weights(corpus.class_counts).to(device)
        self._priors: list[torch.Tensor] = []
        if train.logit_adjustment:
            labeled = corpus.class_counts
            priors = [log_prior(labeled)]
            if job.selection is not None:
                # A class that the teacher did not find in the pile may well be there.
                found = open_selection(job.selection).class_counts
                priors.append(log_prior(found, at_least=labeled))
            self._priors = [train.logit_adjustment * prior.to(device) for prior in priors]

    def start_head(self) -> str | None:
        """Give pretrained weights a fitted classifier, before the first step; a line for people
        where that was done."""
        if not self._fresh_head:
            return None
        head = self._fitted(self.model)
        if head is None:
            return None
        self.ema.set(self.model)
        return str(head)

    def train_mode(self) -> None:
        """Training mode, but for frozen layers (no noise in them) and BatchNorms that keep their
        statistics."""
        self.model.train()
        for module in self._frozen:
            module.eval()

    def backward(
        self, model: Any, batch: DeviceBatch, sizes: Sizes
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Add the gradients of one forward pass.

        Args:
            model: the model, or DDP around it.
            batch: the images.
            sizes: how many of them are labeled.

        Returns:
            The loss, and its terms for labeled and pseudo-labeled images.
        """
        train, bf16 = self._train, self.precision == "bf16"
        weight = train.unlabeled_ratio if train.unlabeled_weight is None else train.unlabeled_weight
        self._noise_rows(sizes)
        images = self._normalize(batch.images)
        labels, targets = self._mix(images, batch)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=bf16):
            logits = model(images)
        losses = mixed_loss(
            self._adjusted(logits.float(), len(labels)),
            labels,
            targets,
            weight=weight,
            label_smoothing=train.label_smoothing,
            labeled_weight=train.labeled_weight,
            kind=train.loss,
        )
        with statistics_kept(self._recomputed_norms):
            # DDP takes the mean over workers, which may have different numbers of lanes.
            torch.autograd.backward(losses[0] / (self._job.lanes / self._world))
        return losses

    def _mix(
        self, images: torch.Tensor, batch: DeviceBatch
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mix each stream's normalized images among themselves, in place. Returns the targets of
        both, those of labeled images with their weights."""
        noise, n = self._train.noise, len(batch.labels)
        smoothing = self._train.label_smoothing
        rows = partial(dense, classes=len(self._corpus.classes), label_smoothing=smoothing)
        labels, targets = batch.labels, batch.targets
        if self._weights is not None:
            labels = rows(labels) * self._weights[labels, None]
        mixup, cutmix = noise.mixing("labeled")
        if mixup or cutmix:
            labels = mix(images[:n], rows(labels), mixup=mixup, cutmix=cutmix)
        mixup, cutmix = noise.mixing("unlabeled")
        if targets is not None and (mixup or cutmix):
            targets = mix(images[n:], rows(targets), mixup=mixup, cutmix=cutmix)
        return labels, targets

    def _adjusted(self, logits: torch.Tensor, n: int) -> torch.Tensor:
        """The logits [n + m, classes] with the priors of their streams added."""
        if not self._priors:
            return logits
        streams = zip((logits[:n], logits[n:]), self._priors, strict=False)
        return torch.cat([stream + prior for stream, prior in streams])

    def update(self, step: int) -> None:
        """Let the optimizer use the gradients, and average the weights."""
        if self._train.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._train.clip_grad)
        self.optimizer.step()
        self.ema.update(self.model, step=step)

    def _noise_rows(self, sizes: Sizes) -> None:
        """Say which rows of the next batch have dropout and stochastic depth."""
        for attribute, name in (("dropout", "dropout"), ("depth", "stochastic_depth")):
            on = [name not in self._train.noise.off_labeled] * sizes.labeled
            on += [name not in self._train.noise.off_unlabeled] * sizes.pseudo
            live = None if all(on) else torch.tensor(on, device=self._device)
            setattr(self._live, attribute, live)

    def restore(self) -> int:
        """Load the last checkpoint, if there is one; the number of steps it has behind it.

        Precision is decided once, by rank 0 of the workers that begin a training: `auto` means
        something else on another machine, and half a training in each is neither.
        """
        step, world = 0, self._world
        state, self.damaged = self._checkpoints.read(self._device, self._check)
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.ema.module.load_state_dict(state["ema"])
            # Older checkpoints hold none of these.
            self.precision = state.get("precision", self.precision)
            self.made_on = state.get("made_on", [])
            self.seconds, self.waited = state.get("seconds", 0.0), state.get("waited", 0.0)
            step = int(state["step"])
        bf16 = of_rank_0(float(self.precision == "bf16"), world, self._device)
        self.precision = "bf16" if bf16 else "fp32"
        here = {"device": _device_name(self._device), "workers": world}
        if self._device.type == "cpu":
            here["threads"] = self._job.threads
        before = self.made_on[-1] if self.made_on else {}
        if {**before, **here} != before or "compiled_from" in before:
            self.made_on.append({"from_step": step, **here})
        return step

    def _check(self, state: dict[str, Any], path: str) -> None:
        """Load the optimizer's part of a checkpoint, once the rest is known to fit: nothing may be
        loaded of one that doesn't.

        Raises:
            DamagedFileError: or an error of another kind: it is not of this training.
        """
        holding(_State, state, path)
        for part, model in (("model", self.model), ("ema", self.ema.module)):
            own = model.state_dict()
            if own.keys() != state[part].keys():
                raise DamagedFileError(path, f"its {part} has other tensors")
            for name, tensor in own.items():
                found = state[part][name]
                if (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
                    said = f"{name} of its {part} is {found.dtype} {[*found.shape]}"
                    raise DamagedFileError(path, said)
        if state["step"] > self._job.steps:
            said = f"it is of step {state['step']}, and there are {self._job.steps}"
            raise DamagedFileError(path, said)
        before = self.optimizer.state_dict()["param_groups"]
        for own, theirs in zip(before, state["optimizer"]["param_groups"], strict=True):
            numbers = [name for name, value in own.items() if isinstance(value, int | float)]
            if any(not math.isfinite(theirs[name]) for name in numbers):
                raise DamagedFileError(path, "its optimizer has a number that is none")
        self.optimizer.load_state_dict(state["optimizer"])

    def other_precision(self) -> str | None:
        """A line for people where a training goes on in what this machine would not choose."""
        own = precision_for(self._train.precision, self.model, self._device)
        if own == self.precision:
            return None
        return f"going on in {self.precision}, as begun, though {own} is faster on this machine"

    def note(self, **facts: Any) -> None:
        """Write down what else the weights depend on from here on."""
        self.made_on[-1].update(facts)

    def checkpoint(self, step: int, *, seconds: float, waited: float) -> None:
        """Save all that the steps from here on depend on, and how long those before took."""
        state = {
            "step": step,
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.precision,
            "made_on": self.made_on,
            "seconds": seconds,
            "waited": waited,
        }
        self._checkpoints.write(state)

    def publish(self, classes: tuple[str, ...], facts: dict[str, Any]) -> str | None:
        """Write the bundle, its temperature fitted; a line for people where it is not what was
        trained but what it was trained from."""
        model, said = self.ema.module, None
        if self._job.validation is not None:
            held_out = open_corpus(self._job.validation)
            alone = self._head_alone() if self._job.selection is None else None
            if alone is not None and clearly_better(
                alone, model, held_out, self._device, self._prior
            ):
                model, said = alone, HEAD_ALONE
                facts = {**facts, "head_alone": True}
            temperature = calibrate(model, held_out, self._device, pretrained=self._fresh_head)
            if temperature is not None:
                facts = {**facts, "temperature": round(temperature, 4)}
        elif self._job.given_temperature is not None:
            divide(model, self._job.given_temperature)
            facts = {**facts, "temperature": self._job.given_temperature}
        now = self.made_on[-1]
        made = {"precision": self.precision, "device": now["device"], "workers": now["workers"]}
        model.pretrained_cfg = self.model.pretrained_cfg
        save(
            model,
            self._job.out,
            classes=classes,
            fingerprint=self._job.fingerprint,
            provenance={**self._job.provenance, **facts, **made, "made_on": self.made_on},
        )
        return said

    def _head_alone(self) -> nn.Module | None:
        """The pretrained weights with nothing but a fitted classifier: what training began with."""
        if not self._fresh_head:
            return None
        torch.manual_seed(self._job.seed)
        noise, classes = self._train.noise, len(self._corpus.classes)
        model = build_noised(self._config, noise, classes)[0].to(self._device)
        return model.eval() if self._fitted(model) else None

    def _fitted(self, model: nn.Module) -> Head | None:
        """`start_head`, its logits without the prior that is added to those of labeled images."""
        return start_head(model, self._corpus, self._device, self._prior)

    @property
    def _prior(self) -> torch.Tensor | None:
        """What is added to the logits of labeled images."""
        return self._priors[0] if self._priors else None


def make_optimizer(model: nn.Module, train: TrainConfig, device: torch.device) -> Optimizer:
    """The optimizer of a training, with fused kernels where there are any."""
    biases = partial(decay_groups, weight_decay=train.weight_decay)
    optimizer: Optimizer = create_optimizer_v2(
        model,
        opt=train.optimizer,
        lr=train.lr,
        weight_decay=train.weight_decay,
        param_group_fn=biases if train.decay_biases else None,
        **fused_arguments(train.optimizer, device),
        **train.optimizer_args,
    )
    return optimizer


def make_schedule(optimizer: Optimizer, train: TrainConfig, labeled_rows: int) -> Scheduler:
    """The learning rate of each step; epochs count passes over the labeled images."""
    constant = train.schedule == "constant"
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="step" if constant else train.schedule,
        num_epochs=train.epochs,
        decay_epochs=train.decay_epochs,
        decay_rate=1.0 if constant else train.decay_rate,
        warmup_epochs=train.warmup_epochs,
        warmup_lr=0.0,
        step_on_epochs=False,
        updates_per_epoch=labeled_rows / train.batch_size,
    )
    return schedule


def average_of(model: nn.Module, train: TrainConfig) -> ModelEmaV3:
    """The averaged weights, decaying by min(decay, t / (9 + t)): the ramp (1 + t) / (10 + t) of the
    reference code, t two steps behind. Unramped, they stay near the first weights for long."""
    return ModelEmaV3(model, decay=train.ema_decay, use_warmup=True, warmup_gamma=9, warmup_power=1)


def of_rank_0(value: float, world: int, device: torch.device) -> float:
    """What the first worker says, on all of them."""
    if world == 1:
        return value
    shared = torch.tensor([value], device=device)
    dist.broadcast(shared, 0)
    return shared.item()


def _device_name(device: torch.device) -> str:
    """What computes: the name of the GPU, or the kind of processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
