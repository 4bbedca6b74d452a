"""A corpus without a fold of it, and the fold."""

from ns_ray import store
from ns_ray.data.packing import pack
from ns_ray.data.sources.listing import Listing, Packed, Ranks
from ns_ray.store import Corpus


def folded(corpus: Corpus, k: int, folds: int, out: str) -> tuple[Corpus, Corpus]:
    """One of several folds of labeled images, stratified; which images it has is decided by the
    hashes of their keys.

    Args:
        corpus: all images.
        k: which fold, from 0.
        folds: how many there are.
        out: folder of the two corpora.

    Returns:
        The images of the other folds, and those of this one, both of all classes.

    Raises:
        StageError: packing was interrupted by a fault of the machine or the store.
    """
    counts = corpus.class_counts
    starts, ends = ([count * i // folds for count in counts] for i in (k, k + 1))
    before: Ranks = tuple((0, start) for start in starts)
    fold: Ranks = tuple(zip(starts, ends, strict=True))
    after: Ranks = tuple(zip(ends, counts, strict=True))
    made = []
    for name, parts in (("others", (before, after)), ("fold", (fold,))):
        packed = tuple(Packed(corpus, ranks) for ranks in parts)
        listing = Listing(
            name=f"{name} of fold {k + 1} of {folds}",
            items=[],
            classes=corpus.classes,
            fingerprint=store.fingerprint(*(part.mark for part in packed)),
            packed=tuple(part for part in packed if part.rows),
        )
        made.append(pack(listing, out=store.join(out, name), classes=corpus.classes))
    return made[0], made[1]
