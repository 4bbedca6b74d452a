"""Several sources as one: their keys kept apart, their classes brought together."""

from collections.abc import Sequence
from dataclasses import replace

from ns_ray import store
from ns_ray.data.sources.items import Items, natural
from ns_ray.data.sources.labels import suspects
from ns_ray.data.sources.listing import Listing


def united(parts: Sequence[Listing], *, labeled: bool) -> Listing:
    """All images of several sources; keys get the source's index in front.

    Args:
        parts: the sources in their order.
        labeled: whether the whole has classes: see `classes_of_all`.
    """
    named = list(enumerate(parts))
    classes = classes_of_all(parts) if labeled else ()
    notes = [f"{part.name}: {note}" for part in parts for note in part.notes]
    said = {note for part in parts for note in part.notes}
    return Listing(
        name=", ".join(part.name for part in parts),
        items=Items.joined([Items.of(part.items).prefixed(f"{i}/") for i, part in named]),
        classes=classes,
        fingerprint=store.fingerprint(*(part.fingerprint for part in parts)),
        notes=(*notes, *(note for note in suspects(classes) if note not in said)),
        packed=tuple(
            replace(rows, prefix=f"{i}/{rows.prefix}") for i, part in named for rows in part.packed
        ),
    )


def classes_of_all(parts: Sequence[Listing]) -> tuple[str, ...]:
    """Classes of several sources: in the order of the first source that has all of them, as one
    source keeps the order of its metadata; in natural order where none has."""
    every = {name for part in parts for name in part.classes}
    whole = (part.classes for part in parts if every == {*part.classes})
    return next(whole, tuple(sorted(every, key=natural)))
