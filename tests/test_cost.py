"""Memory and arithmetic of a step, found without data, against what torch really allocates."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from ns_ray.config.training import ModelConfig, TrainConfig
from ns_ray.model import cost
from ns_ray.model.cost import Alive, measured_rate, parameters_of, training_cost
from ns_ray.model.networks import build, build_noised, parameter_count

MODEL = ModelConfig(model="test_efficientnet", image_size=64)


def allocated(model: ModelConfig, train: TrainConfig, rows: int) -> int:
    """Most bytes that torch's CPU allocator has given out at a time in a real step."""
    real, _ = build_noised(model, train.noise, 10)
    step, _ = cost._trainer(real, train, 64, rows, 10, False, 0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("optimizer", ["rmsproptf", "adamw"])
def test_the_estimate_is_what_a_real_step_allocates(optimizer: str, again: bool) -> None:
    train = TrainConfig(optimizer=optimizer, lr=0.01, grad_checkpointing=again)
    estimate = training_cost(MODEL, train, classes=10, rows=16, bf16=False)
    # What is missing is scratch memory inside of operations.
    assert estimate.step_bytes == pytest.approx(allocated(MODEL, train, 16), rel=0.15)


@pytest.mark.slow
def test_what_saves_memory_is_seen_to_save_it() -> None:
    def step_bytes(rows: int = 32, bf16: bool = False, groups: int = 0, **settings: Any) -> int:
        train = TrainConfig.model_validate(settings)
        found = training_cost(MODEL, train, classes=10, rows=rows, bf16=bf16, trained_groups=groups)
        return found.step_bytes

    plain = step_bytes()
    assert step_bytes(grad_checkpointing=True) < 0.7 * plain
    assert step_bytes(bf16=True) < 0.8 * plain
    assert step_bytes(rows=16) < 0.6 * plain
    assert step_bytes(groups=2) < 0.5 * plain


SMALL_VIT = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("test_vit", {"drop_path_rate": 0.1}),
        ("vit_tiny_patch16_224", SMALL_VIT),
        ("test_convnext", {"drop_path_rate": 0.1}),
        ("regnetx_002", {}),
    ],
)
def test_parameters_are_counted_without_making_them(name: str, arguments: dict[str, Any]) -> None:
    """timm reads numbers back from tensors while it builds transformers, ConvNeXts and RegNets."""
    model = ModelConfig(model=name, model_args=arguments, image_size=32)
    assert parameters_of(model, classes=7) == parameter_count(build(model, 7))


def test_a_transformer_with_stochastic_depth_can_be_planned() -> None:
    model = ModelConfig(model="vit_tiny_patch16_224", model_args=SMALL_VIT, image_size=32)
    found = training_cost(model, TrainConfig(), classes=10, rows=4, bf16=False)
    assert found.step_bytes > found.state_bytes > 0


def test_bytes_by_hand() -> None:
    layer = nn.Linear(1000, 500, bias=False)
    alive = Alive(layer.parameters())
    with alive:
        out = layer(torch.ones(8, 1000))
        del out
        again = layer(torch.ones(8, 1000))
    assert alive.peak == 4 * (8 * 1000 + 8 * 500)
    del again
    train = TrainConfig(optimizer="sgd")
    one = training_cost(MODEL, train, classes=10, rows=2, bf16=False)
    two = training_cost(MODEL, train, classes=10, rows=2, bf16=False, workers=2)
    assert two.state_bytes - one.state_bytes == 4 * one.parameters
    assert one.bytes(cuda=True) - one.bytes(cuda=False) == cost.CUDA_BYTES


@pytest.mark.slow
def test_a_short_step_is_measured() -> None:
    train = TrainConfig()
    estimate = training_cost(MODEL, train, classes=10, rows=4, bf16=False)
    rate = measured_rate(MODEL, train, estimate, classes=10, device=torch.device("cpu"))
    assert rate.labeling > 0
    assert rate.training > 0
