"""timm models with the method's model noise: dropout before the classifier, stochastic depth.

Both can be live for some images of a batch and not for others, so that labeled and pseudo-labeled
images share one forward pass (and its BatchNorm statistics) under different noise. Knows nothing
about data or Ray.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import timm
import torch
from timm.data import resolve_model_data_config
from timm.layers import DropPath
from timm.models import group_parameters
from timm.optim import get_optimizer_class, list_optimizers
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ns_ray.config import HUB, LITE, ModelConfig, NoiseConfig
from ns_ray.errors import ConfigError, first_line, nearest
from ns_ray.model.pretrained import check_tag, check_weights, load_lite

Precision = Literal["auto", "fp32", "bf16"]


class LiveRows:
    """Which rows of the current batch are noised: bool [batch], or None for all of them."""

    def __init__(self) -> None:
        self.dropout: torch.Tensor | None = None
        self.depth: torch.Tensor | None = None


def _drop(x: torch.Tensor, shape: tuple[int, ...], rate: float, live: torch.Tensor | None) -> Any:
    """Zero random entries of `shape`, scale the others by 1 / (1 - rate), where rows are live."""
    mask = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(1.0 - rate)
    mask.div_(1.0 - rate)
    if live is not None:
        mask = torch.where(live.view(-1, *[1] * (len(shape) - 1)), mask, torch.ones_like(mask))
    return x * mask


class RowDropPath(nn.Module):
    """Stochastic depth on the live rows of a batch."""

    def __init__(self, rate: float, live: LiveRows) -> None:
        super().__init__()
        self.rate, self._live = rate, live

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Residual branch [batch, ...] -> the same, whole rows dropped in training."""
        if not self.training or self.rate == 0.0:
            return x
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        return _drop(x, shape, self.rate, self._live.depth)  # type: ignore[no-any-return]


def model_name(config: ModelConfig) -> str:
    """The timm name, checked.

    Raises:
        ConfigError: timm knows no such model, or no such weights of it.
    """
    name = config.model or ""
    if name.startswith(HUB) or "/" in name:
        raise ConfigError(
            f"model {name!r} is no architecture of timm; set model to one, such as resnet50, and "
            f"pretrained={HUB}{name.removeprefix(HUB)} for a model on the Hub"
        )
    architecture, _, tag = name.partition(".")
    if timm.is_model(architecture) and tag:
        check_tag(architecture, tag, f"model {name!r}")
    if not timm.is_model(architecture):
        close = nearest(name, timm.list_models())
        raise ConfigError(f"model {name!r} is not known to timm{close}; see timm.list_models()")
    return name


def build(config: ModelConfig, num_classes: int) -> nn.Module:
    """A timm model without noise, its `pretrained_cfg` holding the preprocessing it is used with.

    Raises:
        ConfigError: timm doesn't know the model or an argument, its weights cannot be had, or
            the image size is too small for it.
    """
    name = model_name(config)
    kwargs: dict[str, Any] = {**config.model_args, "num_classes": num_classes}
    source = _source(config, name)
    name = name if source.startswith(HUB) else source
    try:
        default = timm.get_pretrained_cfg(name, allow_unregistered=True)
        if config.image_size is not None and default is not None and default.fixed_input_size:
            kwargs["img_size"] = config.image_size
        loaded = config.pretrained not in (None, LITE)
        model: nn.Module = timm.create_model(source, pretrained=loaded, **kwargs)
        if config.pretrained == LITE:
            load_lite(model, name)
    except OSError as error:  # no network, or nothing there
        raise ConfigError(
            f"the weights of {source!r} cannot be had ({first_line(error)}); set pretrained to "
            "null, or to the folder of a bundle"
        ) from None
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"timm cannot build {name!r} with model_args={config.model_args} "
            f"and image_size={config.image_size}: {first_line(error)}"
        ) from None
    data = resolve_model_data_config(model)
    size = config.image_size or int(data["input_size"][-1])
    channels = int(kwargs.get("in_chans", 3))
    if channels != 3:
        raise ConfigError(f"model_args.in_chans={channels}: images are RGB; leave in_chans at 3")
    cfg = dict(model.pretrained_cfg)  # type: ignore[arg-type]
    cfg.update(
        input_size=(3, size, size),
        mean=data["mean"],
        std=data["std"],
        interpolation=data["interpolation"],
        crop_pct=config.crop_pct or data["crop_pct"],
        num_classes=num_classes,
    )
    model.pretrained_cfg = cfg  # type: ignore[assignment]
    check_size(model, name, size, int((cfg.get("min_input_size") or (0, 0, 0))[-1]))
    return model


