"""The images of a run: sources -> labeled, unlabeled, validation and test corpora.

    list the sources -> check the classes -> draw and split by hash -> pack, leaks left out

Images that a run has packed are not packed again because their files were copied (recognizing.py).

One class list, the labeled source's, gives every corpus its indices.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import pyarrow.compute as pc

from ns_ray import store
from ns_ray.config import DataConfig
from ns_ray.data.adopting import adopt, digests_of
from ns_ray.data.contradictions import contradictions
from ns_ray.data.packing import Near, pack, reasons_text
from ns_ray.data.recognizing import looks_for, recognized, remember, still_packed
from ns_ray.data.signatures import near
from ns_ray.data.sources import list_source
from ns_ray.data.sources.files import PARTS
from ns_ray.data.sources.items import Items, allocate
from ns_ray.data.sources.listing import Listing, Packed, Ranks
from ns_ray.data.sources.staying import staying
from ns_ray.data.sources.uniting import united
from ns_ray.errors import DamagedFileError, DataError, MissingSourceError
from ns_ray.log import say
from ns_ray.store import Corpora, Corpus, RunLayout

LONG = 2.0
"""Seconds of listing from which on a line tells how many it took."""
TELLING = 50
"""Validation images with which a third of students that are six points worse is refused; with
twenty, one in twenty (docs/decisions/0008-accept-gate.md)."""

__all__ = ["adopt", "ingest", "pack", "split", "together"]


def ingest(config: DataConfig, *, seed: int, out: RunLayout, pile: bool = True) -> Corpora:
    """Pack the labeled, unlabeled, validation and test images of a run.

    Validation images are held out of the labeled ones first, then `labels` are drawn; both by a
    hash of key and seed, stratified. Images of the pile and of the labeled set that are validation
    or test images, or copies of them, are left out and listed as `leak` or `near_leak` in
    `rejected.parquet`; see `config.leaks`. What an earlier version has packed stays.

    Of a run that exists, changed images are named before they are packed again. Where a source is
    gone, the run goes on with what it has packed, if that is whole.

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
    settings = store.fingerprint(config.model_dump(mode="json"), seed, pile)
    try:
        listed = list_all(config, seed=seed, pile=pile)
    except MissingSourceError as error:
        corpora = still_packed(out, settings)
        if corpora is None:
            raise
        say(f"{error.source} is gone: goes on with the images packed in {out.root}/corpora")
        return corpora
    found = replace(listed, **recognized(listed.by_name, out, settings, config.max_pixels))
    pack_it = partial(_adopt_or_pack, config, classes=found.labeled.classes, seed=seed, out=out)
    validation = pack_it("validation", found.validation)
    test = None if found.test is None else pack_it("test", found.test)
    leaks = digests_of([corpus for corpus in (validation, test) if corpus is not None])
    alike = None
    if looks_for(config.leaks, out, settings) == "near":
        alike = near({"validation": validation, "test": test}, out.signatures)
    labeled = pack_it("labeled", found.labeled, excluded=leaks, alike=alike)
    _check_classes(labeled, found.labeled)
    if not isinstance(config.labeled, str) or not listed.labeled.packed:  # which is not read again
        told = contradictions(labeled)
        for note in told:
            say(f"data.labeled: {note}")
        noted = replace(listed.labeled, notes=(*listed.labeled.notes, *told))
        listed = replace(listed, labeled=noted)
    unlabeled = None
    if found.unlabeled is not None:
        unlabeled = pack_it("unlabeled", found.unlabeled, classes=(), excluded=leaks, alike=alike)
    remember(listed.by_name, out, settings, "exact" if alike is None else "near")
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

    @property
    def by_name(self) -> dict[str, Listing]:
        """Those that there are."""
        return {name: found for name, found in vars(self).items() if found is not None}


def list_all(config: DataConfig, *, seed: int, pile: bool = True) -> Listings:
    """List the sources, check their classes, draw and split.

    Raises:
        DataError: as `ingest`, as far as it shows without reading an image.
    """
    start = time.monotonic()
    labeled = _labeled(config.labeled, "data.labeled")
    if len(labeled.classes) < 2:
        raise DataError(
            f"data.labeled={labeled.name!r} has one class only, {labeled.classes[0]!r}; "
            f"a classifier needs two or more{_deeper(labeled)}"
        )
    size = config.validation_size if config.validation is None else None
    train, held, rest = split(labeled, labels=config.labels, validation_size=size, seed=seed)
    if config.validation is None:
        validation = held
    else:
        validation = _scored(config.validation, "data.validation", labeled.classes)
    test = _scored(config.test, "data.test", labeled.classes) if config.test else None
    if validation.rows < TELLING:
        say(
            f"data.validation: {validation.rows:,} images tell little: probabilities are roughly "
            "calibrated, and only a student that falls apart is refused; a hundred tell more"
        )
    unlabeled = _pile(config, rest) if pile else None
    found = Listings(train, unlabeled, validation, test)
    if (seconds := time.monotonic() - start) >= LONG:
        rows = sum(listing.rows for listing in found.by_name.values())
        say(f"list: {rows:,} images in {seconds:.1f} s, {rows / seconds:,.0f} images/s")
    return found


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
    return parts[0], replace(parts[1], notes=()), replace(parts[2], notes=())


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


