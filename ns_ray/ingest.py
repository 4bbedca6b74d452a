"""The images of a run: sources -> labeled, unlabeled, validation and test corpora.

    list the sources -> check the classes -> draw and split by hash -> pack, leaks left out

One class list, the labeled source's, gives every corpus its indices.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from ns_ray import storage
from ns_ray.config import DataConfig
from ns_ray.errors import DataError
from ns_ray.layout import RunLayout
from ns_ray.log import say
from ns_ray.packing import adopt, digests_of, pack, reasons_text
from ns_ray.sources import list_source
from ns_ray.sources.items import Item, Listing, allocate, ordered
from ns_ray.values import Corpora, Corpus

__all__ = ["adopt", "ingest", "pack", "split"]


SPLIT_NAMES = frozenset({"train", "val", "valid", "validation", "dev", "test", "unlabeled"})


def ingest(config: DataConfig, *, seed: int, out: RunLayout, pile: bool = True) -> Corpora:
    """Pack the labeled, unlabeled, validation and test images of a run.

    Validation images are held out of the labeled ones first, then `labels` are drawn; both by a
    hash of key and seed, stratified. Images of the pile and of the labeled set that are, byte for
    byte, validation or test images are left out and listed as `leak` in `rejected.parquet`.

    Args:
        config: the `data` settings.
        seed: decides the draw, the split and the order.
        out: where the run lives.
        pile: False packs no unlabeled images (training on labeled ones only).

    Raises:
        DataError: a source is missing, empty, unlabeled or too broken, or a setting asks for what
            it doesn't have.
        StageError: packing was interrupted by a fault of the machine or the storage.
    """
    found = list_all(config, seed=seed, pile=pile)
    labeled, unlabeled, validation, test = (
        found.labeled,
        found.unlabeled,
        found.validation,
        found.test,
    )
    pack_it = partial(_adopt_or_pack, config, classes=labeled.classes, seed=seed, out=out)
    validation_corpus = pack_it("validation", validation)
    test_corpus = None if test is None else pack_it("test", test)
    leaks = digests_of([c for c in (validation_corpus, test_corpus) if c is not None])
    labeled_corpus = pack_it("labeled", labeled, excluded=leaks)
    _check_classes(labeled_corpus, config)
    return Corpora(
        labeled=labeled_corpus,
        unlabeled=None
        if unlabeled is None
        else pack_it("unlabeled", unlabeled, classes=(), excluded=leaks),
        validation=validation_corpus,
        test=test_corpus,
    )


@dataclass(frozen=True)
class Listings:
    """The images of a run before they are read, drawn and split."""

    labeled: Listing
    unlabeled: Listing | None
    validation: Listing
    test: Listing | None


def list_all(config: DataConfig, *, seed: int, pile: bool = True) -> Listings:
    """List the sources, check their classes, draw and split.

    Raises:
        DataError: as `ingest`, as far as it shows without reading an image.
    """
    labeled = _labeled(config.labeled, "data.labeled")
    if len(labeled.classes) < 2:
        raise DataError(
            f"data.labeled={config.labeled!r} has one class only, {labeled.classes[0]!r}; "
            f"a classifier needs two or more"
        )
    size = config.validation_size if config.validation is None else None
    train, held, rest = split(labeled, labels=config.labels, validation_size=size, seed=seed)
    if config.validation is None:
        validation = replace(labeled, items=held, corpus=None)
    else:
        validation = _scored(config.validation, "data.validation", labeled.classes)
    test = _scored(config.test, "data.test", labeled.classes) if config.test else None
    unlabeled = _pile(config, labeled, rest) if pile else None
    whole = len(train) == len(labeled.items)
    labeled = replace(labeled, items=train, corpus=labeled.corpus if whole else None)
    return Listings(labeled, unlabeled, validation, test)


def split(
    listing: Listing, *, labels: int | None, validation_size: float | None, seed: int
) -> tuple[list[Item], list[Item], list[Item]]:
    """Labeled images as (training, validation, rest), stratified; the validation images don't
    depend on `labels`.

    Args:
        listing: images that all have a label.
        labels: training images to draw, at least one per class; None: all that are not held out.
        validation_size: a fraction below 1, else a number of images; None: hold nothing out. A
            class with a single image keeps it for training.
        seed: decides which images of a class.

    Raises:
        DataError: more is asked for than there is.
    """
    groups: dict[str, list[Item]] = {name: [] for name in listing.classes}
    for item in ordered(listing.items, seed):
        groups[str(item.label)].append(item)
    sizes = [len(groups[name]) for name in listing.classes]
    held = [0] * len(sizes)
    if validation_size is not None:
        held = _held_out(listing, sizes, validation_size)
    left = [size - taken for size, taken in zip(sizes, held, strict=True)]
    drawn = left
    if labels is not None:
        if not len(sizes) <= labels <= sum(left):
            raise DataError(
                f"data.labels={labels} must be from {len(sizes)} (one per class) to {sum(left):,} "
                f"(what {listing.name!r} has besides validation images)"
            )
        drawn = allocate(left, labels, 1, left)
    train: list[Item] = []
    validation: list[Item] = []
    rest: list[Item] = []
    for name, start, count in zip(listing.classes, held, drawn, strict=True):
        validation += groups[name][:start]
        train += groups[name][start : start + count]
        rest += groups[name][start + count :]
    return train, validation, rest


def _held_out(listing: Listing, sizes: list[int], validation_size: float) -> list[int]:
    """Validation images per class."""
    most = [max(size - 1, 0) for size in sizes]
    if validation_size < 1:
        total = max(round(validation_size * sum(sizes)), sum(m > 0 for m in most))
    else:
        total = int(validation_size)
    if not 0 < total <= sum(most):
        raise DataError(
            f"data.validation_size={validation_size:g} asks for {total:,} of the {sum(sizes):,} "
            f"images of {listing.name!r}; at most {sum(most):,} can be held out, as each class "
            f"keeps one for training"
        )
    single = [name for name, size in zip(listing.classes, sizes, strict=True) if size == 1]
    if single:
        say(f"data.labeled: no validation image of {_some(single)}: the only one is trained on")
    enough = total >= sum(m > 0 for m in most)
    return allocate(sizes, total, 1 if enough else 0, most)


def _labeled(source: str, setting: str) -> Listing:
    """A source whose images have labels; those without are left out, and said so."""
    listing = list_source(source, setting=setting)
    for note in listing.notes:
        say(f"{setting}: {note}")
    items = [item for item in listing.items if item.label is not None]
    if "train" in listing.classes and {*listing.classes} <= SPLIT_NAMES:
        raise DataError(
            f"{setting}={source!r} holds the folders {', '.join(listing.classes)}, which are parts "
            f"of a set rather than classes; name one of them, such as {setting}={source}/train"
        )
    if not items:
        raise DataError(
            f"{setting}={source!r} holds {len(listing.items):,} images but no labels; it needs a "
            f"folder per class, or a table with a column `label`"
        )
    if len(items) == len(listing.items):
        return listing
    say(
        f"{setting}: {len(listing.items) - len(items):,} images of {source} have no label, left out"
    )
    return replace(listing, items=items, corpus=None)


def _scored(source: str, setting: str, classes: tuple[str, ...]) -> Listing:
    """Validation or test images, checked against the classes of the labeled set."""
    listing = _labeled(source, setting)
    present = {item.label for item in listing.items}
    unknown = [name for name in listing.classes if name in present and name not in classes]
    if unknown:
        raise DataError(
            f"{setting}={source!r} has {_some(unknown)}, which data.labeled lacks; it has "
            f"{_some(classes)}"
        )
    absent = [name for name in classes if name not in present]
    if absent:
        say(f"{setting}: no image of {_some(absent)}; such images are not scored")
    return listing


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    noun = "class" if len(names) == 1 else "classes"
    return f"the {noun} {shown}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _pile(config: DataConfig, labeled: Listing, rest: list[Item]) -> Listing:
    """All unlabeled sources as one listing; keys of several get the source's index in front."""
    parts: list[Listing] = []
    for i, source in enumerate(config.unlabeled):
        if source != "rest":
            parts.append(list_source(source, setting=f"data.unlabeled.{i}"))
            for note in parts[-1].notes:
                say(f"data.unlabeled.{i}: {note}")
        elif rest:
            name = f"rest of {labeled.name}"
            parts.append(replace(labeled, name=name, items=rest, corpus=None))
        elif len(config.unlabeled) > 1:
            say("data.unlabeled: `rest` is empty, as data.labels leaves nothing over")
    if not parts:
        raise DataError(
            f"data.unlabeled={list(config.unlabeled)} gives no unlabeled images: name a source of "
            f"them, or set data.labels below the number of labeled images, so that a rest is left"
        )
    if len(parts) == 1:
        return parts[0]
    items = [
        replace(item, key=f"{i}/{item.key}") for i, part in enumerate(parts) for item in part.items
    ]
    mark = storage.fingerprint(*(part.fingerprint for part in parts))
    return Listing(", ".join(part.name for part in parts), items, (), mark)


def _check_classes(corpus: Corpus, config: DataConfig) -> None:
    lost = [n for n, c in zip(corpus.classes, corpus.class_counts, strict=True) if c == 0]
    if lost:
        raise DataError(
            f"data.labeled={config.labeled!r} has no usable training image of {_some(lost)} "
            f"({reasons_text(corpus.rejected)}); see {corpus.path}/rejected.parquet"
        )


def _adopt_or_pack(
    config: DataConfig,
    name: str,
    listing: Listing,
    *,
    classes: Sequence[str],
    seed: int,
    out: RunLayout,
    excluded: frozenset[str] = frozenset(),
) -> Corpus:
    path = out.corpus(name)
    adopted = adopt(listing, out=path, classes=classes, excluded=excluded)
    if adopted is not None:
        return adopted
    return pack(
        listing,
        out=path,
        classes=classes,
        seed=seed,
        rows_per_shard=config.rows_per_shard,
        max_pixels=config.max_pixels,
        max_rejected=config.max_rejected,
        excluded=excluded,
        setting=f"data.{name}",
    )
