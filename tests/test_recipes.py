"""The paper's recipes: every number loads, every model is the published one, and learns."""

from typing import Any

import pytest
import torch

from ns_ray.compute.resources import Device
from ns_ray.config.loading import load_recipe, recipe_names
from ns_ray.config.run import RunConfig
from ns_ray.config.training import ModelConfig, TrainConfig, fixres_config, train_config
from ns_ray.model.cost import forward_cost, training_cost
from ns_ray.store.corpora import Corpus, Shard
from ns_ray.training.job import Job, lane_sizes
from ns_ray.training.learner import Learner
from ns_ray.training.loader import DeviceBatch
from ns_ray.training.rows import Sizes

PUBLISHED = {
    "efficientnet-b0": (5.3, 0.39),
    "efficientnet-b1": (7.8, 0.70),
    "efficientnet-b2": (9.2, 1.0),
    "efficientnet-b3": (12, 1.8),
    "efficientnet-b4": (19, 4.2),
    "efficientnet-b5": (30, 9.9),
    "efficientnet-b6": (43, 19),
    "efficientnet-b7": (66, 37),
}
"""Millions of parameters (Xie et al., v2, table of model sizes), and billions of multiply-adds (Tan
and Le 2019, table 2)."""
H100_BYTES = 80e9


def recipe(name: str) -> RunConfig:
    return load_recipe(f"paper/{name}")


def test_all_of_them_are_here() -> None:
    names = {n.removeprefix("paper/") for n in recipe_names() if n.startswith("paper/")}
    assert names == {*PUBLISHED, "efficientnet-l2", "svhn"}


@pytest.mark.parametrize("name", recipe_names())
def test_its_batches_can_be_shared_among_its_workers(name: str) -> None:
    config = load_recipe(name)
    workers = config.resources.num_workers
    for model in (config.teacher, *config.students):
        train = train_config(config.train, model)
        labeled, pseudo = lane_sizes(train, workers, model is not config.teacher)
        assert labeled > 0
        assert (pseudo > 0) == (model is not config.teacher)
        finer = fixres_config(model, train)
        if finer is not None:
            lane_sizes(finer[1], workers, False)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_its_models_are_the_published_ones(name: str) -> None:
    """In size and arithmetic; teacher and student are the same."""
    config = recipe(name)
    assert config.students == (config.teacher.model_copy(update={"train": {}}),)
    train = train_config(config.train, config.students[0])
    cost = forward_cost(config.students[0], train, classes=1000)
    millions, billions = PUBLISHED[name]
    assert cost.parameters / 1e6 == pytest.approx(millions, rel=0.02)
    assert cost.flops / 2e9 == pytest.approx(billions, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("efficientnet-b0", "efficientnet-b7", "svhn"),
        *(pytest.param(f"efficientnet-b{n}", marks=pytest.mark.trial) for n in range(1, 7)),
    ],
)
def test_its_student_learns_for_two_steps(name: str) -> None:
    """At 64 px, in the middle of its schedule, with the optimizer and averages of a real one."""
    config = recipe(name)
    model = config.students[0].model_copy(update={"image_size": 64})
    train = train_config(config.train, config.students[0])
    learner = learner_of(model, train)
    norm = next(m for m in learner.model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert norm.momentum == pytest.approx(0.01)
    assert norm.eps == 1e-3
    learner.train_mode()
    weights = classifier(learner.model)
    before, average = weights.detach().clone(), classifier(learner.ema.module).clone()
    for step in (7000, 7001):
        learner.schedule.step_update(step)
        learner.optimizer.zero_grad(set_to_none=True)
        pixels = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
        batch = DeviceBatch(pixels, torch.tensor([0, 1]), torch.full((2, 10), 0.1))
        loss, _, _ = learner.backward(learner.model, batch, Sizes(2, 2, 64))
        learner.update(step)
        assert torch.isfinite(loss)
    assert torch.isfinite(weights).all()
    assert not torch.equal(weights, before)
    assert not torch.equal(classifier(learner.ema.module), average)


def classifier(network: Any) -> torch.Tensor:
    """The last layer's weights; timm's methods have no types."""
    weights: torch.Tensor = network.get_classifier().weight
    return weights


def learner_of(
    model: ModelConfig,
    train: TrainConfig,
    rows: int = 1_271_167,
    classes: int = 10,
    device: Device = "cpu",
    counts: tuple[int, ...] = (),
    selection: str | None = None,
) -> Learner:
    """What trains a model."""
    names = tuple(str(n) for n in range(classes))
    corpus = Corpus("", "", (Shard("a", "a.parquet", rows, 0),), names, counts)
    job = Job(
        model=model.model_dump(mode="json"),
        train=train.model_dump(mode="json"),
        labeled="",
        validation=None,
        selection=selection,
        soft=True,
        temperature=1.0,
        start_from=None,
        seed=0,
        out="",
        checkpoint="",
        fingerprint="",
        steps=10,
        loaders=0,
        in_turn=False,
        threads=1,
        device=device,
        lanes=1,
        trained_groups=0,
        provenance={},
    )
    return Learner(job, train, corpus, torch.device(device))


def test_the_learning_rate_is_the_reference_code_s() -> None:
    """TensorFlow's `exponential_decay(staircase=True)` of the step itself, and a linear warm-up."""
    train = recipe("efficientnet-b7").train
    tiny = ModelConfig(model="test_resnet", image_size=32)
    learner = learner_of(tiny, train, rows=2048 * 100)  # 100 steps in an epoch
    for step in (0, 1, 250, 499, 500, 719, 720, 959, 960, 12_345, 34_999):
        learner.schedule.step_update(step)
        decayed = 0.016 * 2048 / 256 * 0.97 ** (step // 240)
        expected = 0.128 * step / 500 if step < 500 else decayed
        assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(expected), step
    for group in learner.optimizer.param_groups:
        assert (group["alpha"], group["momentum"], group["eps"]) == (0.9, 0.9, 1e-3)
        assert group["lr_in_momentum"]
        assert not group["decoupled_decay"]


@pytest.mark.slow
def test_the_largest_student_fits_a_gpu() -> None:
    """EfficientNet-L2 at 475 px on tensors without data: bfloat16, activations recomputed, two
    passes of 116 images for a step."""
    config = recipe("efficientnet-l2")
    student = config.students[-1]
    train = train_config(config.train, student)
    assert [train_config(config.train, s).unlabeled_ratio for s in config.students] == [14, 14, 28]
    rows = sum(lane_sizes(train, config.resources.num_workers, True))
    assert rows == 116
    cost = training_cost(
        student, train, classes=1000, rows=rows, bf16=True, workers=config.resources.num_workers
    )
    assert cost.parameters / 1e6 == pytest.approx(480, rel=0.01)
    assert 20e9 < cost.bytes(cuda=True) < H100_BYTES
