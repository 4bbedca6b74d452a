"""What `ns-ray check` finds in the sources of a run: how many, of what kind, and a few decoded."""

import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

from ns_ray import store
from ns_ray.config import RunConfig
from ns_ray.data import (
    Listing,
    Listings,
    Stream,
    decode,
    image_format,
    image_size,
    start_of,
    unread,
)
from ns_ray.errors import DataError, ImageError
from ns_ray.planning.estimates import label_bytes
from ns_ray.planning.findings import Finding, tried

SAMPLED = 20
"""Images of each source that are decoded."""

UNEVEN = 10
"""Times that the largest class has the images of the smallest, from which it is worth a note. The
paper's own labeled set, ImageNet, has 1.8."""


def try_images(config: RunConfig, found: Listings) -> Iterator[Finding]:
    """Counts, kinds and sizes, and a few images decoded, of each source of a run."""
    for name, listing in found.by_name.items():
        yield from tried(f"data.{name}", lambda n=name, f=listing: _tried(config, n, f))  # type: ignore[misc]
    if uneven := _uneven(found.labeled):
        yield Finding("data.labeled", uneven, unusual=True)
    yield _room(config, found)


def _tried(config: RunConfig, name: str, listing: Listing) -> Iterator[Finding]:
    """
    Raises:
        DataError: more images than `data.max_rejected` cannot be read.
    """
    most = config.data.max_pixels
    reasons: list[str] = []
    kinds: Counter[str] = Counter()
    sizes: list[tuple[int, int]] = []
    sample = sorted(listing.sample(SAMPLED, config.seed), key=start_of)
    stream = Stream()
    for item in sample:
        try:
            data = item.read(stream)
            decode(data, max_pixels=most)
            kinds[image_format(data, max_pixels=most)] += 1
            sizes.append(image_size(data, max_pixels=most))
        except ImageError as error:
            reasons.append(f"{item.uri}: {error}")
        except OSError as error:
            reasons.append(f"{item.uri}: {unread(item, error)}")
    if len(reasons) > max(1, math.ceil(config.data.max_rejected * len(sample))):
        raise DataError(
            f"{len(reasons)} of {len(sample)} images tried cannot be read, such as {reasons[0]}; "
            f"data.max_rejected={config.data.max_rejected:g}"
        )
    classes = f" in {len(listing.classes):,} classes" if name != "unlabeled" else ""
    bad = f", {len(reasons)} cannot be read ({reasons[0]})" if reasons else ", all can be read"
    yield Finding(
        f"data.{name}",
        f"{listing.rows:,} images{classes}; {len(sample)} tried{bad}{_kinds(kinds, sizes)}",
    )


def _kinds(kinds: Counter[str], sizes: list[tuple[int, int]]) -> str:
    """`: JPEG and PNG, 320 x 240 to 4,000 x 3,000 px`; nothing where no image can be read."""
    if not sizes:
        return ""
    sizes.sort(key=math.prod)
    ends = dict.fromkeys(f"{width:,} x {height:,}" for width, height in (sizes[0], sizes[-1]))
    return f": {' and '.join(name for name, _ in kinds.most_common())}, {' to '.join(ends)} px"


def _uneven(labeled: Listing) -> str | None:
    """A line where some classes have far fewer labeled images than others."""
    ordered = labeled.counts.most_common()
    (most, many), (least, few) = ordered[0], ordered[-1]
    if many < UNEVEN * few:
        return None
    return (
        f"its classes are uneven: {most!r} has {many:,} labeled images, {least!r} {few:,}; "
        "top-1 hides how the small ones fare, balanced accuracy in the report does not"
    )


def _room(config: RunConfig, found: Listings) -> Finding:
    """What images and pseudo-labels take of the disk, and what is free; models come on top."""
    images = image_bytes(found)
    rows, classes = found.unlabeled.rows if found.unlabeled else 0, len(found.labeled.classes)
    labels = label_bytes(config, rows, classes)
    told = (
        f"{_gigabytes(images)} of images and {_gigabytes(labels)} of pseudo-labels, besides models"
    )
    place = store.absolute(config.storage)
    if store.is_uri(place):
        return Finding("room", told)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    free = shutil.disk_usage(place).free
    return Finding("room", f"{told}; {_gigabytes(free)} are free", unusual=images + labels > free)


GUESSED_BYTES = 100_000
"""Of an image of which only reading tells how large it is."""


def image_bytes(found: Listings) -> int:
    """What the images of a run that it packs take of the disk."""
    return sum(_bytes(listing) for listing in found.by_name.values() if listing.corpus is None)


def sampled(listing: Listing, seed: int) -> list[bytes]:
    """Some images as they lie there; those that cannot be read are left out."""
    stream = Stream()
    images = []
    for item in sorted(listing.sample(SAMPLED, seed), key=start_of):
        with suppress(ImageError, OSError):
            data = item.read(stream)
            decode(data)
            images.append(data)
    return images


def _bytes(listing: Listing) -> int:
    """Of the images of a source, as far as that is known without reading them."""
    known = [item.size for item in listing.items if item.size >= 0]
    guessed = sum(known) // len(known) if known else GUESSED_BYTES
    parts = [
        sum(shard.bytes for shard in part.corpus.shards) * part.rows // max(part.corpus.rows, 1)
        for part in listing.packed
    ]
    return sum(known) + guessed * (len(listing.items) - len(known)) + sum(parts)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
