"""A model folder: weights, config, class names, preprocessing, provenance.

It is timm's local-dir (`config.json` + `model.safetensors`), so that
`timm.create_model("local-dir:PATH", pretrained=True)` loads it, plus a model card and
`ns_ray.json`. Any timm local-dir that somebody else made can be opened too. No pickle is read.
"""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import save_for_hf
from torch import nn

from ns_ray import store
from ns_ray.config import HUB, ModelConfig
from ns_ray.data import Preprocess, resampling
from ns_ray.errors import ConfigError, DamagedFileError, DataError, first_line
from ns_ray.model.card import card
from ns_ray.model.networks import build, model_name, parameter_count
from ns_ray.model.pretrained import imagenet_synsets, on_the_hub, pretrained_classes
from ns_ray.store import CONFIG, PROVENANCE, WEIGHTS, Bundle, open_bundle


def save(
    model: nn.Module,
    out: str,
    *,
    classes: Sequence[str],
    fingerprint: str,
    provenance: Mapping[str, Any],
) -> Bundle:
    """Write a bundle; `_DONE.json` comes last.

    Args:
        model: a timm model whose `pretrained_cfg` holds its preprocessing.
        out: the folder.
        classes: class names in the order of the logits.
        fingerprint: of everything that the weights depend on.
        provenance: run, generation, config hash, teacher, data counts, seconds ...
    """
    with tempfile.TemporaryDirectory() as folder:
        save_for_hf(
            model.to(memory_format=torch.contiguous_format),
            folder,
            model_config={"label_names": list(classes), "num_classes": len(classes)},
            safe_serialization=True,
        )
        weights = (Path(folder) / WEIGHTS).read_bytes()
        config = (Path(folder) / CONFIG).read_bytes()
    facts = {
        **provenance,
        "fingerprint": fingerprint,
        "parameters": parameter_count(model),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "temperature": provenance.get("temperature", 1.0),
        "git_sha": store.git_sha(),
        "versions": store.versions(),
    }
    store.write_bytes(store.join(out, WEIGHTS), weights)
    store.write_bytes(store.join(out, CONFIG), config)
    store.write_bytes(store.join(out, "README.md"), card(classes, facts).encode())
    store.write_json(store.join(out, PROVENANCE), facts)
    store.publish(
        out,
        stage="train",
        fingerprint=fingerprint,
        files=[WEIGHTS, CONFIG, "README.md", PROVENANCE],
        facts={"parameters": facts["parameters"]},
        inputs={k: provenance[k] for k in ("labeled", "pseudo", "teacher") if k in provenance},
        seconds=float(provenance.get("seconds", 0.0)),
    )
    return open_bundle(out)


def class_map(model: Bundle, classes: Sequence[str], where: str) -> np.ndarray[Any, Any]:
    """Index among the model's classes of each class of labeled images. Folders named by ImageNet's
    WordNet ids fit every model with ImageNet's 1000 classes.

    Args:
        model: what is to be scored.
        classes: class names of the images.
        where: the images, for messages.

    Raises:
        DataError: the images have no labels, or classes that the model doesn't know.
    """
    if not classes:
        raise DataError(f"{where} has no labels; evaluation needs a labeled corpus")
    known = model.classes
    nameless = known == tuple(str(i) for i in range(len(known)))
    if len(known) == 1000 and set(classes) <= set(imagenet_synsets()):
        known = imagenet_synsets()
    elif nameless and len(classes) == len(known):
        return np.arange(len(classes))  # by position
    unknown = [name for name in classes if name not in known]
    if unknown:
        raise DataError(
            f"class {unknown[0]!r} of {where} is not a class of {model.path}, "
            f"which knows: {', '.join(known[:20])}"
        )
    return np.array([known.index(name) for name in classes])


def fetch(config: ModelConfig, out: str) -> Bundle:
    """Write a pretrained model, with the classes it was trained for, as a bundle.

    Raises:
        ConfigError: timm has no such model, or its weights cannot be had.
    """
    name = model_name(config)
    if (config.pretrained or "").startswith(HUB):
        classes = on_the_hub(str(config.pretrained))[1]
    else:
        known = timm.get_pretrained_cfg(name, allow_unregistered=True)
        classes = int(known.num_classes) if known else 1000
    model = build(config, classes)
    return save(
        model,
        out,
        classes=pretrained_classes(model),
        fingerprint=store.fingerprint("fetch", config.model_dump(mode="json")),
        provenance={"run": "none", "role": "pretrained", "model": f"{name}, {config.pretrained}"},
    )


