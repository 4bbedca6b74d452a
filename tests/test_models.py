"""Models with the method's noise, and the averaged weights."""

import math
from typing import Any

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.utils import ModelEmaV3
from torch import nn

from ns_ray.config.noise import NoiseConfig
from ns_ray.config.training import ModelConfig, TrainConfig
from ns_ray.errors import ConfigError
from ns_ray.model.networks import (
    LiveRows,
    RowDropPath,
    add_noise,
    build,
    build_noised,
    decay_groups,
    freeze,
    fused_arguments,
    has_depth_noise,
    parameter_count,
    recompute_activations,
    statistics_kept,
)
from ns_ray.training.learner import average_of


def model_config(**settings: Any) -> ModelConfig:
    return ModelConfig.model_validate({"model": "test_vit", "image_size": 32, **settings})


def noised(dropout: float, depth: float, **settings: Any) -> tuple[nn.Module, LiveRows]:
    torch.manual_seed(0)
    noise = NoiseConfig(dropout=dropout, stochastic_depth=depth)
    return build_noised(model_config(**settings), noise, 4)


def varying_rows(model: nn.Module, rows: int = 6, passes: int = 12) -> list[bool]:
    """Which rows of a batch come out differently from pass to pass. Only for models without
    BatchNorm, where a row's noise stays its own."""
    torch.manual_seed(1)
    images = torch.randn(rows, 3, 32, 32)
    with torch.no_grad():
        outputs = torch.stack([model(images) for _ in range(passes)])
    return [bool(row) for row in (outputs != outputs[0]).any(dim=0).any(dim=1)]


# --------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize(("dropout", "depth"), [(0.5, 0.0), (0.0, 0.8), (0.5, 0.8)])
def test_noise_acts_on_the_live_rows_only(dropout: float, depth: float) -> None:
    model, live = noised(dropout, depth)
    model.train()
    rows = torch.tensor([True, True, True, False, False, False])
    live.dropout = live.depth = rows
    assert varying_rows(model) == rows.tolist()
    live.dropout = live.depth = ~rows
    assert varying_rows(model) == (~rows).tolist()
    live.dropout = live.depth = None
    assert all(varying_rows(model))


@pytest.mark.parametrize("part", ["dropout", "depth"])
def test_each_noise_has_its_own_rows(part: str) -> None:
    model, live = noised(0.5 if part == "dropout" else 0.0, 0.8 if part == "depth" else 0.0)
    model.train()
    other = "depth" if part == "dropout" else "dropout"
    setattr(live, part, torch.tensor([True, False] * 3))
    setattr(live, other, torch.tensor([False, True] * 3))
    assert varying_rows(model) == [True, False] * 3


def test_no_noise_in_eval_mode() -> None:
    model, live = noised(0.5, 0.8)
    plain = build(model_config(), 4).eval()
    plain.load_state_dict(model.state_dict())
    images = torch.randn(6, 3, 32, 32)
    for rows in (None, torch.ones(6, dtype=torch.bool)):
        live.dropout = live.depth = rows
        model.eval()
        assert not any(varying_rows(model))
        with torch.no_grad():
            torch.testing.assert_close(model(images), plain(images))


def test_no_noise_when_both_rates_are_zero() -> None:
    model, _ = noised(0.0, 0.0)
    model.train()
    assert not any(varying_rows(model))
    assert not has_depth_noise(model)
    assert has_depth_noise(noised(0.0, 0.2)[0])


def test_a_row_that_is_not_live_gets_just_what_a_clean_model_gives() -> None:
    model, live = noised(0.5, 0.8)
    clean = build(model_config(), 4)
    clean.load_state_dict(model.state_dict())
    live.dropout = live.depth = torch.tensor([False, True, True, False])
    images = torch.randn(4, 3, 32, 32)
    model.train()
    clean.train()
    with torch.no_grad():
        got, expected = model(images), clean(images)
    torch.testing.assert_close(got[[0, 3]], expected[[0, 3]])


