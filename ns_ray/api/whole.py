"""A whole run from one config, to its end.

Called again, it continues; a changed config under the same name is refused.
"""

from contextlib import ExitStack, closing
from typing import Any

import yaml

from ns_ray import store
from ns_ray.api.verdict import show
from ns_ray.api.words import COMMAND, Words
from ns_ray.config import (
    RunConfig,
    chosen_in,
    config_hash,
    differences,
    dump,
    dump_chosen,
    recorded,
    without_effect_left_out,
)
from ns_ray.errors import ConfigError, DamagedFileError, DataError, StorageError, first_line
from ns_ray.log import Metrics, say
from ns_ray.store import CONTROL, Mending, RunLayout, mirrored
from ns_ray.trackers import Trackers, check_installed, tracked


def execute(
    config: RunConfig, *, overwrite: bool = False, words: Words = COMMAND
) -> dict[str, Any]:
    """Run a config to its end and print the verdict.

    Returns:
        What result.json says.

    Raises:
        NsRayError: with the exit code of its kind; a StageError where another process runs it.
    """
    check_installed(config)
    layout, began = RunLayout.of(config), False
    with ExitStack() as owning:
        try:
            began = store.exists(layout.config)
            _check_same(config, layout, words, overwrite)
            if store.has_owner(layout.root) or not _has_ended(config, layout):
                owning.enter_context(store.owned(layout.root))
                _check_same(config, layout, words, overwrite)  # another driver may have come before
            _record(config, layout)
        except StorageError as error:
            # At the door `storage` may well name a wrong place, but not that of a run begun there.
            if began or store.may_be_mended(error):
                raise StorageError(f"storage={config.storage!r}: {error}", error.errno) from error
            raise ConfigError(f"storage={config.storage!r}: {error}") from error
        return _mended(config, layout, owning, owning.enter_context(tracked(config, layout)))


def _mended(
    config: RunConfig, layout: RunLayout, owning: ExitStack, trackers: Trackers
) -> dict[str, Any]:
    """The result of a run, after its verdict; damaged files are made again on the way."""
    mending = Mending(layout.root)
    while True:
        try:
            result = _finished(config, layout) or _work(config, layout, trackers)
            show(result, layout)
            _report(layout)
            trackers.deliver(result)
            return result
        except DamagedFileError as error:
            owning.enter_context(store.owned(layout.root))
            mending.mend(error)
        except DataError as error:
            if mending.last is None:
                raise
            raise DataError(f"{mending.last}; it cannot be made again: {error}") from error


def _check_same(config: RunConfig, layout: RunLayout, words: Words, overwrite: bool) -> None:
    """Refuse the run's folder when another config has it, unless it may be overwritten.

    Raises:
        ConfigError: it belongs to a different config.
        StorageError: it can't be read.
    """
    old = _old(layout)
    found = old.pop("config_hash") if old is not None else None
    if old is not None and not overwrite:
        for name in ("versions", "chosen"):
            old.pop(name, None)
        if found != config_hash(config):
            new = without_effect_left_out(config.model_dump(mode="json"))
            changed = differences(without_effect_left_out(old), new)
            raise ConfigError(
                f"run {config.name!r} exists in {layout.root} with other settings "
                f"({'; '.join(changed[:5])}); choose another `name`, or pass {words.overwrite}"
            )


def _record(config: RunConfig, layout: RunLayout) -> None:
    """Write the settings of a run, but for what it will choose once the images are known."""
    record = {"config_hash": config_hash(config), "versions": store.versions()}
    text = dump(config) + yaml.safe_dump(record, sort_keys=False)
    old = _old(layout)
    before = store.read_bytes(layout.config) if old is not None else b""
    same = old is not None and old["config_hash"] == config_hash(config)
    if same and (chosen := chosen_in(before)):
        # Perhaps with other resources or an earlier version: the models that are there have it.
        text += dump_chosen(chosen)
    if text.encode() != before:
        store.write_bytes(layout.config, text.encode())


