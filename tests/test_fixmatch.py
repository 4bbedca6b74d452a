"""FixMatch as `benchmarks/rivals.py` has it: what it learns, and from which images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fixmatch import SURE, Alignment, fixmatch, made, pile_loss, weak
from tiny import COLORS, MODEL, flat_folder, folder_per_class

from ns_ray.config.noise import NoiseConfig
from ns_ray.config.training import ModelConfig, TrainConfig
from ns_ray.data.packing import pack
from ns_ray.errors import ImageError
from ns_ray.model.predictor import Predictor
from ns_ray.store.corpora import Corpus
from ns_ray.training.rows import Sizes

NOISE = NoiseConfig(randaugment="rand-m3-n1-p0.5", crop_scale=None, dropout=0.0)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Corpus]:
    """Three images a class with a label, 60 without, and some to fit the temperature on."""
    folder = tmp_path_factory.mktemp("corpora")
    sources = {
        "labeled": folder_per_class(folder / "a", 3),
        "pile": flat_folder(folder / "b", 60, start=100),
        "validation": folder_per_class(folder / "c", 5, start=300),
    }
    return {name: pack(str(place), out=str(folder / name)) for name, place in sources.items()}


@pytest.mark.slow
def test_it_learns_colors_from_three_images_each(
    corpora: dict[str, Corpus], tmp_path: Path
) -> None:
    settings = {"batch_size": 6, "epochs": 24, "unlabeled_ratio": 3, "lr": 0.003, "noise": NOISE}
    bundle = fixmatch(
        ModelConfig.model_validate(MODEL),
        TrainConfig.model_validate({**settings, "optimizer": "adamw", "ema_decay": 0.9}),
        **corpora,
        seed=0,
        device=torch.device("cpu"),
        out=str(tmp_path / "bundle"),
        provenance={},
    )
    assert bundle.provenance["steps"] == 36
    assert 0.05 < bundle.provenance["sure"] < 1.0
    unseen = sorted(flat_folder(tmp_path / "new", 60, start=500).iterdir())
    right = []
    found = Predictor(bundle.path, device="cpu").predict([path.read_bytes() for path in unseen])
    for path, probs in zip(unseen, found, strict=True):
        assert not isinstance(probs, ImageError)
        right.append(bundle.classes[probs.argmax()] == list(COLORS)[int(path.stem) % 3])
    assert np.mean(right) > 0.8


def test_images_that_the_weak_view_is_unsure_of_are_not_learnt() -> None:
    probs = torch.tensor([[SURE, 0.05, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 1.0], [0.3, 0.3, 0.4]])
    strong = torch.randn(4, 3, requires_grad=True)
    loss, sure = pile_loss(strong, probs)
    assert sure.tolist() == [True, False, True, False]
    torch.autograd.backward(loss)
    assert strong.grad is not None
    assert strong.grad.abs().sum(dim=1).gt(0).tolist() == sure.tolist()
    picked = strong.detach().log_softmax(dim=1)
    # A mean over all four: with few sure images the pile weighs little.
    assert loss.item() == pytest.approx(-(picked[0, 0] + picked[2, 2]).item() / 4, rel=1e-5)


def test_alignment_moves_a_skewed_average_towards_the_labeled_classes() -> None:
    shares = torch.tensor([0.5, 0.25, 0.25])
    align = Alignment(shares)
    logits = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    probs = (logits + torch.tensor([0.0, 0.0, 3.0])).softmax(dim=1)
    first = align(probs)
    for _ in range(500):
        aligned = align(probs)
    assert torch.allclose(aligned.sum(dim=1), torch.ones(300), atol=1e-5)
    assert torch.allclose(align.average, probs.mean(dim=0), atol=0.01)

    def gap(found: torch.Tensor) -> float:
        return float((found.mean(dim=0) - shares).abs().sum())

    assert gap(aligned) < 0.5 * gap(probs)
    assert gap(first) == pytest.approx(gap(probs), abs=0.1)  # nothing is known of it yet


def test_a_batch_has_labeled_images_then_two_views_of_the_same_of_the_pile(
    corpora: dict[str, Corpus],
) -> None:
    still = NOISE.model_copy(update={"flip": 0.0, "randaugment": None, "crop_padding": 0.0})
    sizes = Sizes(4, 5, 16)
    loader = made(corpora["labeled"], corpora["pile"], sizes, still, 3)
    batch = next(loader)
    loader.close()  # type: ignore[attr-defined]
    assert batch.images.shape == (14, 16, 16, 3)
    colors = np.array(list(COLORS.values()))
    shown = batch.images.numpy().reshape(14, -1, 3).mean(axis=1)
    seen = np.abs(shown[:, None] - colors).sum(axis=2).argmin(axis=1)
    assert seen[:4].tolist() == batch.labels.tolist()
    assert seen[4:9].tolist() == seen[9:].tolist()
    # The weak view shifts, the strong one is the run's noise, which is none here.
    assert not torch.equal(batch.images[4:9], batch.images[9:])
    assert weak(still).crop_padding > 0
    assert weak(NoiseConfig()).live("unlabeled") == "shift 0.125, flip 0.5, dropout 0.2, " + (
        "stochastic depth 0.2"
    )
