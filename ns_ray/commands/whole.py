"""`ns-ray run`, which is `python -m ns_ray.run`: a whole run from one config.

Running the same command again continues; a changed config under the same name is refused.
"""

from contextlib import closing
from typing import Annotated, Any

import typer
import yaml

from ns_ray import __version__, store
from ns_ray.commands.door import faults_go_to
from ns_ray.commands.options import Budget, Debug, Set
from ns_ray.commands.verdict import show
from ns_ray.config import RunConfig, config_hash, differences, dump, load_either
from ns_ray.errors import ConfigError, StorageError, first_line
from ns_ray.log import Metrics, say
from ns_ray.store import RunLayout, mirrored

NO_STUDENT = 5
DEFAULT_RECIPE = "digits"


def run(
    recipe: Annotated[
        str | None,
        typer.Option(
            help=f"A recipe of the package; {DEFAULT_RECIPE} when nothing is given.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="A YAML file of your own.", show_default=False)
    ] = None,
    budget: Budget = None,
    set_: Set = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Redo what other settings under the same name left."),
    ] = False,
    debug: Debug = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> int:
    """Run Noisy Student self-training: teacher, pseudo-labels, noised student, and again.

    The same command again continues where it was.
    """
    if version:
        say(__version__)
        return 0
    if recipe is None and config is None:
        recipe = DEFAULT_RECIPE
    fitted = [f"budget={budget}"] if budget is not None else []
    settings = load_either(config, recipe, [*(set_ or []), *fitted])
    with faults_go_to(RunLayout.of(settings).root):
        return execute(settings, overwrite=overwrite)


def execute(config: RunConfig, *, overwrite: bool = False) -> int:
    """Run a config to its end and print the verdict.

    Returns:
        Exit code: 0 done, 5 done but no student was accepted.

    Raises:
        NsRayError: with the exit code of its kind.
    """
    layout = RunLayout.of(config)
    try:
        _claim(config, layout, overwrite)
    except StorageError as error:  # at the door, where `storage` may well name a wrong place
        raise ConfigError(f"storage={config.storage!r}: {error}") from error
    result = _finished(config, layout)
    if result is None:
        result = _work(config, layout)
    show(result, layout)
    _report(layout)
    return 0 if result["status"] == "done" else NO_STUDENT


def _claim(config: RunConfig, layout: RunLayout, overwrite: bool) -> None:
    """Take the run's folder, or refuse it when another config has it.

    Raises:
        ConfigError: it belongs to a different config.
        StorageError: it can't be read or written.
    """
    if store.exists(layout.config) and not overwrite:
        old = yaml.safe_load(store.read_bytes(layout.config))
        found = old.pop("config_hash", None)
        for name in ("versions", "chosen"):
            old.pop(name, None)
        if found != config_hash(config):
            new = config.model_dump(mode="json")
            changed = [d for d in differences(old, new) if not d.startswith(("storage", "res"))]
            raise ConfigError(
                f"run {config.name!r} exists in {layout.root} with other settings "
                f"({'; '.join(changed[:5])}); choose another `name`, or pass --overwrite"
            )
    record = {"config_hash": config_hash(config), "versions": store.versions()}
    text = (dump(config) + yaml.safe_dump(record, sort_keys=False)).encode()
    if store.exists(layout.config) and store.read_bytes(layout.config).startswith(text):
        return  # it ends with what was chosen, once the images were known
    store.write_bytes(layout.config, text)


def _finished(config: RunConfig, layout: RunLayout) -> dict[str, Any] | None:
    """The result of a run that has ended already."""
    if not store.exists(layout.result):
        return None
    result = store.read_json(layout.result)
    return result if result.get("config_hash") == config_hash(config) else None


def _work(config: RunConfig, layout: RunLayout) -> dict[str, Any]:
    """Everything that needs Ray and torch, imported only here: a finished run answers at once."""
    from ns_ray.compute import cluster, prepare

    prepare()
    with (
        mirrored(layout.root, ["metrics.jsonl", "ray.log"]) as folder,
        closing(Metrics(f"{folder}/metrics.jsonl")) as metrics,
        cluster(config.resources, f"{folder}/ray.log") as machine,
    ):
        # Here, where `prepare` has been importing torch and timm while Ray started.
        from ns_ray.model import scored_card
        from ns_ray.planning import check_models, smaller_students
        from ns_ray.selftrain import self_train
        from ns_ray.stages import open_stages

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
    has ended by then: whatever goes wrong here must not cost it."""
    from ns_ray import report

    try:
        say(f"report: {report.up_to_date(layout.root)}")
    except Exception as error:
        say(
            f"the report could not be written: {first_line(error)}; "
            f"ns-ray report {layout.root} tries again"
        )


def publish_model(bundle: str, out: str) -> None:
    """Copy the best bundle to where it is served from; `_DONE.json` last."""
    done = store.published(bundle)
    files = done.files if done else ["config.json", "model.safetensors"]
    for name in [*files, *([store.DONE] if done else [])]:
        store.write_bytes(store.join(out, name), store.read_bytes(store.join(bundle, name)))