def _old(layout: RunLayout) -> dict[str, Any] | None:
    """What the config.yaml of a run says; None where there is none, or only a part of one."""
    if not store.exists(layout.config):
        return None
    old = recorded(store.read_bytes(layout.config))
    if old is not None and "config_hash" in old:
        return old
    store.give_up(DamagedFileError(layout.config, "it is not what a run writes"))
    return None


def _finished(config: RunConfig, layout: RunLayout) -> dict[str, Any] | None:
    """The result of a run that has ended already.

    Raises:
        DamagedFileError: what it delivers is not as it was written.
    """
    result = store.read_intact(layout.result, store.read_result)
    if result is None or result.get("config_hash") != config_hash(config):
        return None
    if store.list_files(layout.model):  # who has taken the whole model away knows why
        there = store.exists(store.join(layout.model, store.CONFIG))
        if not there or store.published(layout.model) is None:
            return None
        store.check_bundle(layout.model)
    for row in [*result["generations"], *([result["control"]] if result["control"] else [])]:
        place = layout.generation(CONTROL if row["role"] == "control" else row["generation"])
        if store.read_intact(store.join(place, "evaluation.json"), store.read_scores) is None:
            return None
    return result


def _has_ended(config: RunConfig, layout: RunLayout) -> bool:
    """Whether there is nothing to do, as far as it shows."""
    try:
        return _finished(config, layout) is not None
    except DamagedFileError:
        return False


def _work(config: RunConfig, layout: RunLayout, trackers: Trackers) -> dict[str, Any]:
    """Everything that needs Ray and torch, imported only here: a finished run answers at once."""
    from ns_ray.compute import cluster, prepare

    prepare()
    with (
        mirrored(layout.root, ["metrics.jsonl", "ray.log"]) as folder,
        closing(Metrics(f"{folder}/metrics.jsonl", trackers.write)) as metrics,
        cluster(config.resources, f"{folder}/ray.log", config.name) as machine,
    ):
        # Here, where `prepare` has been importing torch and timm while Ray started.
        from ns_ray.model import scored_card
        from ns_ray.planning import check_models, check_shared, smaller_students
        from ns_ray.selftrain import self_train
        from ns_ray.stages import open_stages

        check_shared(machine, layout.root, "storage")
        check_models(config)
        for line in smaller_students(config):
            say(line)
        outcome = self_train(config, layout, open_stages(config, machine, metrics))
    publish_model(outcome.best.path, layout.model)
    result = dict(outcome.result)
    best = dict(outcome.result["generations"][outcome.result["best_generation"]])
    best |= {"scores": outcome.result["refit"]["scores"]} if "refit" in outcome.result else {}
    store.write_bytes(
        store.join(layout.model, "README.md"), scored_card(layout.model, best).encode()
    )
    store.write_json(layout.result, result)
    return result


def _report(layout: RunLayout) -> None:
    """Write the report, where it is missing or older than the result, and say where it is. The run
    has ended by then: whatever goes wrong here must not cost it, but a damaged file is made again.

    Raises:
        DamagedFileError: a file of the run is not as it was written.
    """
    from ns_ray import report

    try:
        say(f"report: {report.up_to_date(layout.root)}")
    except DamagedFileError:
        raise
    except Exception as error:
        say(
            f"the report could not be written: {first_line(error)}; "
            f"ns-ray report {layout.root} tries again"
        )


def publish_model(bundle: str, out: str) -> None:
    """Copy the best bundle to where it is served from; `_DONE.json` last.

    Raises:
        DamagedFileError: it is not as it was written.
    """
    store.check_bundle(bundle)
    done = store.published(bundle)
    files = done.files if done else ["config.json", "model.safetensors"]
    for name in [*files, *([store.DONE] if done else [])]:
        store.write_bytes(store.join(out, name), store.read_bytes(store.join(bundle, name)))
