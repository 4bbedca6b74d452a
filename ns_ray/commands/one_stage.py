"""`ns-ray pack | label | select | train | evaluate`: one stage, for people who need only that."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ns_ray import store
from ns_ray.commands.options import Bundle, Config, Data, Debug, Out, Recipe, Set, set_of
from ns_ray.compute import Machine, Pool, done_here, resources
from ns_ray.config import (
    DataConfig,
    EvaluateConfig,
    LabelConfig,
    PredictConfig,
    ResourcesConfig,
    RunConfig,
    SelectConfig,
    Settings,
    load_either,
    parse_sections,
)
from ns_ray.errors import ConfigError, NsRayError
from ns_ray.log import say
from ns_ray.steps import Arm, steps
from ns_ray.store import Bundle as Model
from ns_ray.store import Corpus, RunLayout, Selection, open_bundle, open_labels, open_selection

if TYPE_CHECKING:
    from ns_ray.data import Listing


class PackSettings(Settings):
    """What `--set` changes for `ns-ray pack`."""

    data: DataConfig
    resources: ResourcesConfig = ResourcesConfig()


class LabelSettings(Settings):
    """What `--set` changes for `ns-ray label`."""

    data: DataConfig
    label: LabelConfig = LabelConfig()
    predict: PredictConfig = PredictConfig()
    resources: ResourcesConfig = ResourcesConfig()


class SelectSettings(Settings):
    """What `--set` changes for `ns-ray select`."""

    select: SelectConfig = SelectConfig()
    resources: ResourcesConfig = ResourcesConfig()


class EvaluateSettings(Settings):
    """What `--set` changes for `ns-ray evaluate`."""

    data: DataConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    predict: PredictConfig = PredictConfig()
    resources: ResourcesConfig = ResourcesConfig()


def pack(
    data: Data,
    out: Out,
    set_: Annotated[list[str] | None, set_of(PackSettings)] = None,
    debug: Debug = False,
) -> None:
    """Pack images into a corpus: Parquet shards, a manifest, and rejected.parquet."""
    settings = parse_sections(PackSettings, set_, data={"labeled": data})
    with _ray(settings.resources):
        corpus = _packed(settings.data, data, store.absolute(out), labeled=True)
    rejected = sum(corpus.rejected.values())
    say(f"{corpus.path}: {corpus.rows:,} images, {rejected:,} rejected")


def label(
    bundle: Bundle,
    data: Data,
    out: Out,
    set_: Annotated[list[str] | None, set_of(LabelSettings)] = None,
    debug: Debug = False,
) -> None:
    """Pseudo-label images with a model. The summary is in _DONE.json of the result."""
    settings = parse_sections(LabelSettings, set_, data={"labeled": data})
    teacher, place = open_bundle(bundle), store.absolute(out)
    with _inference(settings.data, settings.resources, place, labeled=False) as (pile, pool):
        from ns_ray.labeling import pseudo_label

        labels = pseudo_label(
            settings.label,
            teacher,
            pile,
            pool=pool,
            out=place,
            title="label",
            predict=settings.predict,
        )
    rate = labels.facts["images_per_second"]
    rejected = labels.facts["rejected"] + sum(pile.rejected.values())
    say(f"{place}: {labels.rows:,} images labeled, {rejected:,} rejected, {rate:,.0f} images/s")


def select(
    labels: Annotated[str, typer.Option(help="Folder of pseudo-labels.", show_default=False)],
    out: Out,
    seed: Annotated[int, typer.Option(help="Decides ties and copies.")] = 0,
    set_: Annotated[list[str] | None, set_of(SelectSettings)] = None,
    debug: Debug = False,
) -> None:
    """Choose which pseudo-labeled images train a student, and how many copies of each."""
    settings = parse_sections(SelectSettings, set_)
    found, place = open_labels(labels), store.absolute(out)
    from ns_ray.selection import seconds
    from ns_ray.selection import select as select_rows

    with nullcontext() if done_here(seconds(found)) else _ray(settings.resources):
        chosen = select_rows(settings.select, found, seed=seed, out=place)
    say(f"{place}: {chosen.kept:,} images, {chosen.copies:,} with copies")


def train(
    out: Out,
    config: Config = None,
    recipe: Recipe = None,
    selection: Annotated[
        str | None,
        typer.Option(
            help="Folder of a selection: train the first student with it, not the teacher.",
            show_default=False,
        ),
    ] = None,
    set_: Set = None,
    debug: Debug = False,
) -> None:
    """Train one model on labeled images and, if given, on selected pseudo-labeled ones."""
    settings = load_either(config, recipe, set_)
    chosen = None if selection is None else open_selection(selection)
    place = store.absolute(out)
    plan = steps(settings, RunLayout(store.join(place, "work")))
    arm = plan.teacher if chosen is None else plan.students[0]
    if not arm.trainings:
        raise ConfigError(
            f"teacher.bundle={arm.model.bundle}: there is nothing to train; set a `model`"
        )
    teacher = _teacher(chosen) if chosen and arm.model.init == "teacher" else None
    with _ray(settings.resources) as machine:
        trained = _fit(settings, arm, chosen, teacher, machine, place)
    say(f"{trained.path}: {trained.parameters:,} parameters")


def evaluate(
    bundle: Bundle,
    data: Data,
    out: Out,
    set_: Annotated[list[str] | None, set_of(EvaluateSettings)] = None,
    debug: Debug = False,
) -> None:
    """Score a model on labeled images. The scores are in evaluation.json of the result."""
    settings = parse_sections(EvaluateSettings, set_, data={"labeled": data})
    model, place = open_bundle(bundle), store.absolute(out)
    robustness = settings.evaluate.robustness is not None
    with _inference(settings.data, settings.resources, place, labeled=True, ray=robustness) as (
        corpus,
        pool,
    ):
        scores = _scores(settings, model, corpus, pool, place)
    store.write_json(store.join(place, "evaluation.json"), scores)
    say(f"{place}: top-1 {scores['top1']:.4f} on {scores['rows']:,} images")


def _scores(
    settings: EvaluateSettings, model: Model, corpus: Corpus, pool: Pool, place: str
) -> dict[str, Any]:
    """What evaluation.json holds."""
    from ns_ray.robustness import evaluate_one
    from ns_ray.scoring import evaluate as score

    scored = score(
        settings.evaluate,
        model,
        corpus,
        pool=pool,
        out=store.join(place, "predictions"),
        title="evaluate",
        predict=settings.predict,
    )
    scores = dict(scored.scores)
    if settings.evaluate.robustness is not None:
        scores["robustness"] = evaluate_one(
            settings.evaluate, model, corpus, out=place, pool=pool, predict=settings.predict
        )
    return scores


def _teacher(selection: Selection) -> Model:
    """The model whose labels were selected from."""
    try:
        return open_bundle(open_labels(selection.labels).teacher)
    except NsRayError as error:
        raise ConfigError(
            f"students.0.init=teacher: the teacher of {selection.path} cannot be opened "
            f"({error}); put it back, or set students.0.init=scratch"
        ) from None


def _fit(
    settings: RunConfig,
    arm: Arm,
    chosen: Selection | None,
    teacher: Model | None,
    machine: Machine,
    out: str,
) -> Model:
    """The trainings of one model of a run; the last one leaves its bundle in `out`."""
    from ns_ray.data import ingest
    from ns_ray.selftrain import train_model
    from ns_ray.stages import open_stages

    trainings = [
        replace(step, title=step.title.removeprefix(f"{arm.name} ")) for step in arm.trainings
    ]
    trainings[-1] = replace(trainings[-1], out=out)
    layout = RunLayout(store.join(out, "work"))
    data = ingest(settings.data, seed=settings.seed, out=layout, pile=False)
    return train_model(
        settings,
        open_stages(settings, machine),
        trainings,
        labeled=data.labeled,
        seed=settings.seed,
        pseudo=chosen,
        teacher=teacher,
    )


@contextmanager
def _ray(config: ResourcesConfig) -> Iterator[Machine]:
    """Ray, with its messages in a file among its own."""
    from ns_ray.compute import cluster, prepare

    prepare()
    with (
        tempfile.NamedTemporaryFile(prefix="ns-ray-", suffix=".log") as log,
        cluster(config, log.name) as machine,
    ):
        yield machine


@contextmanager
def _inference(
    data: DataConfig, config: ResourcesConfig, out: str, *, labeled: bool, ray: bool = False
) -> Iterator[tuple[Corpus, Pool]]:
    """The source as a packed corpus, itself where it is one, and the actors for it. Ray, which
    takes seconds to start, is started where `ray` says so, or there is work for it."""
    from ns_ray.compute import local_machine, prepare

    prepare()
    from ns_ray.data import adopt, list_source
    from ns_ray.labeling import seconds

    place = store.join(out, "corpus")
    listing = list_source(data.labeled, setting="--data")
    adopted = adopt(listing, out=place, classes=(), excluded=frozenset())
    here = local_machine()
    if adopted and here and not ray:
        pool = resources.pool(config, here)
        if done_here(seconds(adopted.rows), pool):
            yield adopted, pool
            return
    with _ray(config) as machine:
        corpus = adopted or _packed(data, listing, place, labeled=labeled)
        yield corpus, resources.pool(config, machine)


def _packed(config: DataConfig, source: "str | Listing", out: str, *, labeled: bool) -> Corpus:
    from ns_ray.data import pack

    return pack(
        source,
        out=out,
        classes=None if labeled else (),
        rows_per_shard=config.rows_per_shard,
        max_pixels=config.max_pixels,
        max_rejected=config.max_rejected,
        setting="--data",
    )
