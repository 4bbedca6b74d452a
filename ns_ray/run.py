"""`python -m ns_ray.run`: a whole run from one config.

Rerunning the same command continues; a changed config under the same name is refused. This file
only opens doors: settings, folder, Ray, the driver, the verdict.
"""

import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich import box
from rich.table import Table
from rich.text import Text

from ns_ray import __version__, storage
from ns_ray.config import LITE, ModelConfig, RunConfig, train_config
from ns_ray.errors import ConfigError, NsRayError
from ns_ray.layout import RunLayout
from ns_ray.log import Metrics, console, say
from ns_ray.resources import Machine
from ns_ray.settings import config_hash, differences, dump, load_config, load_recipe

if TYPE_CHECKING:
    from ns_ray.selftrain import Stages

NO_STUDENT = 5
INTERRUPTED = 130
DEFAULT_RECIPE = "digits"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def execute(config: RunConfig, *, overwrite: bool = False) -> int:
    """Run a config to its end and print the verdict.

    Returns:
        Exit code: 0 done, 5 done but no student was accepted.

    Raises:
        NsRayError: with the exit code of its kind.
    """
    layout = RunLayout.of(config)
    _claim(config, layout, overwrite)
    result = _finished(config, layout)
    if result is None:
        result = _work(config, layout)
    show(result)
    _report(layout)
    return 0 if result["status"] == "done" else NO_STUDENT


def _claim(config: RunConfig, layout: RunLayout, overwrite: bool) -> None:
    """Take the run's folder, or refuse it when another config has it.

    Raises:
        ConfigError: the folder can't be written, or belongs to a different config.
    """
    if storage.exists(layout.config) and not overwrite:
        old = yaml.safe_load(storage.read_bytes(layout.config))
        found = old.pop("config_hash", None)
        old.pop("versions", None)
        if found != config_hash(config):
            new = config.model_dump(mode="json")
            changed = [d for d in differences(old, new) if not d.startswith(("storage", "res"))]
            raise ConfigError(
                f"run {config.name!r} exists in {layout.root} with other settings "
                f"({'; '.join(changed[:5])}); choose another `name`, or pass --overwrite"
            )
    record = {"config_hash": config_hash(config), "versions": storage.versions()}
    text = (dump(config) + yaml.safe_dump(record, sort_keys=False)).encode()
    if storage.exists(layout.config) and storage.read_bytes(layout.config) == text:
        return
    try:
        storage.write_bytes(layout.config, text)
    except ConfigError as error:
        raise ConfigError(f"storage={config.storage!r}: {error}") from None


def _finished(config: RunConfig, layout: RunLayout) -> dict[str, Any] | None:
    """The result of a run that has ended already."""
    if not storage.exists(layout.result):
        return None
    result = storage.read_json(layout.result)
    return result if result.get("config_hash") == config_hash(config) else None


def _work(config: RunConfig, layout: RunLayout) -> dict[str, Any]:
    """Everything that needs Ray and torch, imported only here: a finished run answers at once."""
    from ns_ray.runtime import cluster, prepare

    prepare()
    local = not storage.is_uri(layout.root)
    scratch = layout.root if local else tempfile.mkdtemp(prefix="ns-ray-")
    metrics = Metrics(f"{scratch}/metrics.jsonl")
    with cluster(config.resources, f"{scratch}/ray.log") as machine:
        # Here, where `prepare` has been importing torch and timm while Ray started.
        from ns_ray.bundle import scored_card
        from ns_ray.selftrain import self_train

        check_models(config)
        result = self_train(config, layout, open_stages(config, machine, metrics))
    metrics.close()
    if not local:
        for name in storage.list_files(scratch, recursive=True):
            data = storage.read_bytes(storage.join(scratch, name))
            storage.write_bytes(storage.join(layout.root, name), data)
    publish_model(result.pop("best_bundle"), layout.model)
    best = result["generations"][result["best_generation"]]
    storage.write_bytes(
        storage.join(layout.model, "README.md"), scored_card(layout.model, best).encode()
    )
    storage.write_json(layout.result, result)
    return result


def _report(layout: RunLayout) -> None:
    """Write the report, where it is missing or older than the result, and say where it is. The run
    has ended by then: whatever goes wrong here must not cost it."""
    from ns_ray import report

    try:
        say(f"report: {report.up_to_date(layout.root)}")
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        say(f"the report could not be written: {reason}; ns-ray report {layout.root} tries again")


