"""What `ns-ray check` finds in a pile beyond its files: copies of held-out images, and images of
none of the classes. Both are told from samples; the run looks at every image."""

import hashlib
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ns_ray.config import ModelConfig, RunConfig
from ns_ray.data import (
    Item,
    Listing,
    Listings,
    Normalize,
    Preprocess,
    Signatures,
    Stream,
    decode,
    eval_pixels,
    start_of,
    thumbnail,
)
from ns_ray.errors import ConfigError, ImageError
from ns_ray.labeling import FEWEST, scale_of
from ns_ray.model import (
    Known,
    build_started,
    has_pooled_features,
    load,
    pooled_features,
    preprocessing,
)
from ns_ray.planning.findings import Finding
from ns_ray.store import FOREIGN_LEVEL, open_bundle

SECONDS = 4.0
"""Longest that the images of one sample are read and looked at, but for the first BATCH of them."""
HELD_OUT, LOOKED_AT = 2000, 500
"""Images of validation and test, and of labeled images and pile, that are compared at most."""
BATCH = 32
FEATURES_OF = 256
"""Images of each kind whose features are compared at most."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Seen:
    """Images of a sample that could be read."""

    uris: list[str]
    digests: list[bytes]
    thumbnails: Array


def try_leaks(config: RunConfig, found: Listings) -> Iterator[Finding]:
    """Copies of validation and test images among labeled images and pile."""
    held = [listing for listing in (found.validation, found.test) if listing is not None]
    share = HELD_OUT // len(held)
    looked = [_looked_at(listing, share, config) for listing in held]
    uris = {uri for seen in looked for uri in seen.uris}
    digests = {digest for seen in looked for digest in seen.digests}
    signatures = Signatures.of(sorted(uris), np.concatenate([seen.thumbnails for seen in looked]))
    of = sum(listing.rows for listing in held)
    for name, listing in (("labeled", found.labeled), ("unlabeled", found.unlabeled)):
        if listing is None:
            continue
        seen = _looked_at(listing, LOOKED_AT, config)
        copies = np.array([digest in digests for digest in seen.digests], bool)
        if config.data.leaks == "near":
            copies |= signatures.copies(seen.thumbnails)[0] >= 0
        # Of a packed corpus that holds both, a sample has rows of both.
        copies &= ~np.array([uri in uris for uri in seen.uris], bool)
        count = int(copies.sum())
        against = f"{len(uris):,} of {of:,} validation and test images"
        words = f"{count} of {len(copies)} tried are copies of {against}"
        if count:
            words += f", such as {seen.uris[int(np.flatnonzero(copies)[0])]}; a run leaves them out"
        yield Finding(f"data.{name}", words, unusual=count > 0)


def _looked_at(listing: Listing, most: int, config: RunConfig) -> _Seen:
    uris: list[str] = []
    digests: list[bytes] = []
    small: list[Array] = []
    for item, data in _read(listing.sample(most, config.seed)):
        with suppress(ImageError):
            small.append(thumbnail(decode(data, max_pixels=config.data.max_pixels, shrink_to=64)))
            uris.append(item.uri)
            digests.append(hashlib.sha256(data).digest())
    return _Seen(uris, digests, np.stack(small) if small else np.empty((0, 32, 32), np.uint8))


def _read(items: Sequence[Item]) -> Iterator[tuple[Item, bytes]]:
    """Images of a sample, as many as there is time for."""
    stream, start = Stream(), time.monotonic()
    # What is sorted by its place is not cut off there: that would be a sample of the first files.
    for batch in (items[i : i + BATCH] for i in range(0, len(items), BATCH)):
        for item in sorted(batch, key=start_of):
            with suppress(ImageError, OSError):
                yield item, item.read(stream)
        if time.monotonic() - start > SECONDS:
            return


def try_foreign(config: RunConfig, found: Listings) -> Iterator[Finding]:
    """How much of the pile is of none of the classes, as far as weights tell that the teacher
    starts from."""
    if found.unlabeled is None:
        return
    if config.teacher.bundle is None and not config.teacher.pretrained:
        yield Finding("foreign", "known once a teacher is trained: its weights are random now")
        return
    model, spec = _network(config.teacher, len(found.labeled.classes))
    labeled = _features(model, spec, found.labeled, config)
    if not labeled:
        yield Finding("foreign", "not known: the teacher has no pooled features")
        return
    known = Known(model, torch.stack([*labeled.values()]))
    held_out = _nearness(known, _features(model, spec, found.validation, config, but={*labeled}))
    pile = _nearness(known, _features(model, spec, found.unlabeled, config))
    scale = scale_of(held_out)
    if scale is None or not len(pile):
        yield Finding("foreign", f"not known: fewer than {FEWEST} validation images")
        return
    share, usual = float((scale.foreign(pile) > 1).mean()), 1 - FOREIGN_LEVEL
    error = float(np.sqrt(usual * (1 - usual) * (1 / len(pile) + 1 / len(held_out))))
    unusual = share > usual + 3 * error
    words = (
        f"{share:.0%} of {len(pile)} images of the pile look like none of the classes to the "
        f"weights that the teacher starts from, and {usual:.0%} of the validation images"
    )
    yield Finding("foreign", words + ("; see select.max_foreign" if unusual else ""), None, unusual)


def _nearness(known: Known, features: Mapping[str, torch.Tensor]) -> Array:
    """What `Known` says of images with these features, float32 [n]."""
    if not features:
        return np.empty(0, np.float32)
    normal = torch.nn.functional.normalize(torch.stack([*features.values()]), dim=1)
    cosines = normal @ known.labeled.T  # type: ignore[operator]
    return (cosines.amax(dim=1) - 1.0).numpy()


def _network(teacher: ModelConfig, classes: int) -> tuple[torch.nn.Module, Preprocess]:
    """
    Raises:
        ConfigError: its weights cannot be had.
        DataError: its bundle cannot be loaded.
    """
    if teacher.bundle is not None:
        return load(open_bundle(teacher.bundle))
    model = build_started(teacher, classes).eval()
    try:
        return model, preprocessing(model)
    except ValueError as error:
        raise ConfigError(f"teacher.model={teacher.model}: {error}") from None


def _features(
    model: torch.nn.Module,
    spec: Preprocess,
    listing: Listing,
    config: RunConfig,
    but: Collection[str] = (),
) -> dict[str, torch.Tensor]:
    """Pooled features by uri; empty where the model has none."""
    normalize = Normalize(spec, torch.device("cpu"))
    found: dict[str, torch.Tensor] = {}
    items = [item for item in listing.sample(FEATURES_OF, config.seed) if item.uri not in but]
    start = time.monotonic()
    for i in range(0, len(items), BATCH):
        uris: list[str] = []
        pixels: list[Array] = []
        for item, data in _read(items[i : i + BATCH]):
            with suppress(ImageError):
                pixels.append(eval_pixels(data, spec, max_pixels=config.data.max_pixels))
                uris.append(item.uri)
        if not pixels:
            continue
        images = normalize(torch.from_numpy(np.stack(pixels)))
        if not found and not has_pooled_features(model, images[:2]):
            return {}
        found |= zip(uris, pooled_features(model, images), strict=True)
        if time.monotonic() - start > SECONDS:
            break
    return found
