"""Whether the models of a run can be built, tried without weights."""

from collections.abc import Iterator
from itertools import pairwise

import torch

from ns_ray.config import LITE, ModelConfig, RunConfig, fixres_config, train_config
from ns_ray.data import Augment
from ns_ray.errors import ConfigError
from ns_ray.model import (
    build_noised,
    check_weights,
    fused_arguments,
    has_depth_noise,
    load,
    parameter_count,
    parameters_of,
    recompute_activations,
)
from ns_ray.planning.findings import Finding
from ns_ray.store import open_bundle
from ns_ray.training import lane_sizes


def try_model(
    config: RunConfig, place: str, model: ModelConfig, teacher: bool
) -> Iterator[Finding]:
    """Build a model and share its batch among the workers, as a run would.

    Args:
        place: where the config has the model.
        teacher: whether it learns from labeled images only.

    Raises:
        ConfigError: it cannot be built, or its batch cannot be shared.
        DataError: a bundle that it names cannot be opened.
    """
    if model.bundle is not None:
        bundle = open_bundle(model.bundle)
        words = f"{bundle.architecture} of {bundle.path}, {len(bundle.classes):,} classes"
        yield Finding(place, words)
        return
    train = train_config(config.train, model)
    fused_arguments(train.optimizer, torch.device("cpu"))
    Augment(train.noise, 32)
    offline = model.model_copy(update={"pretrained": None})
    try:
        built, _ = build_noised(offline, train.noise, 10)
        check_weights(model)
        if train.grad_checkpointing:
            recompute_activations(built)
        finer = fixres_config(offline, train)
        if finer is not None:
            build_noised(finer[0], finer[1].noise, 10)
            lane_sizes(finer[1], config.resources.num_workers, False)
        lane_sizes(train, config.resources.num_workers, not teacher)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
    noise = train.noise.live("labeled" if teacher else "unlabeled")
    lacks = (
        ""
        if has_depth_noise(built) or not train.noise.stochastic_depth
        else ("; it has no stochastic depth")
    )
    words = f"{model.model}, {parameter_count(built) / 1e6:,.1f} M parameters; noise: {noise}"
    yield Finding(place, words + lacks)


def check_models(config: RunConfig) -> None:
    """Build every model of a run, so that a mistake shows before anything is trained.

    Raises:
        ConfigError: one of them cannot be built, its start weights are not there, or packages that
            score them later are missing.
        DataError: a bundle that one starts from is damaged.
    """
    if config.evaluate.robustness is not None:
        from ns_ray.robustness import check_suites

        check_suites(config.evaluate.robustness)
    for place, model in _models(config):
        if model.bundle is None:
            try:
                build_noised(_offline(model), train_config(config.train, model).noise, 10)
                check_weights(model)
            except ConfigError as error:
                raise ConfigError(f"{place}: {error}") from None


def smaller_students(config: RunConfig) -> list[str]:
    """A line for each student with fewer parameters than the model before it. It may teach well all
    the same; the paper's students are as large as their teachers or larger.

    Raises:
        ConfigError: a model cannot be built.
        DataError: a bundle that the config names cannot be opened.
    """
    bundle = open_bundle(config.teacher.bundle) if config.teacher.bundle is not None else None
    classes = len(bundle.classes) if bundle else 10  # any number, if it is the same for all
    counted: dict[str, int] = {}  # L2 takes five seconds, and a run has three of it
    sizes = []
    for place, model in _models(config):
        name = f"{model.bundle} {model.model} {model.model_args} {model.image_size}"
        if name not in counted:
            counted[name] = (
                bundle.parameters or parameter_count(load(bundle)[0])
                if bundle and model is config.teacher
                else parameters_of(model, classes=classes)
            )
        sizes.append((place, counted[name]))
    return [
        f"{place} is smaller than {before}: {size:,} parameters, {larger:,} there; "
        "the paper's students are as large as their teachers or larger"
        for (before, larger), (place, size) in pairwise(sizes)
        if size < larger
    ]


def _models(config: RunConfig) -> list[tuple[str, ModelConfig]]:
    """Every model of a run, and where the config has it."""
    students = [(f"students.{i}", student) for i, student in enumerate(config.students)]
    return [("teacher", config.teacher), *students]


def _offline(model: ModelConfig) -> ModelConfig:
    here = model.pretrained == LITE
    return model if here else model.model_copy(update={"pretrained": None})