def open_stages(config: RunConfig, machine: Machine, metrics: Metrics | None = None) -> "Stages":
    """The stages of a run, with their share of a machine or cluster on which Ray runs."""
    from ns_ray import resources
    from ns_ray.bundle import open_bundle
    from ns_ray.evaluate import evaluate
    from ns_ray.ingest import ingest
    from ns_ray.pseudo_label import pseudo_label
    from ns_ray.robustness.suites import evaluate_robustness
    from ns_ray.selection import select
    from ns_ray.selftrain import Stages
    from ns_ray.train import fit

    pool = resources.pool(config.resources, machine)
    workers = resources.workers(config.resources, machine)

    def train(*args: Any, **inputs: Any) -> Any:
        stage = str(inputs["title"]).replace(" ", "/")
        return fit(
            *args,
            workers=workers,
            max_failures=config.resources.max_failures,
            metrics=partial(metrics.write, stage) if metrics else None,
            **inputs,
        )

    return Stages(
        ingest=ingest,
        fit=train,
        open_bundle=open_bundle,
        pseudo_label=partial(pseudo_label, pool=pool, predict=config.predict),
        select=select,
        evaluate=partial(evaluate, pool=pool, predict=config.predict),
        robustness=partial(evaluate_robustness, pool=pool, predict=config.predict),
    )


def check_models(config: RunConfig) -> None:
    """Build every model of a run, so that a mistake shows before anything is trained.

    Raises:
        ConfigError: one of them cannot be built, or packages that score them later are missing.
    """
    from ns_ray.models import build_noised

    if config.evaluate.robustness is not None:
        from ns_ray.robustness.suites import check_suites

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


def publish_model(bundle: str, out: str) -> None:
    """Copy the best bundle to where it is served from; `_DONE.json` last."""
    done = storage.published(bundle)
    files = done.files if done else ["config.json", "model.safetensors"]
    for name in [*files, *([storage.DONE] if done else [])]:
        storage.write_bytes(storage.join(out, name), storage.read_bytes(storage.join(bundle, name)))


def show(result: Mapping[str, Any]) -> None:
    """The verdict on one screen."""
    table = Table(title=f"run {result['name']}", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("generation", "model"):
        table.add_column(name, no_wrap=True)
    for name in (
        "parameters",
        "validation",
        "test",
        "accepted",
        "kept",
        "label img/s",
        "train img/s",
        "seconds",
    ):
        table.add_column(name, justify="right")
    rows = [*result["generations"], *([result["control"]] if result["control"] else [])]
    for row in rows:
        pseudo = row["pseudo_labels"]
        control = row["role"] == "control"
        table.add_row(
            "control arm" if control else f"{row['generation']} {row['role']}",
            row["model"],
            f"{row['parameters']:,}",
            f"{row['val_top1']:.4f}",
            "-" if row["test_top1"] is None else f"{row['test_top1']:.4f}",
            "" if control else ("yes" if row["accepted"] else "no"),
            "" if pseudo is None else f"{pseudo['kept']:,}",
            _rate(row, "label"),
            _rate(row, "train"),
            f"{sum(row['seconds'].values()):.0f}",
        )
    console.print(table)
    say(f"best: generation {result['best_generation']}; model: {result['model']}")
    if result["status"] != "done":
        say("no student was better than the first teacher (see accept.max_p)")


def _rate(row: Mapping[str, Any], stage: str) -> str:
    value = row["images_per_second"].get(stage, 0.0)
    return f"{value:,.0f}" if value else ""


def guard(debug: bool, work: Any) -> int:
    """Call `work`, and turn what goes wrong into one line and an exit code."""
    try:
        return int(work() or 0)
    except NsRayError as error:
        if debug:
            raise
        console.print(Text.assemble(("error:", "red"), f" {error}"), soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt:
        say("interrupted; the same command continues")
        return INTERRUPTED


@app.command()
def main(
    recipe: Annotated[
        str | None, typer.Option(help="A recipe of the package; digits when nothing is given.")
    ] = None,
    config: Annotated[str | None, typer.Option(help="A YAML file of your own.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override one setting.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Redo what other settings under the same name left.")
    ] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Teacher, pseudo-labels, noised student, and again: Noisy Student self-training."""
    if version:
        say(__version__)
        raise typer.Exit

    def work() -> int:
        if recipe and config:
            raise ConfigError("give either --recipe or --config, not both")
        settings = (
            load_config(config, set_ or [])
            if config
            else load_recipe(recipe or DEFAULT_RECIPE, set_ or [])
        )
        return execute(settings, overwrite=overwrite)

    raise typer.Exit(guard(debug, work))


if __name__ == "__main__":
    sys.exit(app())