def load(bundle: Bundle, **model_args: Any) -> tuple[nn.Module, Preprocess]:
    """The model in eval mode on the CPU, and the preprocessing it was trained for.

    Args:
        bundle: the model folder.
        model_args: further arguments of timm.create_model.

    Raises:
        ConfigError: the folder is gone since it was opened.
        DataError: the weights don't match the provenance (DamagedFileError), or timm cannot load
            them.
    """
    for name in (CONFIG, WEIGHTS):
        if not store.exists(store.join(bundle.path, name)):
            raise ConfigError(
                f"{bundle.path} has no {name} any more: it was moved or removed since it was "
                "opened; open the model where it is now, or run again what made it"
            )
    with tempfile.TemporaryDirectory() as folder:
        local = bundle.path
        if store.is_uri(bundle.path):
            local = folder
            for name in (CONFIG, WEIGHTS):
                data = store.read_bytes(store.join(bundle.path, name))
                (Path(folder) / name).write_bytes(data)
        expected = bundle.provenance.get("weights_sha256")
        if expected:
            with open(Path(local) / WEIGHTS, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    reason = f"{WEIGHTS} is not the file {PROVENANCE} names"
                    raise DamagedFileError(store.join(bundle.path, WEIGHTS), reason)
        try:
            model: nn.Module = timm.create_model(
                f"local-dir:{local}", pretrained=True, **model_args
            )
            spec, count = preprocessing(model), int(model.num_classes)  # type: ignore[arg-type]
        except Exception as error:  # timm raises almost anything on somebody's odd config
            said = first_line(error)[:300]
            raise DataError(f"timm cannot load {bundle.path}: {said}") from None
    if bundle.classes and count != len(bundle.classes):
        named = len(bundle.classes)
        raise DataError(f"{bundle.path} has a model of {count} classes, {named} by its {CONFIG}")
    return model.eval(), spec


def preprocessing(model: nn.Module) -> Preprocess:
    """How images must look for a timm model.

    Raises:
        ValueError: nothing can look so.
    """
    data = resolve_model_data_config(model)
    spec = Preprocess(
        size=int(data["input_size"][-1]),
        crop_pct=float(data["crop_pct"]),
        interpolation=data["interpolation"],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
    )
    numbers = np.array([spec.mean, spec.std, (spec.size, spec.crop_pct, 1.0)], np.float64)
    if numbers.shape != (3, 3) or not np.isfinite(numbers).all() or (numbers[1:] <= 0).any():
        raise ValueError(f"images cannot be prepared as its pretrained_cfg says: {spec}")
    resampling(spec.interpolation)
    return spec


def build_started(config: ModelConfig, classes: int) -> nn.Module:
    """A model with the weights that it starts from, also where these are in a folder.

    Raises:
        ConfigError: it cannot be built, or the weights are not there or don't fit.
    """
    if config.start_folder is None:
        return build(config, classes)
    model = build(config.model_copy(update={"pretrained": None}), classes)
    load_weights(model, config.start_folder)
    return model


def load_weights(model: nn.Module, path: str) -> None:
    """Start from the weights of a bundle with the same architecture, position embeddings resampled
    where the image size differs; a classifier for another number of classes is left as it is.

    Raises:
        ConfigError: the architectures differ.
    """
    bundle = open_bundle(path)
    config = store.read_json(store.join(bundle.path, CONFIG)).get("pretrained_cfg", {})
    args = {"img_size": preprocessing(model).size} if config.get("fixed_input_size") else {}
    trained, _ = load(bundle, **args)
    state: dict[str, torch.Tensor] = trained.state_dict()
    own = model.state_dict()
    fits = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    missing = [k for k in own if k not in fits]
    if len(missing) > 2:  # weight and bias of a classifier for other classes
        raise ConfigError(
            f"the weights in {path} don't fit this model: {len(missing)} tensors such as "
            f"{missing[0]!r} are missing; use the same `model` and `model_args`"
        )
    model.load_state_dict(fits, strict=False)
