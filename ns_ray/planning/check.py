"""Whether a run can start: its settings, images, models, machine and store, each tried a little.

Nothing is packed or trained, and Ray isn't started.
"""

import uuid
from collections.abc import Iterator

from ns_ray import store
from ns_ray.compute import Machine, resources
from ns_ray.config import Images, RunConfig, config_hash, settle
from ns_ray.data import list_all
from ns_ray.errors import ConfigError, StorageError
from ns_ray.planning.findings import Finding, tried
from ns_ray.planning.images import try_images
from ns_ray.planning.models import smaller_students, try_model
from ns_ray.planning.pile import try_foreign, try_leaks
from ns_ray.store import RunLayout

SOME = Images(labeled=1000, pile=10_000)
"""Stand for a run's images where settings are chosen that are only tried: whether a batch can be
shared, and which noise a model has, does not depend on how many there are."""


def check_run(config: RunConfig, machine: Machine) -> list[Finding]:
    """Try everything that a run needs; what fails doesn't keep the rest from being tried.

    Args:
        config: the run.
        machine: what there is.
    """
    found = [Finding("settings", f"valid, hash {config_hash(config)}")]
    found += tried("data", lambda: _data(config))
    models: list[Finding] = []
    config, _ = settle(config, SOME)
    for place, model in [
        ("teacher", config.teacher),
        *[(f"students.{i}", student) for i, student in enumerate(config.students)],
    ]:
        is_teacher = place == "teacher"
        models += tried(place, lambda p=place, m=model, t=is_teacher: try_model(config, p, m, t))  # type: ignore[misc]
    found += models
    if not any(finding.error for finding in models):
        found += [Finding("sizes", line, unusual=True) for line in smaller_students(config)]
    found += tried("resources", lambda: _resources(config, machine))
    found += tried("storage", lambda: _storage(config))
    return found


def _data(config: RunConfig) -> Iterator[Finding]:
    found = list_all(config.data, seed=config.seed)
    yield from try_images(config, found)
    yield from tried("data", lambda: try_leaks(config, found))
    yield from tried("foreign", lambda: try_foreign(config, found))


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
    """Write a file, read it, remove it; room for the images, and what is free."""
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
