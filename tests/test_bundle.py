"""Model folders: timm and ns_ray read each other's, and nothing half-written or pickled is read."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from timm.models import save_for_hf
from torch import nn

from ns_ray import store
from ns_ray.config.noise import NoiseConfig
from ns_ray.config.training import ModelConfig
from ns_ray.errors import ConfigError, DataError
from ns_ray.model.bundle import load, load_weights, save
from ns_ray.model.card import card
from ns_ray.model.networks import build, build_noised, parameter_count
from ns_ray.store.bundles import CONFIG, PROVENANCE, WEIGHTS, Bundle, open_bundle

CLASSES = ("ant", "bee", "cat, the")
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
FACTS = {"run": "r", "role": "student", "model": "test_resnet", "generation": 2, "seconds": 1.5}


def trained(name: str = "test_resnet", classes: int = 3, **settings: Any) -> nn.Module:
    """A noised model whose BatchNorm statistics are not the initial ones."""
    torch.manual_seed(0)
    config = ModelConfig.model_validate({"model": name, "image_size": 32, **settings})
    model, _ = build_noised(config, NoiseConfig(dropout=0.5, stochastic_depth=0.5), classes)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, 32, 32))
    return model.to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Bundle]:
    model = trained(crop_pct=0.8)
    out = tmp_path_factory.mktemp("saved") / "bundle"
    made = save(model, str(out), classes=CLASSES, fingerprint="f" * 12, provenance=FACTS)
    return model.eval(), made


@pytest.fixture
def copy(saved: tuple[nn.Module, Bundle], tmp_path: Path) -> Path:
    """The saved bundle, to be damaged."""
    return Path(shutil.copytree(saved[1].path, tmp_path / "copy"))


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IMAGES)
    return found


# ------------------------------------------------------------------------------- what is saved


def test_timm_loads_it_and_gives_the_same_logits(saved: tuple[nn.Module, Bundle]) -> None:
    model, made = saved
    loaded = timm.create_model(f"local-dir:{made.path}", pretrained=True)
    torch.testing.assert_close(logits(loaded), logits(model))
    assert loaded.pretrained_cfg["label_names"] == list(CLASSES)
    data = timm.data.resolve_model_data_config(loaded)
    assert data["input_size"] == (3, 32, 32)
    assert data["crop_pct"] == 0.8


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("test_resnet", {"act_layer": "silu", "stem_width": 24}),
        ("test_vit", {"depth": 2}),
        ("test_efficientnet", {}),
    ],
)
def test_any_architecture_comes_back(tmp_path: Path, name: str, args: dict[str, Any]) -> None:
    model = trained(name, model_args=args)
    made = save(model, str(tmp_path), classes=CLASSES, fingerprint="f", provenance={})
    loaded = timm.create_model(f"local-dir:{made.path}", pretrained=True)
    torch.testing.assert_close(logits(loaded), logits(model))
    torch.testing.assert_close(logits(load(made)[0]), logits(model))


def test_what_we_load_is_ready_to_use(saved: tuple[nn.Module, Bundle]) -> None:
    model, made = saved
    loaded, spec = load(made)
    assert not any(module.training for module in loaded.modules())
    torch.testing.assert_close(loaded(IMAGES), logits(model))
    config: Any = model.pretrained_cfg
    assert (spec.size, spec.crop_pct, spec.interpolation) == (32, 0.8, config["interpolation"])
    assert (spec.mean, spec.std) == (tuple(config["mean"]), tuple(config["std"]))


def test_what_is_known_without_the_weights(saved: tuple[nn.Module, Bundle]) -> None:
    model, made = saved
    found = open_bundle(made.path)
    assert found == made
    assert found.classes == CLASSES
    assert found.architecture == "test_resnet"
    assert found.parameters == parameter_count(model)
    assert found.fingerprint == "f" * 12
    assert found.provenance["generation"] == 2
    assert found.provenance["temperature"] == 1.0
    assert "torch" in found.provenance["versions"]


def test_the_folder_holds_what_it_should_and_no_pickle(saved: tuple[nn.Module, Bundle]) -> None:
    folder = Path(saved[1].path)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "_DONE.json",
        "config.json",
        "model.safetensors",
        "ns_ray.json",
    ]
    text = (folder / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: timm\n")
    assert "3 classes: ant, bee, cat, the." in text
    assert "| generation | 2 |" in text


def test_saving_leaves_the_model_usable(tmp_path: Path) -> None:
    model = trained()
    before = logits(model)
    save(model, str(tmp_path), classes=CLASSES, fingerprint="f", provenance={})
    torch.testing.assert_close(logits(model), before)


# ------------------------------------------------------------------------------- which is meant


def test_a_run_folder_means_its_best_model(copy: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(copy, run / "model")
    shutil.copytree(copy, run / "gen-00" / "bundle")
    (run / "config.yaml").write_text("name: run\n")
    assert open_bundle(str(run)).path == f"{run}/model"
    assert open_bundle(f"{run}/gen-00").path == f"{run}/gen-00/bundle"
    assert open_bundle(f"{run}/model/").path == f"{run}/model"


@pytest.mark.parametrize("name", ["nothing", "empty", "file"])
def test_no_model_is_a_config_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=f"{name} is no bundle: expected config.json"):
        open_bundle(str(tmp_path / name))


# -------------------------------------------------------------------------------- what is refused


def test_an_unfinished_bundle_is_refused(copy: Path) -> None:
    (copy / store.DONE).unlink()
    weights = bytearray((copy / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (copy / WEIGHTS).write_bytes(weights)
    with pytest.raises(DataError, match=r"is half-written: there is no _DONE\.json"):
        open_bundle(str(copy))
    (copy / WEIGHTS).unlink()
    with pytest.raises(DataError, match=r"is half-written: there is no _DONE\.json"):
        open_bundle(str(copy))


def test_a_bundle_as_the_hub_brings_it_opens(saved: tuple[nn.Module, Bundle], copy: Path) -> None:
    (copy / store.DONE).unlink()
    found = open_bundle(str(copy))
    assert (found.classes, found.provenance) == (CLASSES, saved[1].provenance)
    torch.testing.assert_close(logits(load(found)[0]), logits(saved[0]))


def test_half_replaced_weights_are_refused(saved: tuple[nn.Module, Bundle], copy: Path) -> None:
    other = copy.parent / "other"
    save(trained(), str(other), classes=CLASSES, fingerprint="other", provenance=FACTS)
    weights = bytearray((copy / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (copy / WEIGHTS).write_bytes(weights)
    with pytest.raises(DataError, match=r"model\.safetensors is not the file ns_ray\.json names"):
        load(open_bundle(str(copy)))
    shutil.copy(other / PROVENANCE, copy)  # killed before _DONE.json of the new one
    with pytest.raises(DataError, match="is half-written"):
        open_bundle(str(copy))


def test_lost_weights_are_a_data_error(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    with pytest.raises(DataError, match=r"has no model\.safetensors"):
        open_bundle(str(copy))


def test_a_broken_config_is_a_data_error(copy: Path) -> None:
    (copy / CONFIG).write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        open_bundle(str(copy))


# ------------------------------------------------------------------------- other people's folders


def foreign(folder: Path, safe: bool = True, **config: Any) -> nn.Module:
    """A local-dir as timm makes it."""
    torch.manual_seed(1)
    model: nn.Module = timm.create_model("test_resnet", num_classes=3)
    save_for_hf(model, str(folder), model_config=config, safe_serialization=safe)
    return model.eval()


def test_a_folder_of_timm_opens(tmp_path: Path) -> None:
    model = foreign(tmp_path, label_names=["x", "y", "z"])
    found = open_bundle(str(tmp_path))
    assert found.classes == ("x", "y", "z")
    assert found.parameters == 0
    assert found.provenance == {}
    torch.testing.assert_close(logits(load(found)[0]), logits(model))


def test_classes_without_names_are_numbered(tmp_path: Path) -> None:
    foreign(tmp_path)
    assert open_bundle(str(tmp_path)).classes == ("0", "1", "2")


def test_replaced_weights_make_another_fingerprint(tmp_path: Path) -> None:
    foreign(tmp_path)
    before = open_bundle(str(tmp_path)).fingerprint
    assert open_bundle(str(tmp_path)).fingerprint == before
    weights = (tmp_path / WEIGHTS).read_bytes()
    for other in (weights + b"\0", weights[:-1] + bytes([weights[-1] ^ 1])):
        (tmp_path / WEIGHTS).write_bytes(other)
        assert open_bundle(str(tmp_path)).fingerprint != before


def test_a_copy_elsewhere_and_later_has_the_same_fingerprint(tmp_path: Path) -> None:
    """A job's working directory is unpacked anew."""
    foreign(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    os.utime(tmp_path / "two" / WEIGHTS, (1, 1))
    one, two = (open_bundle(str(tmp_path / name)).fingerprint for name in ("one", "two"))
    assert one == two


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    foreign(tmp_path, safe=False)
    assert (tmp_path / "pytorch_model.bin").exists()
    with pytest.raises(DataError, match="pickled weights are not read"):
        open_bundle(str(tmp_path))


def test_a_pickle_beside_safe_weights_is_not_touched(tmp_path: Path) -> None:
    model = foreign(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")
    torch.testing.assert_close(logits(load(open_bundle(str(tmp_path)))[0]), logits(model))


@pytest.mark.parametrize(
    "damage",
    [
        {"architecture": "resnet81"},
        {"architecture": "test_vit"},
        {"model_args": {"widht": 3}},
        {"model_args": {"stem_width": 24}},
    ],
)
def test_weights_that_do_not_fit_are_a_data_error(tmp_path: Path, damage: dict[str, Any]) -> None:
    foreign(tmp_path)
    path = tmp_path / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    with pytest.raises(DataError, match="timm cannot load") as caught:
        load(open_bundle(str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_garbage_instead_of_weights_is_a_data_error(tmp_path: Path) -> None:
    foreign(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"garbage" * 100)
    with pytest.raises(DataError, match="timm cannot load"):
        load(open_bundle(str(tmp_path)))


# ------------------------------------------------------------------------------- start weights


def test_starting_from_a_bundle(saved: tuple[nn.Module, Bundle]) -> None:
    model: Any
    model, made = saved
    config = ModelConfig(model="test_resnet", image_size=32)
    same = build(config, 3)
    load_weights(same, made.path)
    torch.testing.assert_close(logits(same), logits(model))

    more: Any = build(config, 5)
    classifier = more.get_classifier().weight.clone()
    load_weights(more, made.path)
    assert torch.equal(more.get_classifier().weight, classifier)
    with torch.no_grad():
        torch.testing.assert_close(
            more.eval().forward_features(IMAGES), model.forward_features(IMAGES)
        )


def test_starting_from_another_architecture_is_a_config_error(
    saved: tuple[nn.Module, Bundle],
) -> None:
    other = build(ModelConfig(model="test_vit", image_size=32), 3)
    with pytest.raises(ConfigError, match="don't fit this model"):
        load_weights(other, saved[1].path)


def test_hugging_face_reads_the_card() -> None:
    scores = {"validation": {"rows": 30, "top1": 0.5, "ece": 0.125}, "test": {"top1": 0.75}}
    head: Any = ModelCard(card(CLASSES, FACTS, {"scores": scores})).data
    assert head.library_name == "timm"
    found = [(r.dataset_name, r.metric_type, r.metric_value) for r in head.eval_results]
    assert found == [
        *(("validation", "accuracy", 0.5), ("validation", "ece", 0.125)),
        ("test", "accuracy", 0.75),
    ]
    unscored: Any = ModelCard(card(CLASSES, FACTS)).data
    assert unscored.to_dict().keys() == {"library_name", "pipeline_tag", "tags"}


def test_the_card_says_how_robust_a_model_is() -> None:
    row = {"robustness": {"mean_corruption_error": 0.25, "fgsm": {"8": 0.5}}}
    text = card(CLASSES, FACTS, row)
    assert "| mean_corruption_error | 0.2500 |" in text
    assert "| accuracy under fgsm, epsilon 8 of 255 | 0.5000 |" in text
    assert "epsilon" not in card(CLASSES, FACTS)
