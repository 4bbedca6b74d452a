"""The loss against numbers worked out by hand."""

import math
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from timm.optim import RMSpropTF

from ns_ray.config import TrainConfig
from ns_ray.training.losses import balanced_weights, dense, log_prior, mixed_loss, sharpen

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0], [0.0, 0.0, 3.0], [1.0, -1.0, 0.0]])


def log_softmax(row: list[float]) -> list[float]:
    total = math.log(sum(math.exp(x) for x in row))
    return [x - total for x in row]


def cross_entropy(row: list[float], target: list[float]) -> float:
    return -sum(t * x for t, x in zip(target, log_softmax(row), strict=True))


def smoothed(label: int, by: float, classes: int = 3) -> list[float]:
    return [by / classes + (1 - by) * (i == label) for i in range(classes)]


def by_hand(targets: list[list[float]]) -> list[float]:
    return [cross_entropy(row, t) for row, t in zip(LOGITS.tolist(), targets, strict=True)]


@pytest.mark.parametrize("hard", [True, False])
def test_with_the_ratio_as_weight_it_is_the_mean_of_the_whole_batch(hard: bool) -> None:
    soft = torch.tensor([[0.2, 0.7, 0.1], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0]])
    targets = soft.argmax(1) if hard else soft
    rows = torch.nn.functional.one_hot(targets, 3).float() if hard else soft
    loss, labeled, pseudo = mixed_loss(
        LOGITS, torch.tensor([2]), targets, weight=3.0, label_smoothing=0.0
    )
    each = by_hand([[0.0, 0.0, 1.0], *rows.tolist()])
    assert loss.item() == pytest.approx(sum(each) / 4, rel=1e-5)
    assert labeled.item() == pytest.approx(each[0], rel=1e-5)
    assert pseudo.item() == pytest.approx(sum(each[1:]) / 3, rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 14.0])
def test_any_other_weight_mixes_the_two_means(weight: float) -> None:
    loss, labeled, pseudo = mixed_loss(
        LOGITS, torch.tensor([0, 1]), torch.tensor([2, 0]), weight=weight, label_smoothing=0.1
    )
    expected = (labeled + weight * pseudo) / (1 + weight)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("labeled_weight", [0.0, 1.0])
def test_the_sum_is_not_divided(labeled_weight: float) -> None:
    loss, labeled, pseudo = mixed_loss(
        LOGITS,
        torch.tensor([0, 1]),
        torch.tensor([2, 0]),
        weight=5.0,
        label_smoothing=0.1,
        labeled_weight=labeled_weight,
        kind="sum",
    )
    expected = labeled_weight * labeled + 5.0 * pseudo
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("labeled_weight", [0.0, 1.0])
def test_the_sum_without_pseudo_labels_is_the_mean_of_the_labeled_images(
    labeled_weight: float,
) -> None:
    loss, labeled, _ = mixed_loss(
        LOGITS,
        torch.tensor([0, 1, 2, 0]),
        None,
        weight=5.0,
        label_smoothing=0.1,
        labeled_weight=labeled_weight,
        kind="sum",
    )
    assert loss.item() == labeled.item()


def test_labels_cost_the_same_as_classes_and_as_rows() -> None:
    """Whether they are mixed or not, they are smoothed once; soft targets are not."""
    labels, soft = torch.tensor([0, 1]), torch.tensor([[0.0, 0.0, 1.0], [0.6, 0.1, 0.3]])
    rows = dense(labels, 3, 0.1)
    for targets, of_targets in (
        (torch.tensor([2, 0]), dense(torch.tensor([2, 0]), 3, 0.1)),
        (soft,) * 2,
    ):
        plain = mixed_loss(LOGITS, labels, targets, weight=2.0, label_smoothing=0.1)
        dense_ones = mixed_loss(LOGITS, rows, of_targets, weight=2.0, label_smoothing=0.1)
        torch.testing.assert_close(dense_ones, plain)
    assert dense(soft, 3, 0.1) is soft


def test_balanced_weights_are_those_of_scikit_learn_and_one_on_average() -> None:
    labels = np.repeat([0, 1, 3], [1, 3, 6])
    weights = balanced_weights([1, 3, 0, 6])
    expected = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    assert weights[[0, 1, 3]].tolist() == pytest.approx(expected.tolist())
    assert weights[labels].mean().item() == pytest.approx(1.0)
    assert weights[2] == 0


