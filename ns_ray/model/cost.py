"""What a training step costs: parameters, arithmetic, memory, and time on this machine.

Memory is found by replaying a step on tensors without data and adding up what is alive, so a model
of any size is estimated on a laptop, for a device that isn't there. Knows nothing of data or Ray.
"""

import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ns_ray.config import ModelConfig, PredictConfig, TrainConfig
from ns_ray.errors import ConfigError
from ns_ray.model.bundle import preprocessing
from ns_ray.model.engines import choose
from ns_ray.model.networks import (
    build,
    build_noised,
    freeze,
    parameter_count,
    precision_for,
    recompute_activations,
)

OVERHEAD = 1.1
"""For what the allocator cannot use; PyTorch's caching allocator loses some percent."""
CUDA_BYTES = 2 * 10**9
"""CUDA's context, and the workspaces of cuDNN and NCCL."""
MEASURED_FLOPS = 60e9
"""Arithmetic of one measured step on a CPU at most: a second or so on two cores."""


@dataclass(frozen=True)
class Cost:
    """Of one model and one worker.

    Attributes:
        parameters: how many.
        flops: multiplications and additions of one forward pass of one image.
        rows: images in a forward pass.
        state_bytes: weights, their average, and the buckets of DDP.
        step_bytes: most that is alive in a step besides: activations, gradients, the optimizer's
            memory.
    """

    parameters: int
    flops: int
    rows: int
    state_bytes: int
    step_bytes: int

    def bytes(self, cuda: bool) -> int:
        """Memory of a worker in all."""
        live = int(OVERHEAD * (self.state_bytes + self.step_bytes))
        return live + (CUDA_BYTES if cuda else 0)


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of all tensors that are made while it is on, as long as they live.

    Attributes:
        peak: the most at a time.
    """

    def __init__(self, before: Iterable[torch.Tensor] = ()) -> None:
        """
        Args:
            before: tensors that don't count, nor do views of them.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._known = {tensor.untyped_storage()._cdata: 0 for tensor in before}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address not in self._known:
            self._known[address] = storage.nbytes()
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._drop, address)

    def _drop(self, address: int) -> None:
        self._now -= self._known.pop(address)


def training_cost(
    config: ModelConfig,
    train: TrainConfig,
    *,
    classes: int,
    rows: int,
    bf16: bool,
    workers: int = 1,
    trained_groups: int = 0,
) -> Cost:
    """Replay one optimizer step without data.

    Args:
        config, train: the model and how it is trained.
        classes: of the classifier.
        rows: images in a forward pass of one worker.
        bf16: whether the forward pass computes in it.
        workers: DDP keeps a second copy of the gradients where there are several.
        trained_groups: see `models.freeze`; 0: all layers learn.
    """
    with FakeTensorMode(), Schedules():
        model, cost = _forward(config, train, classes)
        step, gradients = _trainer(
            model, train, image_size(model), rows, classes, bf16, trained_groups
        )
        alive = Alive([*model.parameters(), *model.buffers()])
        with alive:
            step()
    return replace(
        cost,
        rows=rows,
        state_bytes=cost.state_bytes + (gradients if workers > 1 else 0),
        step_bytes=alive.peak,
    )


def forward_cost(config: ModelConfig, train: TrainConfig, *, classes: int) -> Cost:
    """Parameters, arithmetic and weights without a step, which `rows` and `step_bytes` of 0 say."""
    with FakeTensorMode(), Schedules():
        return _forward(config, train, classes)[1]


def parameters_of(config: ModelConfig, *, classes: int) -> int:
    """Parameters of a model with this many classes, without making any where that is possible."""
    offline = config.model_copy(update={"pretrained": None})
    try:
        with FakeTensorMode(), Schedules():
            return parameter_count(build(offline, classes))
    except ConfigError:  # such as a RegNet, whose widths timm takes from a tensor's values
        return parameter_count(build(offline, classes))