def _labeled(sources: str | Sequence[str], setting: str) -> Listing:
    """One source whose images have labels, or several as one."""
    if isinstance(sources, str):
        return _labeled_one(sources, setting)
    parts = [_labeled_one(source, f"{setting}.{i}") for i, source in enumerate(sources)]
    whole = united(parts, labeled=True)
    for note in whole.notes[sum(len(part.notes) for part in parts) :]:
        say(f"{setting}: {note}")
    return whole


def _labeled_one(source: str, setting: str) -> Listing:
    """A source whose images have labels; those without are left out, and said so."""
    listing = list_source(source, setting=setting)
    for note in listing.notes:
        say(f"{setting}: {note}")
    count = sum(listing.counts.values())
    if len(listing.parts) > 1:
        one = f"{source}/{listing.parts[0]}"
        folder = store.exists(store.absolute(one))
        raise DataError(
            f"{setting}={source!r} holds files of {' and '.join(listing.parts)}, which are parts "
            f"of a set; name those of one, such as {setting}='{one}{'' if folder else '*'}'"
        )
    parts = {name.lower(): name for name in listing.classes}
    if parts.keys() <= {*PARTS} and (len(parts) > 1 or "train" in parts):
        first = next(parts[part] for part in PARTS if part in parts)
        raise DataError(
            f"{setting}={source!r} holds the folders {', '.join(listing.classes)}, which are parts "
            f"of a set rather than classes; name one of them, such as {setting}={source}/{first}"
        )
    if not count:
        raise DataError(
            f"{setting}={source!r} holds {listing.rows:,} images but no labels; it needs a "
            f"folder per class, a table with a column `label`, or tars with a .cls beside each "
            f"image{_columns(listing)}"
        )
    if count == listing.rows:
        return listing
    told = f"{listing.rows - count:,} images of {source} have no label, left out"
    say(f"{setting}: {told}")
    every: Ranks = tuple((0, listing.counts[name]) for name in listing.classes)
    return replace(listing.taken([every], 0)[0], notes=(*listing.notes, told))


def _deeper(listing: Listing) -> str:
    """A hint to the folders in that of the only class, where there are some: they may be the
    classes."""
    keys, (name,) = Items.of(listing.items).table["key"], listing.classes
    below = pc.extract_regex(keys, r"^[^/]*/(?P<name>[^/]*)/")
    names = pc.struct_field(below, "name").unique().drop_null().to_pylist()
    if len(names) < 2 or not pc.all(pc.starts_with(keys, f"{name}/")).as_py():
        return ""
    return f"; the {len(names):,} folders in it may be the classes: name {listing.name}/{name}"


def _columns(listing: Listing) -> str:
    if not listing.columns:
        return ""
    more = f" and {len(listing.columns) - 10} more" if len(listing.columns) > 10 else ""
    return f"; its columns are {', '.join(listing.columns[:10])}{more}"


def _scored(sources: str | Sequence[str], setting: str, classes: tuple[str, ...]) -> Listing:
    """Validation or test images, checked against the classes of the labeled set."""
    listing = _labeled(sources, setting)
    present = {name for name, count in listing.counts.items() if count}
    unknown = [name for name in listing.classes if name in present and name not in classes]
    if unknown:
        raise DataError(
            f"{setting}={listing.name!r} has {_some(unknown)}, which data.labeled lacks; it has "
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
    if config.id_column is not None and {*config.unlabeled} == {"rest"}:
        raise DataError(
            f"data.id_column={config.id_column!r} is of Parquet tables of the pile, and "
            "data.unlabeled names none; name them, or leave data.id_column out"
        )
    parts: list[Listing] = []
    for i, source in enumerate(config.unlabeled):
        if source != "rest":
            parts.append(list_source(source, setting=f"data.unlabeled.{i}"))
            if config.id_column is not None:
                parts[-1] = staying(parts[-1], config.id_column)
            if len(parts[-1].parts) > 1:
                told = f"takes the files of {' and '.join(parts[-1].parts)}"
                parts[-1] = replace(parts[-1], notes=(*parts[-1].notes, told))
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
    return parts[0] if len(parts) == 1 else united(parts, labeled=False)


def _check_classes(corpus: Corpus, listing: Listing) -> None:
    if len(corpus.class_counts) != len(corpus.classes):
        raise DamagedFileError(store.join(corpus.path, store.DONE), "its images are not counted")
    lost = [n for n, c in zip(corpus.classes, corpus.class_counts, strict=True) if c == 0]
    if lost:
        raise DataError(
            f"data.labeled={listing.name!r} has no usable training image of {_some(lost)} "
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
    alike: Near | None = None,
) -> Corpus:
    path = out.corpus(name)
    adopted = adopt(listing, out=path, classes=classes, excluded=excluded, near=alike)
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
        near=alike,
        setting=f"data.{name}",
    )
