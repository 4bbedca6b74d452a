"""The images of a run: sources -> labeled, unlabeled, validation and test corpora.

    list the sources -> check the classes -> draw and split by hash -> pack, leaks left out

One class list, the labeled source's, gives every corpus its indices.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from ns_ray import store
from ns_ray.config import DataConfig
from ns_ray.data.adopting import adopt, digests_of
from ns_ray.data.packing import pack, reasons_text
from ns_ray.data.sources import list_source
from ns_ray.data.sources.items import allocate
from ns_ray.data.sources.listing import Listing, Packed, Ranks
from ns_ray.errors import DataError
from ns_ray.log import say
from ns_ray.store import Corpora, Corpus, RunLayout

__all__ = ["adopt", "ingest", "pack", "split", "together"]


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
        StageError: packing was interrupted by a fault of the machine or the store.
    """
    found = list_all(config, seed=seed, pile=pile)
    pack_it = partial(_adopt_or_pack, config, classes=found.labeled.classes, seed=seed, out=out)
    validation = pack_it("validation", found.validation)
    test = None if found.test is None else pack_it("test", found.test)
    leaks = digests_of([corpus for corpus in (validation, test) if corpus is not None])
    labeled = pack_it("labeled", found.labeled, excluded=leaks)
    _check_classes(labeled, config)
    unlabeled = None
    if found.unlabeled is not None:
        unlabeled = pack_it("unlabeled", found.unlabeled, classes=(), excluded=leaks)
    return Corpora(labeled, unlabeled, validation, test)


def together(first: Corpus, second: Corpus, out: str) -> Corpus:
    """The labeled images of two corpora as one.

    Args:
        first, second: of the same classes.
        out: folder of the new corpus.
    """
    listing = Listing(
        name="labeled and validation images",
        items=[],
        classes=first.classes,
        fingerprint=store.fingerprint(first.fingerprint, second.fingerprint),
        packed=(Packed(first, prefix="labeled/"), Packed(second, prefix="validation/")),
    )
    return pack(listing, out=out, classes=first.classes)


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
        validation = held
    else:
        validation = _scored(config.validation, "data.validation", labeled.classes)
    test = _scored(config.test, "data.test", labeled.classes) if config.test else None
    unlabeled = _pile(config, rest) if pile else None
    return Listings(train, unlabeled, validation, test)


def split(
    listing: Listing, *, labels: int | None, validation_size: float | None, seed: int
) -> tuple[Listing, Listing, Listing]:
    """Labeled images as (training, validation, rest), stratified; the validation images don't
    depend on `labels`. No row of a packed corpus is read.

    Args:
        listing: images that all have a label.
        labels: training images to draw, at least one per class; None: all that are not held out.
        validation_size: a fraction below 1, else a number of images; None: hold nothing out. A
            class with a single image keeps it for training.
        seed: decides which images of a class.

    Raises:
        DataError: more is asked for than there is.
    """
    sizes = [listing.counts[name] for name in listing.classes]
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
    starts = [h + d for h, d in zip(held, drawn, strict=True)]
    validation: Ranks = tuple((0, h) for h in held)
    train: Ranks = tuple(zip(held, starts, strict=True))
    rest: Ranks = tuple(zip(starts, sizes, strict=True))
    parts = listing.taken([train, validation, rest], seed)
    return parts[0], parts[1], parts[2]


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
    count = sum(listing.counts.values())
    if "train" in listing.classes and {*listing.classes} <= SPLIT_NAMES:
        raise DataError(
            f"{setting}={source!r} holds the folders {', '.join(listing.classes)}, which are parts "
            f"of a set rather than classes; name one of them, such as {setting}={source}/train"
        )
    if not count:
        raise DataError(
            f"{setting}={source!r} holds {listing.rows:,} images but no labels; it needs a "
            f"folder per class, or a table with a column `label`"
        )
    if count == listing.rows:
        return listing
    say(f"{setting}: {listing.rows - count:,} images of {source} have no label, left out")
    every: Ranks = tuple((0, listing.counts[name]) for name in listing.classes)
    return listing.taken([every], 0)[0]


def _scored(source: str, setting: str, classes: tuple[str, ...]) -> Listing:
    """Validation or test images, checked against the classes of the labeled set."""
    listing = _labeled(source, setting)
    present = {name for name, count in listing.counts.items() if count}
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


def _pile(config: DataConfig, rest: Listing) -> Listing:
    """All unlabeled sources as one listing; keys of several get the source's index in front."""
    parts: list[Listing] = []
    for i, source in enumerate(config.unlabeled):
        if source != "rest":
            parts.append(list_source(source, setting=f"data.unlabeled.{i}"))
            for note in parts[-1].notes:
                say(f"data.unlabeled.{i}: {note}")
        elif rest.rows:
            parts.append(replace(rest, name=f"rest of {rest.name}"))
        elif len(config.unlabeled) > 1:
            say("data.unlabeled: `rest` is empty, as data.labels leaves nothing over")
    if not parts:
        raise DataError(
            f"data.unlabeled={list(config.unlabeled)} gives no unlabeled images: name a source of "
            f"them, or set data.labels below the number of labeled images, so that a rest is left"
        )
    return parts[0] if len(parts) == 1 else _together(parts)


def _together(parts: Sequence[Listing]) -> Listing:
    named = list(enumerate(parts))
    return Listing(
        name=", ".join(part.name for part in parts),
        items=[replace(item, key=f"{i}/{item.key}") for i, part in named for item in part.items],
        classes=(),
        fingerprint=store.fingerprint(*(part.fingerprint for part in parts)),
        packed=tuple(replace(rows, prefix=f"{i}/") for i, part in named for rows in part.packed),
    )


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