class Schedules(TorchFunctionMode):
    """timm computes the drop rates of a transformer's blocks with torch and reads them back, which
    tensors without values cannot do: `linspace`, and what is made of it, have their values."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function, without the replay where it makes or reads numbers."""
        if func is torch.linspace or (args and type(args[0]) is torch.Tensor):
            with _disable_current_modes():
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _forward(config: ModelConfig, train: TrainConfig, classes: int) -> tuple[nn.Module, Cost]:
    offline = config.model_copy(update={"pretrained": None})
    model, _ = build_noised(offline, train.noise, classes)
    size = image_size(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, size, size))
    weights = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    return model, Cost(parameter_count(model), counter.get_total_flops(), 0, 2 * weights, 0)


def image_size(model: nn.Module) -> int:
    """Side of the images a model was built for, in pixels."""
    config: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    return int(config["input_size"][-1])


def _trainer(
    model: nn.Module,
    train: TrainConfig,
    size: int,
    rows: int,
    classes: int,
    bf16: bool,
    trained_groups: int,
    device: torch.device | None = None,
) -> tuple[Callable[[], None], int]:
    """A function that does one step, and the bytes of the gradients it makes."""
    if train.grad_checkpointing:
        recompute_activations(model)
    frozen = freeze(model, trained_groups) if trained_groups else []
    model.train()
    for module in frozen:
        module.eval()
    optimizer = create_optimizer_v2(
        model,
        opt=train.optimizer,
        lr=train.lr,
        weight_decay=train.weight_decay,
        **train.optimizer_args,
    )
    kind = device.type if device else "cpu"

    def step() -> None:
        images = torch.zeros(rows, 3, size, size, device=device)
        targets = torch.full((rows, classes), 1.0 / classes, device=device)
        with _autocast(kind, bf16):
            logits = model(images)
        loss = torch.nn.functional.cross_entropy(logits.float(), targets)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, sum(p.nbytes for p in model.parameters() if p.requires_grad)


def _autocast(kind: str, bf16: bool) -> AbstractContextManager[Any]:
    return torch.autocast(kind, torch.bfloat16, enabled=bf16)


@dataclass(frozen=True)
class Rate:
    """Images/s of one worker on this machine.

    Attributes:
        training: labeled or pseudo-labeled images.
        labeling: forward passes, with the runtime that a job of these images would choose.
    """

    training: float
    labeling: float


def measured_rate(
    config: ModelConfig,
    train: TrainConfig,
    cost: Cost,
    *,
    classes: int,
    device: torch.device,
    trained_groups: int = 0,
    labeled: int = 0,
    predict: PredictConfig | None = None,
) -> Rate:
    """Do a few short steps. On a CPU with as few images as tell, on a GPU with the whole pass.

    Args:
        config, train, cost: of a training.
        classes: of the classifier.
        device: where.
        trained_groups: see `models.freeze`; 0: all layers learn.
        labeled: images of the labeling that is to come: a long one converts the model first.
        predict: what it may choose of.
    """
    model, _ = build_noised(config.model_copy(update={"pretrained": None}), train.noise, classes)
    model = model.to(device).to(memory_format=torch.channels_last)
    rows = max(2, cost.rows)
    if device.type == "cpu":
        rows = max(2, min(rows, int(MEASURED_FLOPS / (3 * cost.flops))))
    size = image_size(model)
    bf16 = precision_for(train.precision, model, device) == "bf16"
    predict = predict or PredictConfig()
    pixels = np.zeros((rows, size, size, 3), np.uint8)
    chosen = choose(
        model.eval(),
        preprocessing(model),
        device,
        pixels,
        threads=torch.get_num_threads(),
        batch_size=rows,
        images=labeled,
        runtime=predict.runtime
        if device.type == "cpu"
        else "torch",  # nothing is compiled for this
        precision=predict.precision,
    )
    labeling = rows / _seconds(lambda: chosen.forward(pixels), device)
    step, _ = _trainer(model, train, size, rows, classes, bf16, trained_groups, device)
    return Rate(training=rows / _seconds(step, device), labeling=labeling)


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """The shorter of two times, after one that warms up."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