def test_a_class_without_images_has_a_prior_all_the_same() -> None:
    assert log_prior([1, 3, 0, 4]).exp().tolist() == pytest.approx([1 / 9, 3 / 9, 1 / 9, 4 / 9])


def test_no_class_is_rarer_in_a_selection_than_among_labeled_images() -> None:
    found = log_prior([100, 100, 0, 50], at_least=[20, 0, 2, 5]).exp()
    assert found.tolist() == pytest.approx([100 / 260, 100 / 260, 10 / 260, 50 / 260])


def test_the_mean_is_not_written_into_the_settings_and_the_sum_is() -> None:
    """What was trained before there was a sum keeps its fingerprint."""
    assert "loss" not in TrainConfig().model_dump(mode="json")
    assert "loss" not in TrainConfig.model_validate({"loss": "mean"}).model_dump(mode="json")
    written = TrainConfig.model_validate({"loss": "sum"}).model_dump(mode="json")
    assert written["loss"] == "sum"
    assert TrainConfig.model_validate(written).loss == "sum"


def trained(kind: Literal["mean", "sum"], *, scale: float) -> torch.Tensor:
    """The weights after 20 steps of TensorFlow's RMSProp with a ratio of 5; weight decay, epsilon
    and the first square average are those of the recipes over `scale` as the equivalence has it."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(4, 3, generator=generator, dtype=torch.float64).requires_grad_()
    optimizer = RMSpropTF(
        [weights],
        lr=0.05,
        alpha=0.9,
        eps=1e-3 / scale**2,
        momentum=0.9,
        weight_decay=1e-2 / scale,
    )
    for step in range(20):
        images = torch.randn(12, 4, generator=generator, dtype=torch.float64)
        soft = torch.softmax(torch.randn(10, 3, generator=generator, dtype=torch.float64), dim=1)
        loss, _, _ = mixed_loss(
            images @ weights,
            torch.tensor([0, 2]),
            soft,
            weight=5.0,
            label_smoothing=0.1,
            kind=kind,
        )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        if step == 0:  # as timm makes them, but for the ones in the square average
            optimizer.state[weights].update(
                step=torch.zeros(()),
                square_avg=torch.full_like(weights, 1 / scale**2),
                momentum_buffer=torch.zeros_like(weights),
            )
        optimizer.step()
    return weights.detach()


def test_rmsprop_takes_the_sum_for_the_mean_with_scaled_settings_only() -> None:
    """What the comments of the recipes say: with a ratio of 5 the scale is 6."""
    added = trained("sum", scale=1.0)
    torch.testing.assert_close(trained("mean", scale=6.0), added, rtol=1e-9, atol=1e-9)
    assert (trained("mean", scale=1.0) - added).abs().max() > 0.05


def test_without_a_weight_labeled_images_teach_nothing() -> None:
    logits = torch.randn(5, 3, requires_grad=True)
    targets = torch.softmax(torch.randn(3, 3), dim=1)
    loss, _, pseudo = mixed_loss(
        logits,
        torch.tensor([0, 1]),
        targets,
        weight=2.0,
        label_smoothing=0.1,
        labeled_weight=0.0,
    )
    assert loss.item() == pytest.approx(pseudo.item())
    torch.autograd.backward(loss)
    assert logits.grad is not None
    assert logits.grad[:2].abs().max() == 0
    assert logits.grad[2:].abs().min() > 0


def test_hard_targets_are_smoothed_and_soft_ones_are_not() -> None:
    labels, soft = torch.tensor([0, 1]), torch.tensor([[0.0, 0.0, 1.0], [0.6, 0.1, 0.3]])
    _, labeled, pseudo = mixed_loss(LOGITS, labels, soft, weight=1.0, label_smoothing=0.1)
    each = by_hand([smoothed(0, 0.1), smoothed(1, 0.1), *soft.tolist()])
    assert labeled.item() == pytest.approx((each[0] + each[1]) / 2, rel=1e-5)
    assert pseudo.item() == pytest.approx((each[2] + each[3]) / 2, rel=1e-5)

    hard = torch.tensor([2, 0])
    _, _, pseudo = mixed_loss(LOGITS, labels, hard, weight=1.0, label_smoothing=0.1)
    each = by_hand([smoothed(0, 0.1), smoothed(1, 0.1), smoothed(2, 0.1), smoothed(0, 0.1)])
    assert pseudo.item() == pytest.approx((each[2] + each[3]) / 2, rel=1e-5)


def test_a_one_hot_target_costs_the_same_soft_or_hard() -> None:
    labels, hard = torch.tensor([0, 1]), torch.tensor([2, 0])
    soft = torch.nn.functional.one_hot(hard, 3).float()
    losses = [
        mixed_loss(LOGITS, labels, targets, weight=2.0, label_smoothing=0.0)[0].item()
        for targets in (hard, soft)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("targets", [None, torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)])
def test_without_pseudo_labels_only_the_labeled_images_count(targets: torch.Tensor | None) -> None:
    labels = torch.tensor([0, 1, 2, 0])
    loss, labeled, pseudo = mixed_loss(LOGITS, labels, targets, weight=3.0, label_smoothing=0.1)
    expected = sum(by_hand([smoothed(int(label), 0.1) for label in labels])) / 4
    assert loss.item() == labeled.item() == pytest.approx(expected, rel=1e-5)
    assert pseudo.item() == 0.0


def test_the_gradient_reaches_both_parts_of_the_batch() -> None:
    logits = LOGITS.clone().requires_grad_()
    loss, _, _ = mixed_loss(
        logits, torch.tensor([0, 1]), torch.tensor([2, 0]), weight=1.0, label_smoothing=0.1
    )
    torch.autograd.backward(loss)
    assert logits.grad is not None
    assert (logits.grad.abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("hard", [True, False])
def test_a_weight_multiplies_the_loss_of_its_image(hard: bool) -> None:
    soft = torch.tensor([[0.2, 0.7, 0.1], [0.0, 0.5, 0.5]])
    targets = soft.argmax(1) if hard else soft
    rows = [smoothed(int(t), 0.1) for t in targets] if hard else soft.tolist()
    weights = torch.tensor([0.25, 1.0])
    _, _, pseudo = mixed_loss(
        LOGITS,
        torch.tensor([0, 1]),
        dense(targets, 3, 0.1) * weights[:, None],
        weight=1.0,
        label_smoothing=0.1,
    )
    each = [cross_entropy(row, t) for row, t in zip(LOGITS.tolist()[2:], rows, strict=True)]
    assert pseudo.item() == pytest.approx((0.25 * each[0] + each[1]) / 2, rel=1e-5)


# ------------------------------------------------------------------------------------- sharpen


def test_temperature_one_changes_nothing() -> None:
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]])
    assert torch.equal(sharpen(probs, 1.0), probs)


def test_temperature_one_half_squares() -> None:
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]])
    expected = [[0.49 / 0.54, 0.04 / 0.54, 0.01 / 0.54], [0.0, 0.5, 0.5]]
    torch.testing.assert_close(sharpen(probs, 0.5), torch.tensor(expected))


def test_temperature_two_takes_the_root() -> None:
    roots = [math.sqrt(p) for p in (0.64, 0.36)]
    expected = [[root / sum(roots) for root in roots]]
    torch.testing.assert_close(sharpen(torch.tensor([[0.64, 0.36]]), 2.0), torch.tensor(expected))


def test_a_very_low_temperature_gives_the_arg_max() -> None:
    probs = torch.tensor([[0.002, 0.001, 0.001], [0.2, 0.3, 0.25]])
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(sharpen(probs, 0.01), expected, atol=1e-6, rtol=0.0)


@given(
    st.lists(st.floats(0.001, 1.0), min_size=2, max_size=20),
    st.sampled_from([0.05, 0.3, 0.9, 1.5, 4.0]),
)
def test_rows_stay_distributions_in_the_same_order(values: list[float], temperature: float) -> None:
    probs = torch.tensor([values])
    probs = probs / probs.sum()
    result = sharpen(probs, temperature)
    assert result.sum().item() == pytest.approx(1.0, abs=1e-4)
    order = probs[0].argsort()
    assert (result[0][order].diff() >= -1e-6).all()
    if temperature < 1:
        assert result.max() >= probs.max() - 1e-4
    else:
        assert result.max() <= probs.max() + 1e-4