def test_stochastic_depth_drops_whole_rows_and_scales_the_others() -> None:
    live = LiveRows()
    path = RowDropPath(0.25, live).train()
    torch.manual_seed(0)
    out = path(torch.ones(4000, 2, 3, 3)).flatten(1)
    kept = out[:, 0] > 0
    assert (out[kept] == 1 / 0.75).all()
    assert (out[~kept] == 0).all()
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    live.depth = torch.arange(4000) < 2000
    out = path(torch.ones(4000, 5))
    assert (out[2000:] == 1).all()
    assert (out[:2000] == 0).any()


def test_dropout_acts_before_the_classifier_and_keeps_the_mean() -> None:
    model, _ = noised(0.4, 0.0)
    seen: list[torch.Tensor] = []
    network: Any = model  # timm's methods have no types
    classifier = network.get_classifier()
    classifier.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    model.train()
    torch.manual_seed(0)
    classifier(torch.ones(200, classifier.in_features))
    zero = (seen[0] == 0).float().mean().item()
    assert zero == pytest.approx(0.4, abs=0.02)
    assert seen[0].max().item() == pytest.approx(1 / 0.6)


def test_depth_rates_are_those_of_timm_and_of_the_paper() -> None:
    noise = NoiseConfig(stochastic_depth=0.2)
    model, _ = build_noised(ModelConfig(model="efficientnet_b0", image_size=32), noise, 4)
    plain = timm.create_model("efficientnet_b0", drop_path_rate=0.2)
    ours = {n: m.rate for n, m in model.named_modules() if isinstance(m, RowDropPath)}
    theirs = {n: m.drop_prob for n, m in plain.named_modules() if isinstance(m, DropPath)}
    assert ours == pytest.approx(theirs)
    blocks = [f"blocks.{i}.{j}" for i, stage in enumerate(plain.blocks) for j in range(len(stage))]
    assert len(blocks) == 16
    expected = {f"{name}.drop_path": 0.2 * i / 16 for i, name in enumerate(blocks) if i}
    assert ours == pytest.approx(expected)
    assert not [m for m in model.modules() if isinstance(m, DropPath)]


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_vit", "test_convnext"])
def test_noise_adds_no_parameters_and_renames_none(name: str) -> None:
    model, _ = build_noised(ModelConfig(model=name), NoiseConfig(), 7)
    plain = timm.create_model(name, num_classes=7)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (model, plain)]
    assert shapes[0] == shapes[1]
    assert parameter_count(model) == sum(p.numel() for p in plain.parameters())
    assert has_depth_noise(model)


def test_a_model_without_stochastic_depth_is_built_without_it() -> None:
    args = {"mlp_ratio": 0.03125}  # 128 instead of 4096 features: the test needs no gigabyte
    config = ModelConfig(model="vgg11", image_size=32, model_args=args)
    model, _ = build_noised(config, NoiseConfig(dropout=0.5, stochastic_depth=0.2), 3)
    assert not has_depth_noise(model)
    model.train()
    assert all(varying_rows(model))


def test_dropout_reaches_both_heads_of_a_distilled_model() -> None:
    args = {"depth": 1, "embed_dim": 48, "num_heads": 2}
    config = ModelConfig(model="deit_tiny_distilled_patch16_224", image_size=32, model_args=args)
    model, _ = build_noised(config, NoiseConfig(dropout=0.5, stochastic_depth=0.0), 3)
    model.train()
    assert all(varying_rows(model))


def test_rates_given_as_model_args_win() -> None:
    model, _ = noised(0.0, 0.2, model_args={"drop_path_rate": 0.4})
    rates = [m.rate for m in model.modules() if isinstance(m, RowDropPath)]
    twice = [m.rate for m in noised(0.0, 0.2)[0].modules() if isinstance(m, RowDropPath)]
    assert rates == pytest.approx([2 * rate for rate in twice])


def test_noise_can_be_added_to_a_model_of_ones_own() -> None:
    model = timm.create_model("test_vit", num_classes=3, img_size=32, drop_path_rate=0.5)
    add_noise(model, NoiseConfig(dropout=0.0))
    model.train()
    assert all(varying_rows(model, passes=30))


# --------------------------------------------------------------------------------------- build


