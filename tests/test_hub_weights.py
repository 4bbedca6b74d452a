"""Start weights by the names that timm and the Hugging Face Hub have for them, from a Hub on the
loopback."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hub_server import Hub, Repository, hub_running
from huggingface_hub import constants
from timm.models import save_for_hf
from torch import nn
from typer.testing import CliRunner

from ns_ray.commands import app
from ns_ray.config.training import ModelConfig
from ns_ray.errors import ConfigError
from ns_ray.model.networks import build
from ns_ray.model.pretrained import check_weights
from ns_ray.store.bundles import open_bundle


def config(**settings: Any) -> ModelConfig:
    return ModelConfig.model_validate(settings)


def weights(seed: int, classes: int) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model("test_resnet", num_classes=classes)
    return model


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with timm's own weights of test_resnet and somebody's model of three classes."""
    with hub_running() as found:
        for name, model, names in (
            ("timm/test_resnet.r160_in1k", weights(1, 1000), None),
            ("me/birds", weights(2, 3), ["ant", "bee", "cat"]),
        ):
            about = {"label_names": names} if names else {}
            save_for_hf(model, str(tmp_path / name), model_config=about, safe_serialization=True)
            files = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
            found.models[name] = Repository(files=files)
        text = json.dumps({"architectures": ["ViTForImageClassification"]}).encode()
        found.models["them/transformer"] = Repository(files={"config.json": text})
        pointed_to(found.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield found


def pointed_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does, in a process that has huggingface_hub already."""
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def same_but_for_the_classifier(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(mine[k], theirs[k]) for k in mine if not k.startswith("fc."))


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "test_resnet.r160_in1k"},
        {"model": "timm/test_resnet.r160_in1k"},
        {"model": "hf-hub:timm/test_resnet.r160_in1k"},
        {"model": "test_resnet", "pretrained": "r160_in1k"},
        {"model": "test_resnet", "pretrained": "hf-hub:timm/test_resnet.r160_in1k"},
        {"model": "timm/test_resnet", "pretrained": "true"},
    ],
)
def test_a_tag_means_its_weights(hub: Hub, settings: dict[str, str]) -> None:
    built = build(config(**settings), 5)
    assert same_but_for_the_classifier(built, weights(1, 1000))
    assert built.get_classifier().out_features == 5  # type: ignore[operator]


@pytest.mark.parametrize(
    "settings",
    [{"model": "test_resnet"}, {"model": "timm/test_resnet.r160_in1k", "pretrained": None}],
)
def test_from_scratch_asks_for_nothing(hub: Hub, settings: dict[str, str]) -> None:
    assert not same_but_for_the_classifier(build(config(**settings), 5), weights(1, 1000))
    assert hub.asked == []


def test_what_a_tag_means_is_written_and_read_back() -> None:
    found = config(model="timm/resnet50.a1_in1k")
    assert (found.model, found.pretrained) == ("resnet50.a1_in1k", "true")
    assert config(**found.model_dump()) == found
    plain = config(model="resnet50.a1_in1k", pretrained=None)
    assert config(**plain.model_dump()) == plain
    assert plain.pretrained is None


def test_a_model_of_the_hub_gives_start_weights_and_its_preprocessing(hub: Hub) -> None:
    chosen = config(model="test_resnet", pretrained="hf-hub:me/birds@main", image_size=64)
    check_weights(chosen)
    built: Any = build(chosen, 5)
    assert same_but_for_the_classifier(built, weights(2, 3))
    assert chosen.start_folder is None
    assert built.pretrained_cfg["input_size"] == (3, 64, 64)


def test_a_model_of_the_hub_is_fetched_with_its_classes(hub: Hub, tmp_path: Path) -> None:
    command = ["fetch", "--model", "test_resnet", "--pretrained", "hf-hub:me/birds"]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "bundle")])
    assert done.exit_code == 0, done.output
    found = open_bundle(str(tmp_path / "bundle"))
    assert found.classes == ("ant", "bee", "cat")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"pretrained": "hf-hub:me/birds", "model": "resnet18"},
         "holds the weights of test_resnet, not of resnet18; set model to test_resnet"),
        ({"pretrained": "hf-hub:me/gone"}, "pretrained=hf-hub:me/gone cannot be had (.*)"),
        ({"pretrained": "hf-hub:them/transformer"}, "hf-hub:them/transformer is no timm model"),
        ({"pretrained": "hf-hub:me/birds/2"}, "hf-hub:me/birds/2 is no timm model.*Repo id must"),
        ({"pretrained": "r160"}, "timm has no weights 'r160' of test_resnet, but r160_in1k; a fol"),
        ({"model": "resnet50.a1"}, "model 'resnet50.a1': timm has no weights 'a1' of resnet50, bu"),
        ({"model": "hf-hub:me/birds"}, "such as resnet50, and pretrained=hf-hub:me/birds for a"),
        ({"model": "me/birds"}, "such as resnet50, and pretrained=hf-hub:me/birds for a model on"),
        ({"pretrained": "./nothing"}, "nothing is no bundle"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_it(hub: Hub, settings: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(config(**{"model": "test_resnet", **settings}), 3)
    assert re.search(says.replace("(.*)", r"\(.*\)"), str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_that_is_not_there_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    pointed_to("http://127.0.0.1:1", monkeypatch)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # huggingface_hub tries again for a while
    for chosen in (config(model="test_resnet", pretrained="hf-hub:me/birds"),
                   config(model="test_resnet.r160_in1k")):  # fmt: skip
        with pytest.raises(ConfigError, match="cannot be had") as caught:
            build(chosen, 3)
        assert "\n" not in str(caught.value)


def test_a_run_ends_before_anything_is_packed(hub: Hub, tmp_path: Path) -> None:
    command = ["check", "--recipe", "digits", "--set", f"storage={tmp_path / 'runs'}"]
    wrong = ["--set", "students.1.pretrained=hf-hub:me/gone"]
    done = CliRunner().invoke(app, [*command, *wrong])
    assert done.exit_code == 2
    assert "students.1" in done.output
    assert "pretrained=hf-hub:me/gone cannot be had" in " ".join(done.output.split())