def _source(config: ModelConfig, name: str) -> str:
    """What timm calls a model with its start weights.

    Raises:
        ConfigError: there are none such.
    """
    check_weights(config)
    said = config.pretrained
    if said in (None, LITE, "true", "default"):
        return name
    return str(said) if str(said).startswith(HUB) else f"{name.split('.')[0]}.{said}"


def check_size(model: nn.Module, name: str, size: int, smallest: int = 0) -> None:
    """Run two gray images through the model.

    Raises:
        ConfigError: the model cannot take images of this size.
    """
    reason = f"its minimum is {smallest}" if size < smallest else ""
    if not reason:
        training = model.training
        try:
            with torch.inference_mode():
                model.eval()(torch.zeros(2, 3, size, size))
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = first_line(error)
        finally:
            model.train(training)
    if reason:
        raise ConfigError(
            f"image_size={size} does not fit {name!r} ({reason}); set image_size of this model"
        )


def add_noise(model: nn.Module, noise: NoiseConfig) -> LiveRows:
    """Put dropout before the classifier and stochastic depth into the residual blocks.

    The rate of block i of n is `stochastic_depth * i / n` (reference code; timm's rule too), so
    the model must have been built without drop rates of its own. Parameters and their names stay
    as they are. Which rows are noised is set on the returned object before each forward pass.
    """
    live = LiveRows()
    rate = noise.dropout

    def drop_features(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        x = inputs[0]
        if module.training and rate > 0.0:
            return (_drop(x, tuple(x.shape), rate, live.dropout), *inputs[1:])
        return None

    classifier = model.get_classifier()  # type: ignore[operator]
    for head in classifier if isinstance(classifier, tuple) else (classifier,):  # distilled models
        head.register_forward_pre_hook(drop_features)
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            if isinstance(child, DropPath):
                setattr(parent, child_name, RowDropPath(float(child.drop_prob), live))
    return live


def build_noised(
    config: ModelConfig, noise: NoiseConfig, num_classes: int
) -> tuple[nn.Module, LiveRows]:
    """A model for training: `build` plus `add_noise`. A model of timm that has no stochastic
    depth (such as VGG) is built without it."""
    args = dict(config.model_args)
    args.setdefault("drop_rate", 0.0)
    if noise.stochastic_depth > 0.0:
        args.setdefault("drop_path_rate", noise.stochastic_depth)
    try:
        model = build(config.model_copy(update={"model_args": args}), num_classes)
    except ConfigError as error:
        if "drop_path_rate" not in str(error) or "unexpected" not in str(error):
            raise
        args.pop("drop_path_rate")
        model = build(config.model_copy(update={"model_args": args}), num_classes)
    return model, add_noise(model, noise)


def noise_in_eval(model: nn.Module) -> None:
    """Make the noise of a model in eval mode act; BatchNorm keeps to its statistics."""
    classifier = model.get_classifier()  # type: ignore[operator]
    heads = classifier if isinstance(classifier, tuple) else (classifier,)
    for module in (*heads, *(m for m in model.modules() if isinstance(m, RowDropPath))):
        module.train()


def has_depth_noise(model: nn.Module) -> bool:
    """Whether stochastic depth acts on any block."""
    return any(isinstance(m, RowDropPath) and m.rate > 0 for m in model.modules())


def freeze(model: nn.Module, trained_groups: int) -> list[nn.Module]:
    """Let only the last groups of layers learn. Groups are timm's: stem, stages, classifier; for an
    EfficientNet the last is the classifier, and the one before holds the last block, the last
    convolution and its BatchNorm.

    Returns:
        The modules that are frozen as a whole: to be kept in eval mode.

    Raises:
        ConfigError: timm knows no groups for this model, or all of them would be trained.
    """
    try:
        groups = group_parameters(model, model.group_matcher(coarse=True), reverse=True)  # type: ignore[operator]
    except AttributeError:
        raise ConfigError(
            f"{type(model).__name__} has no groups of layers to freeze; leave out `fixres`"
        ) from None
    first = max(groups.values()) + 1 - trained_groups
    if first <= 0:
        raise ConfigError(
            f"fixres.trained_groups={trained_groups} trains all {max(groups.values()) + 1} groups "
            f"of layers of this model; set it to at most {max(groups.values())}"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(groups[name] >= first)
    frozen = []
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            frozen.append(module)
    return frozen


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer where all but the norms decay, biases too: those of the
    reference code, whose L2 term leaves out BatchNorm only."""
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(weight := getattr(module, "weight", None), nn.Parameter) and weight.ndim == 1
        for parameter in module.parameters(recurse=False)
    }
    learned = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learned if id(p) in norms], "weight_decay": 0.0},
        {"params": [p for p in learned if id(p) not in norms], "weight_decay": weight_decay},
    ]
    return [group for group in groups if group["params"]]


def fused_arguments(optimizer: str, device: torch.device) -> dict[str, Any]:
    """What asks a timm optimizer for its fused kernels, one launch for all parameters, where it has
    them: SGD and the Adams of torch on CUDA.

    Raises:
        ConfigError: timm knows no such optimizer.
    """
    name = optimizer.lower().rpartition("_")[2]  # lookahead_adam
    try:
        kind = get_optimizer_class(name, bind_defaults=False)
    except ValueError:
        close = nearest(name, list_optimizers())
        raise ConfigError(f"train.optimizer={optimizer!r} is not known to timm{close}") from None
    if device.type == "cuda" and "fused" in inspect.signature(kind).parameters:
        return {"fused": True}
    return {}


def recompute_activations(model: nn.Module) -> list[_BatchNorm]:
    """Keep only what goes into each block for the backward pass, and compute the rest again.

    Returns:
        The BatchNorms of the model, which see each batch twice: for `statistics_kept`.

    Raises:
        ConfigError: timm cannot do it for this model.
    """
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError):
        raise ConfigError(
            f"timm has no gradient checkpointing for {type(model).__name__}; set "
            "train.grad_checkpointing to false, and raise train.accumulate to save memory"
        ) from None
    return batch_norms(model)


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorms of a model. In eval mode they normalize with the statistics that they have,
    and still learn scale and shift."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm)]


@contextmanager
def statistics_kept(norms: list[_BatchNorm]) -> Iterator[None]:
    """Let BatchNorms normalize without counting the batch into their running statistics: a backward
    pass that computes activations again would count it twice."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    yield
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def precision_for(
    wish: Precision, model: nn.Module, device: torch.device
) -> Literal["fp32", "bf16"]:
    """What a model computes in on a device: what is wished for, or for `auto` the faster one."""
    if wish == "auto":
        return "bf16" if _bf16_is_faster(model, device) else "fp32"
    return wish


def _bf16_is_faster(model: nn.Module, device: torch.device) -> bool:
    """On GPUs and CPUs that multiply it natively; on CPUs not for depthwise convolutions, whose
    backward pass is slower in it there (docs/performance.md)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or any(
        isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 for m in model.modules()
    ):
        return False
    return cpu_has_bf16()


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 itself, rather than by way of float32."""
    can: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.10
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))


def parameter_count(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters())