def test_preprocessing_follows_the_settings() -> None:
    model = build(model_config(image_size=48, crop_pct=0.5), 4)
    cfg: Any = model.pretrained_cfg
    assert cfg["input_size"] == (3, 48, 48)
    assert cfg["crop_pct"] == 0.5
    assert cfg["num_classes"] == 4
    default: Any = build(ModelConfig(model="test_vit"), 4).pretrained_cfg
    theirs = timm.get_pretrained_cfg("test_vit")
    assert theirs is not None
    assert default["input_size"] == theirs.input_size
    assert default["crop_pct"] == theirs.crop_pct


def test_a_transformer_takes_the_size_it_is_told() -> None:
    model = build(ModelConfig(model="deit_tiny_patch16_224", image_size=64), 5).eval()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model": "efficientnet_bo"}, ["'efficientnet_bo'", "did you mean 'efficientnet_b"]),
        ({"model": "zzzz"}, ["'zzzz'", "timm.list_models()"]),
        ({"model": "resnet18.foo"}, ["resnet18", "foo"]),
        ({"pretrained": "no_such_tag"}, ["test_vit", "no_such_tag"]),
        ({"model_args": {"widht": 2}}, ["test_vit", "'widht'", "model_args"]),
        ({"model_args": {"in_chans": 1}}, ["in_chans=1", "leave in_chans at 3"]),
        ({"model": "test_vit", "image_size": 8}, ["image_size=8", "test_vit", "set image_size"]),
        ({"model": "inception_v3"}, ["image_size=32", "inception_v3", "set image_size"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(settings: dict[str, Any], says: list[str]) -> None:
    for make in (
        lambda config: build(config, 3),
        lambda config: build_noised(config, NoiseConfig(), 3),
    ):
        with pytest.raises(ConfigError) as caught:
            make(model_config(**settings))
        message = str(caught.value)
        assert "\n" not in message
        for part in says:
            assert part in message


def test_weights_that_cannot_be_had_are_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_args: Any, **_kwargs: Any) -> None:
        raise FileNotFoundError("cannot find the requested files\nsee the connection")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(ConfigError, match="set pretrained to null") as caught:
        build(model_config(pretrained="true"), 3)
    assert "\n" not in str(caught.value)


def test_a_failure_without_words_is_still_a_config_error() -> None:
    class Picky(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError

    from ns_ray.model.networks import check_size

    with pytest.raises(ConfigError, match=r"image_size=16 does not fit 'picky' \(AssertionError\)"):
        check_size(Picky(), "picky", 16)


def test_the_size_check_leaves_the_mode_and_the_statistics_alone() -> None:
    model = build(ModelConfig(model="test_resnet", image_size=32), 3)
    assert model.training
    means = [b for n, b in model.named_buffers() if n.endswith("running_mean")]
    assert means
    assert all((mean == 0).all() for mean in means)


# -------------------------------------------------------------------- what learns, and how


def test_the_last_groups_of_layers_learn_and_the_others_keep_still() -> None:
    model = build(ModelConfig(model="efficientnet_b0", image_size=32), 4)
    frozen = freeze(model, 2)
    learning = {n.rsplit(".", 1)[0] for n, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in learning} == {"blocks", "conv_head", "bn2", "classifier"}
    assert {name[:8] for name in learning if name.startswith("blocks")} == {"blocks.6"}
    assert model.get_submodule("blocks.5.0") in frozen
    assert model.get_submodule("blocks.6.0") not in frozen


@pytest.mark.parametrize(("groups", "says"), [(9, "trains all 9 groups"), (20, "at most 8")])
def test_freezing_nothing_is_refused(groups: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        freeze(build(ModelConfig(model="efficientnet_b0", image_size=32), 4), groups)


def test_all_but_the_norms_decay() -> None:
    """The reference code's L2 term leaves out variables of BatchNorm only."""
    model = build(ModelConfig(model="efficientnet_b0", image_size=32), 4)
    names = {id(p): n for n, p in model.named_parameters()}
    still, decaying = decay_groups(model, 1e-5)
    assert (still["weight_decay"], decaying["weight_decay"]) == (0.0, 1e-5)
    assert all("bn" in names[id(p)] for p in still["params"])
    found = {names[id(p)] for p in decaying["params"]}
    assert not any("bn" in name for name in found)
    assert {"classifier.bias", "blocks.0.0.se.conv_reduce.bias", "conv_stem.weight"} <= found
    assert len(found) + len(still["params"]) == len(names)


def test_fused_kernels_are_asked_for_where_there_are_some() -> None:
    cuda = torch.device("cuda")
    for name in ("sgd", "momentum", "adamw", "lookahead_adam"):
        assert fused_arguments(name, cuda) == {"fused": True}
        assert fused_arguments(name, torch.device("cpu")) == {}
    assert fused_arguments("rmsproptf", cuda) == {}
    with pytest.raises(ConfigError, match=r"'rmsproptff' is not known .*did you mean 'rmsproptf'"):
        fused_arguments("rmsproptff", cuda)


def test_recomputing_activations_changes_nothing() -> None:
    """Neither gradients nor noise nor the statistics of BatchNorm, which sees each batch twice."""
    results = []
    for again in (False, True):
        torch.manual_seed(0)
        noise = NoiseConfig(dropout=0.2, stochastic_depth=0.5)
        model, _ = build_noised(ModelConfig(model="test_efficientnet", image_size=32), noise, 4)
        norms = recompute_activations(model) if again else []
        model.train()
        images = torch.randn(8, 3, 32, 32)
        torch.manual_seed(1)
        loss = model(images).square().mean()
        with statistics_kept(norms):
            torch.autograd.backward(loss)
        gradients = {n: p.grad for n, p in model.named_parameters()}
        results.append({**gradients, **dict(model.named_buffers())})
        results[-1] = {n: t for n, t in results[-1].items() if "tracked" not in n}
        assert norms or not again
        assert all(norm.momentum == 0.1 for norm in norms)
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, msg=name)


def test_a_model_that_cannot_recompute_says_so() -> None:
    with pytest.raises(ConfigError, match=r"for Tiny; set train\.grad_checkpointing to false"):
        recompute_activations(Tiny())
    with pytest.raises(ConfigError, match="Tiny has no groups of layers to freeze"):
        freeze(Tiny(), 1)


# -------------------------------------------------------------------- averaged weights (learner.py)


class Tiny(nn.Module):
    """One parameter, one float buffer, one integer buffer."""

    mean: torch.Tensor
    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("count", torch.tensor(0))


def average(decay: float) -> tuple[Tiny, ModelEmaV3]:
    model = Tiny()
    return model, average_of(model, TrainConfig(ema_decay=decay))


def test_the_decay_ramps_up_to_its_setting() -> None:
    # timm counts t from the second update on, TensorFlow's (1 + t) / (10 + t) from the first.
    _, ema = average(0.999)
    assert ema.get_decay(0) == ema.get_decay(1) == 0.0
    for step in (2, 3, 10, 100, 1000, 8000):
        t = step - 1
        assert ema.get_decay(step) == pytest.approx(t / (9 + t))
    assert ema.get_decay(10**6) == 0.999
    _, low = average(0.9)
    assert low.get_decay(500) == 0.9


def test_a_short_training_does_not_average_its_first_weights() -> None:
    model, ema = average(0.9999)
    with torch.no_grad():
        model.w.add_(1.0)
    for step in range(50):
        ema.update(model, step=step)
    torch.testing.assert_close(ema.module.w.data, torch.ones(2))


def test_float_buffers_are_averaged_and_integer_ones_copied() -> None:
    model, ema = average(0.9)
    step = 10
    decay = (step - 1) / (9 + step - 1)
    with torch.no_grad():
        model.w.fill_(1.0)
    model.mean.fill_(4.0)
    model.count.fill_(7)
    ema.update(model, step=step)
    assert ema.module.w.tolist() == pytest.approx([1 - decay] * 2)
    assert ema.module.mean.tolist() == pytest.approx([4 * (1 - decay)] * 2)
    assert ema.module.count.item() == 7
    assert math.isclose(decay, 0.5)
