"""`ns_ray.label` and `ns-ray label`: pseudo-labels of any images."""

import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from ns_ray import store
from ns_ray.api.arguments import not_twice, places, plain, section
from ns_ray.api.caller import kept
from ns_ray.api.preparing import listed, mended, owning, ready_to_infer
from ns_ray.api.words import COMMAND, PYTHON, Words
from ns_ray.config import (
    DataConfig,
    LabelConfig,
    PredictConfig,
    ResourcesConfig,
    Settings,
    validate,
)
from ns_ray.errors import ConfigError
from ns_ray.log import say
from ns_ray.selection import foreign_words
from ns_ray.store import (
    FOREIGN_LEVEL,
    Bundle,
    Corpus,
    PseudoLabels,
    RunLayout,
    absolute,
    check_same_classes,
    open_bundle,
    open_corpus,
    published,
)

if TYPE_CHECKING:
    from ns_ray.data import Listing

Place = str | os.PathLike[str]
FOREIGN_SHARDS = 100
"""Shards that are read again to say how much is foreign: 100,000 images tell it."""


class LabelSettings(Settings):
    """What `--set` changes for `ns-ray label`."""

    data: DataConfig
    label: LabelConfig = LabelConfig()
    predict: PredictConfig = PredictConfig()
    resources: ResourcesConfig = ResourcesConfig()


def label(
    bundle: Place | Sequence[Place],
    images: Place | Sequence[Place],
    *,
    out: Place,
    **settings: Any,
) -> PseudoLabels:
    """Label images with a model or several: `ns-ray label`, from Python.

    The same call again labels what is missing, and returns at once when nothing is.

    Args:
        bundle: a run folder, a bundle, or a timm local-dir. Several label together, by the mean of
            their probabilities. With a run's, the labels also say how foreign each image is: 0 for
            the median of the run's validation images, above 1 for what is of none of the classes.
        images: a source, as `data` of run.yaml takes it, or several; labels are ignored.
        out: folder or URI of the pseudo-labels.
        settings: sections of run.yaml: `label`, `predict`, `resources`, `data`, such as
            `data={"rows_per_shard": 500}`.

    Returns:
        The pseudo-labels; `.dataset()` has them as a table with the place of each image.

    Raises:
        ConfigError: a setting is wrong, or there is no such model.
        DataError: the images cannot be used, or two models know different classes.
        StageError: something failed that the same call may get over.
    """
    given = section(settings, "data", "{'rows_per_shard': 500}")
    not_twice(given, {"labeled": "images"}, "data.")
    given["labeled"] = places(images, "images")
    made = validate(LabelSettings, plain({**settings, "data": given}), origin="label")
    bundles = places(bundle, "bundle")
    place = store.kept_folder(out, "out")
    work = partial(label_images, bundles, made, place, PYTHON)
    with kept():
        return mended(work, place)


def label_images(
    bundles: Sequence[str], settings: LabelSettings, out: str, words: Words = COMMAND
) -> PseudoLabels:
    """Label the images of `settings.data.labeled`, and say so.

    Args:
        bundles: models, as users name them.
        settings: see there.
        out: the folder, absolute.
        words: what messages call the arguments.
    """
    if (settings.label.teachers or 1) > 1:
        raise ConfigError(
            f"label.teachers={settings.label.teachers} is for whole runs, which train them; give a "
            f"{words.bundle} for each model that is to label"
        )
    models = [open_bundle(one) for one in bundles]
    check_same_classes(models)
    data, resources = settings.data, settings.resources
    images = listed(data, words)
    _check_same(images, out, words)
    with (
        owning(out),
        ready_to_infer(
            images, data, resources, out, labeled=False, models=len(models), words=words
        ) as (pile, pool),
    ):
        from ns_ray.labeling import pseudo_label

        labels = pseudo_label(
            settings.label,
            models[0],
            pile,
            pool=pool,
            out=out,
            title="label",
            predict=settings.predict,
            others=models[1:],
            known=_images_of_run(bundles[0], models[0]),
        )
    rate = labels.images_per_second
    rejected = labels.rejected + sum(pile.rejected.values())
    say(f"{out}: {labels.rows:,} images labeled, {rejected:,} rejected, {rate:,.0f} images/s")
    if labels.foreign:
        say(f"label: {_foreign_words(labels)}")
    return labels


def _check_same(images: "Listing", out: str, words: Words) -> None:
    """Refuse a folder that has what another stage made, or labels of other images: these would be
    gone. Images are the same wherever they lie now, and so is a source that has changed.

    Raises:
        ConfigError: it has.
    """
    done, packed = published(out), published(store.join(out, "corpus"))
    if done is None:
        return
    there = {"source": done.facts.get("corpus"), "fingerprint": done.inputs.get("corpus")}
    there |= packed.inputs if packed else {}
    has = f"the labels of {there['source']}"
    if done.stage != "label":
        has = f"what `{done.stage}` made"
    elif there["fingerprint"] in (None, images.fingerprint):
        return
    elif absolute(str(there["source"])) == absolute(images.name):
        say(f"{out}: {images.name} has changed since it was labeled, and is labeled again")
        return
    raise ConfigError(
        f"{words.out}={out!r} has {has}; choose another folder for the labels of {images.name}, or "
        "remove it"
    )


def _images_of_run(named: str, bundle: Bundle) -> tuple[Corpus, Corpus] | None:
    """Labeled and held-out images of the run that a bundle is the best model of, which tell what is
    foreign to it; None where a bundle is of no run or its images are no longer there.

    Args:
        named: the bundle, as users name it: the run's folder or `model` in it.
        bundle: what that is.
    """
    run = RunLayout(absolute(named.rstrip("/").removesuffix("/model")))
    places = [run.corpus(name) for name in ("labeled", "validation")]
    if bundle.path != run.model or not all(published(place) for place in places):
        return None
    labeled, held_out = map(open_corpus, places)
    return labeled, held_out


def _foreign_words(labels: PseudoLabels) -> str:
    """How many of the images are foreign, told from some of the shards where there are many."""
    some = list(labels.files)[:: -(-len(labels.files) // FOREIGN_SHARDS)]
    columns = [labels.read(shard, ["foreign"])["foreign"] for shard in some]
    above = sum(pc.sum(pc.greater(column, 1)).as_py() or 0 for column in columns)
    of = sum(len(column) for column in columns)
    facts = {"rows": above, "of": of, "expected": 1 - FOREIGN_LEVEL}
    return foreign_words(facts) + (
        f" (in {len(some)} shards)" if len(some) < len(labels.files) else ""
    )
