"""Whether a run can start: its settings, images, models, machine and store, each tried a little.

Nothing is packed or trained, and Ray isn't started.
"""

import math
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from rich import box
from rich.table import Table
from rich.text import Text

from ns_ray import store
from ns_ray.compute import Machine, resources
from ns_ray.config import LITE, ModelConfig, RunConfig, config_hash, fixres_config, train_config
from ns_ray.data import Augment, Listing, decode, list_all
from ns_ray.errors import ConfigError, DataError, ImageError, NsRayError, StorageError
from ns_ray.model import (
    build_noised,
    fused_arguments,
    has_depth_noise,
    parameter_count,
    recompute_activations,
)
from ns_ray.store import RunLayout, open_bundle
from ns_ray.training import lane_sizes

SAMPLED = 20
"""Images of each source that are decoded."""


@dataclass(frozen=True)
class Finding:
    """What one check found: how it is, or the error that a run would end with."""

    name: str
    detail: str
    error: NsRayError | None = None


def check_run(config: RunConfig, machine: Machine) -> list[Finding]:
    """Try everything that a run needs; what fails doesn't keep the rest from being tried.

    Args:
        config: the run.
        machine: what there is.
    """
    found = [Finding("settings", f"valid, hash {config_hash(config)}")]
    found += _tried("data", lambda: _data(config))
    for place, model in [
        ("teacher", config.teacher),
        *[(f"students.{i}", student) for i, student in enumerate(config.students)],
    ]:
        is_teacher = place == "teacher"
        found += _tried(place, lambda p=place, m=model, t=is_teacher: _model(config, p, m, t))  # type: ignore[misc]
    found += _tried("resources", lambda: _resources(config, machine))
    found += _tried("storage", lambda: _storage(config))
    return found


def _tried(name: str, work: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from work()
    except NsRayError as error:
        yield Finding(name, str(error), error)


def _data(config: RunConfig) -> Iterator[Finding]:
    found = list_all(config.data, seed=config.seed)
    for name, listing in [
        ("labeled", found.labeled),
        ("unlabeled", found.unlabeled),
        ("validation", found.validation),
        ("test", found.test),
    ]:
        if listing is not None:
            yield from _tried(f"data.{name}", lambda n=name, f=listing: _images(config, n, f))  # type: ignore[misc]


def _images(config: RunConfig, name: str, listing: Listing) -> Iterator[Finding]:
    """Counts, and a few images decoded.

    Raises:
        DataError: more of them than `data.max_rejected` cannot be.
    """
    sample = listing.sample(SAMPLED, config.seed)
    reasons: list[str] = []
    for item in sample:
        try:
            decode(item.read(), max_pixels=config.data.max_pixels)
        except ImageError as error:
            reasons.append(f"{item.uri}: {error}")
        except OSError as error:
            reasons.append(f"{item.uri}: {error.strerror or error}")
    if len(reasons) > max(1, math.ceil(config.data.max_rejected * len(sample))):
        raise DataError(
            f"{len(reasons)} of {len(sample)} images tried cannot be read, such as {reasons[0]}; "
            f"data.max_rejected={config.data.max_rejected:g}"
        )
    labeled = name != "unlabeled"
    classes = f" in {len(listing.classes):,} classes" if labeled else ""
    bad = f", {len(reasons)} cannot be read ({reasons[0]})" if reasons else ", all can be read"
    yield Finding(
        f"data.{name}",
        f"{listing.rows:,} images{classes}; {len(sample)} tried{bad}",
    )


def _model(config: RunConfig, place: str, model: ModelConfig, teacher: bool) -> Iterator[Finding]:
    if model.bundle is not None:
        bundle = open_bundle(model.bundle)
        words = f"{bundle.architecture} of {bundle.path}, {len(bundle.classes):,} classes"
        yield Finding(place, words)
        return
    train = train_config(config.train, model)
    fused_arguments(train.optimizer, torch.device("cpu"))
    Augment(train.noise, 32)
    if model.pretrained and "/" in model.pretrained:
        open_bundle(model.pretrained)
    offline = model.model_copy(update={"pretrained": None})
    try:
        built, _ = build_noised(offline, train.noise, 10)
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


def _resources(config: RunConfig, machine: Machine) -> Iterator[Finding]:
    workers = resources.workers(config.resources, machine)
    pool = resources.pool(config.resources, machine)
    yield Finding(
        "resources",
        f"{machine.cpus} CPUs, {machine.gpus} GPUs; training: {workers.count} workers with "
        f"{workers.cpus:g} CPUs, {workers.gpus:g} GPUs and {workers.loaders} loaders each; "
        f"labeling: {pool.actors} actors with {pool.cpus:g} CPUs and {pool.gpus:g} GPUs each",
    )


def _storage(config: RunConfig) -> Iterator[Finding]:
    """Write a file, read it, remove it."""
    layout = RunLayout.of(config)
    folder = store.absolute(config.storage)
    name = f".check-{uuid.uuid4().hex[:8]}"
    path = store.join(folder, name)
    try:
        store.write_bytes(path, name.encode())
        same = store.read_bytes(path) == name.encode()
        store.remove_files(folder, [name])
    except (StorageError, ConfigError) as error:
        raise ConfigError(f"storage={config.storage!r}: {error}") from None
    if not same:
        raise ConfigError(f"storage={config.storage!r} gives back other bytes than were written")
    state = "exists and will go on" if store.exists(layout.config) else "is new"
    yield Finding("storage", f"{folder} can be written; {layout.root} {state}")


def findings_table(found: list[Finding]) -> Table:
    """The findings on one screen."""
    made = Table(box=box.SIMPLE_HEAD, show_header=False)
    made.add_column("name", no_wrap=True)
    made.add_column("state")
    made.add_column("detail", overflow="fold")
    for finding in found:
        state = Text("failed", "red") if finding.error else Text("ok", "green")
        made.add_row(finding.name, state, finding.detail)
    return made


def check_models(config: RunConfig) -> None:
    """Build every model of a run, so that a mistake shows before anything is trained.

    Raises:
        ConfigError: one of them cannot be built, or packages that score them later are missing.
    """
    if config.evaluate.robustness is not None:
        from ns_ray.robustness import check_suites

        check_suites(config.evaluate.robustness)
    for place, model in _models(config):
        if model.bundle is None:
            try:
                build_noised(_offline(model), train_config(config.train, model).noise, 10)
            except ConfigError as error:
                raise ConfigError(f"{place}: {error}") from None


def _models(config: RunConfig) -> list[tuple[str, ModelConfig]]:
    """Every model of a run, and where the config has it."""
    students = [(f"students.{i}", student) for i, student in enumerate(config.students)]
    return [("teacher", config.teacher), *students]


def _offline(model: ModelConfig) -> ModelConfig:
    here = model.pretrained == LITE
    return model if here else model.model_copy(update={"pretrained": None})
