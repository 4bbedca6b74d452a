"""`ns-ray pack | label | select`: one stage, for people who need only that."""

from contextlib import nullcontext
from typing import Annotated

import typer

from ns_ray import store
from ns_ray.commands.options import Data, Debug, Out, set_of
from ns_ray.commands.preparing import begun, listing_of, owning, packed, ray_running, ready_to_infer
from ns_ray.compute import done_here
from ns_ray.config import (
    DataConfig,
    LabelConfig,
    PredictConfig,
    ResourcesConfig,
    SelectConfig,
    Settings,
    parse_sections,
)
from ns_ray.errors import ConfigError
from ns_ray.log import say
from ns_ray.store import check_same_classes, open_bundle, open_labels


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


def pack(
    data: Data,
    out: Out,
    set_: Annotated[list[str] | None, set_of(PackSettings)] = None,
    debug: Debug = False,
) -> None:
    """Pack images into a corpus: Parquet shards, a manifest, and rejected.parquet."""
    settings = parse_sections(PackSettings, set_, data={"labeled": data})
    place = store.kept(out, "--out")
    listing = begun(listing_of(settings.data))  # takes seconds, as Ray's start does
    with owning(place), ray_running(settings.resources, place, models=False):
        corpus = packed(settings.data, listing.result(), place, labeled=True)
    rejected = sum(corpus.rejected.values())
    say(f"{corpus.path}: {corpus.rows:,} images, {rejected:,} rejected")


def label(
    bundle: Annotated[
        list[str],
        typer.Option(
            help="A run folder, a bundle, or a timm local-dir. Given several times, the models "
            "label together, by the mean of their probabilities.",
            show_default=False,
        ),
    ],
    data: Data,
    out: Out,
    set_: Annotated[list[str] | None, set_of(LabelSettings)] = None,
    debug: Debug = False,
) -> None:
    """Pseudo-label images with a model or several. The summary is in _DONE.json of the result."""
    settings = parse_sections(LabelSettings, set_, data={"labeled": data})
    if (settings.label.teachers or 1) > 1:
        raise ConfigError(
            f"label.teachers={settings.label.teachers} is for whole runs, which train them; give a "
            "--bundle for each model that is to label"
        )
    models, place = [open_bundle(one) for one in bundle], store.kept(out, "--out")
    check_same_classes(models)
    with (
        owning(place),
        ready_to_infer(
            settings.data, settings.resources, place, labeled=False, models=len(models)
        ) as (pile, pool),
    ):
        from ns_ray.labeling import pseudo_label

        labels = pseudo_label(
            settings.label,
            models[0],
            pile,
            pool=pool,
            out=place,
            title="label",
            predict=settings.predict,
            others=models[1:],
        )
    rate = labels.images_per_second
    rejected = labels.rejected + sum(pile.rejected.values())
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
    found, place = open_labels(labels), store.kept(out, "--out")
    from ns_ray.selection import seconds
    from ns_ray.selection import select as select_rows

    here = done_here(seconds(found))
    running = nullcontext() if here else ray_running(settings.resources, place, models=False)
    with owning(place), running:
        chosen = select_rows(settings.select, found, seed=seed, out=place)
    say(f"{place}: {chosen.kept:,} images, {chosen.copies:,} with copies")
