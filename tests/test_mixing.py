"""Mixup and CutMix, class weights and logit adjustment: what a network sees, and learns."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_recipes import learner_of
from tiny import MODEL

from ns_ray import store
from ns_ray.config.training import ModelConfig, TrainConfig
from ns_ray.training.learner import Learner
from ns_ray.training.loader import DeviceBatch
from ns_ray.training.mixing import mix
from ns_ray.training.rows import Sizes

CLASSES, SIDE = 5, 12


def planes(targets: torch.Tensor) -> torch.Tensor:
    """Images with a channel per class, in which every pixel says the targets of its image."""
    return targets[:, :, None, None].expand(-1, -1, SIDE, SIDE).clone()


def shares(count: int, **alphas: float) -> tuple[list[float], int]:
    """The share of the other image in so many pairs, and how many of them were cut."""
    found, cut = [], 0
    torch.manual_seed(0)
    for _ in range(count):
        images = planes(torch.eye(2))
        found.append(mix(images, torch.eye(2), **alphas)[0, 1].item())
        cut += int(((images == 0) | (images == 1)).all())
    return found, cut


@pytest.mark.parametrize("alphas", [(0.2, 0.0), (0.0, 1.0), (0.2, 1.0)])
@pytest.mark.parametrize("rows", [1, 2, 5, 8])
def test_targets_are_mixed_as_their_images_are(rows: int, alphas: tuple[float, float]) -> None:
    mixup, cutmix = alphas
    for seed in range(20):
        torch.manual_seed(seed)
        soft = torch.rand(rows, CLASSES).softmax(dim=1)
        images = planes(soft)
        mixed = mix(images, soft, mixup=mixup, cutmix=cutmix)
        torch.testing.assert_close(images.mean(dim=(2, 3)), mixed)
        torch.testing.assert_close(mixed.sum(dim=0), soft.sum(dim=0))
        assert torch.equal(mixed[rows // 2], soft[rows // 2]) or rows % 2 == 0


def test_the_parameter_says_how_evenly_two_images_are_mixed() -> None:
    little, _ = shares(400, mixup=0.2, cutmix=0.0)
    even, _ = shares(400, mixup=50.0, cutmix=0.0)
    assert sum(0.1 < share < 0.9 for share in little) < 0.5 * 400
    assert all(0.25 < share < 0.75 for share in even)
    assert sum(little) / 400 == pytest.approx(0.5, abs=0.1)


def test_a_pasted_rectangle_has_its_share_of_the_area() -> None:
    """All shares are near a half here, of which the border takes a part, mostly."""
    found, _ = shares(100, mixup=0.0, cutmix=200.0)
    assert 0.4 < max(found) < 0.6


def test_each_batch_is_either_averaged_or_cut_with_equal_odds() -> None:
    assert shares(50, mixup=1.0, cutmix=0.0)[1] == 0
    assert shares(50, mixup=0.0, cutmix=1.0)[1] == 50
    assert 160 < shares(400, mixup=1.0, cutmix=1.0)[1] < 240


# ------------------------------------------------------------------------------- in a training

SIZES = Sizes(4, 6, 32)
LABELS, GUESSES = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 2, 3, 4, 4])
COPIES = [10, 10, 10, 10, 60]
STILL = {"dropout": 0.0, "stochastic_depth": 0.0}


class Seen:
    """A network that remembers its input and is sure of nothing."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.images = images
        self.logits = torch.zeros(len(images), CLASSES, requires_grad=True)
        return self.logits


def learner(noise: Mapping[str, Any], **changes: Any) -> Learner:
    """One whose labeled classes have 1, 2, 1, 4 and 0 images."""
    selection = changes.pop("selection", None)
    train = TrainConfig.model_validate({**changes, "noise": {**STILL, **noise}})
    model = ModelConfig.model_validate(MODEL)
    counts = (1, 2, 1, 4, 0)
    return learner_of(model, train, 8, CLASSES, counts=counts, selection=selection)


def forward(
    learning: Learner, targets: torch.Tensor = GUESSES, seed: int = 1
) -> tuple[Seen, list[float]]:
    """What the network sees of a batch of gray images, each of its own gray, and the losses."""
    grays = torch.arange(10, dtype=torch.uint8)[:, None, None, None] * 20
    seen, batch = Seen(), DeviceBatch(grays.expand(-1, 32, 32, 3), LABELS, targets)
    torch.manual_seed(seed)
    return seen, [loss.item() for loss in learning.backward(seen, batch, SIZES)]


