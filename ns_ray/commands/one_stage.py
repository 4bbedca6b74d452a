"""`ns-ray pack | label | select`: one stage, for people who need only that."""

from contextlib import nullcontext
from typing import Annotated

import typer

from ns_ray import store
from ns_ray.api import LabelSettings, begun, label_images, listing_of, owning, packed, ray_running
from ns_ray.commands.completing import bundles
from ns_ray.commands.options import Data, Debug, Json, Out, set_of
from ns_ray.compute import done_here
from ns_ray.config import (
    DataConfig,
    ResourcesConfig,
    SelectConfig,
    Settings,
    parse_sections,
)
from ns_ray.log import aside, print_json, say
from ns_ray.store import open_labels


class PackSettings(Settings):
    """What `--set` changes for `ns-ray pack`."""

    data: DataConfig
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
    place = store.kept_folder(out, "--out")
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
            autocompletion=bundles,
            show_default=False,
        ),
    ],
    data: Data,
    out: Out,
    set_: Annotated[list[str] | None, set_of(LabelSettings)] = None,
    debug: Debug = False,
) -> None:
    """Pseudo-label images with a model or several. A run's model also says how foreign each image
    is (docs/foreign.md). The summary is in _DONE.json of the result."""
    settings = parse_sections(LabelSettings, set_, data={"labeled": data})
    label_images(bundle, settings, store.kept_folder(out, "--out"))


def select(
    labels: Annotated[str, typer.Option(help="Folder of pseudo-labels.", show_default=False)],
    out: Out,
    seed: Annotated[int, typer.Option(help="Decides ties and copies.")] = 0,
    set_: Annotated[list[str] | None, set_of(SelectSettings)] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Choose which pseudo-labeled images train a student, and how many copies of each."""
    settings = parse_sections(SelectSettings, set_)
    found, place = open_labels(labels), store.kept_folder(out, "--out")
    from ns_ray.selection import seconds
    from ns_ray.selection import select as select_rows

    here = done_here(seconds(found))
    running = nullcontext() if here else ray_running(settings.resources, place, models=False)
    with aside(json):
        with owning(place), running:
            chosen = select_rows(settings.select, found, seed=seed, out=place)
        say(f"{place}: {chosen.kept:,} images, {chosen.copies:,} with copies")
    if json:
        print_json({"path": place, **chosen.facts})