def changed(seen: Seen) -> list[bool]:
    plain, _ = forward(learner({}))
    return (seen.images != plain.images).flatten(1).any(dim=1).tolist()


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@pytest.mark.parametrize("off", ["", "labeled", "unlabeled"])
def test_each_stream_is_mixed_with_itself_or_not_at_all(kind: str, off: str) -> None:
    seen, _ = forward(learner({kind: 1.0, **({f"off_{off}": [kind]} if off else {})}))
    assert changed(seen) == [off != "labeled"] * 4 + [off != "unlabeled"] * 6
    plain, _ = forward(learner({}))
    for part in (slice(0, 4), slice(4, 10)):
        low, high = plain.images[part].min(), plain.images[part].max()
        assert (seen.images[part] >= low).all()
        assert (seen.images[part] <= high).all()


def test_what_is_mixed_follows_from_the_seed_of_the_forward_pass() -> None:
    for kind in ("mixup", "cutmix"):
        learning = learner({kind: 1.0})
        images: list[torch.Tensor] = []
        for seed in (1, 1, 2):
            np.random.seed(len(images))  # a loader's thread draws from these
            images.append(forward(learning, seed=seed)[0].images)
        assert torch.equal(images[0], images[1])
        assert not torch.equal(images[0], images[2])


@pytest.mark.parametrize("soft", [False, True])
def test_the_network_learns_what_the_mixed_images_show(soft: bool) -> None:
    """Its gradient is what it says less the targets: those of a pair add up to what they were."""
    targets = torch.nn.functional.one_hot(GUESSES, CLASSES).float() if soft else GUESSES
    gradients = []
    for noise in ({}, {"mixup": 1.0}):
        seen, _ = forward(learner(noise), targets)
        assert seen.logits.grad is not None
        gradients.append(seen.logits.grad)
    plain, mixed = gradients
    assert not torch.allclose(plain[:4], mixed[:4])
    for part in (slice(0, 4), slice(4, 10)):
        plain_pairs, mixed_pairs = (g[part] + g[part].flip(0) for g in gradients)
        torch.testing.assert_close(mixed_pairs, plain_pairs)


def test_images_of_rare_classes_weigh_more() -> None:
    (plain, _), (weighted, _) = (
        forward(learner({}, class_weights=name)) for name in (None, "balanced")
    )
    assert plain.logits.grad is not None
    assert weighted.logits.grad is not None
    # 8 images of 4 classes that have any: 8 / (4 * count).
    expected = torch.tensor([2.0, 1.0, 1.0, 2.0, *[1.0] * 6])[:, None] * plain.logits.grad
    torch.testing.assert_close(weighted.logits.grad, expected)


@pytest.fixture
def selection(tmp_path: Path) -> str:
    """One that has most copies of the last class."""
    table = [{"copies": count} for count in COPIES]
    facts = {
        "labels": "l",
        "corpus": "c",
        "counts": {"s": 100},
        "kept": 100,
        "copies": 100,
        "table": table,
    }
    out = str(tmp_path)
    store.publish(
        out, stage="select", fingerprint="", files=[], facts=facts, inputs={}, seconds=0.0
    )
    return out


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_logits_are_adjusted_by_the_classes_of_their_stream(selection: str, tau: float) -> None:
    seen, _ = forward(learner({}, selection=selection, logit_adjustment=tau, label_smoothing=0.0))
    assert seen.logits.grad is not None
    # Of a network that says nothing the loss hears the prior; a class without images has one, and
    # none is rarer beside the most frequent in the selection than among the labeled images.
    labeled, pseudo = (
        torch.tensor(counts) ** tau / (torch.tensor(counts) ** tau).sum()
        for counts in ([1, 2, 1, 4, 1], [15, 30, 15, 60, 60])
    )
    rows, weight = torch.nn.functional.one_hot, 3.0
    labeled = (labeled - rows(LABELS, CLASSES)) / 4 / (1 + weight)
    pseudo = weight * (pseudo - rows(GUESSES, CLASSES)) / 6 / (1 + weight)
    torch.testing.assert_close(seen.logits.grad, torch.cat([labeled, pseudo]))
