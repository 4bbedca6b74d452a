"""Model folders, as light frozen values: what is known of them without loading a weight."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from ns_ray.errors import ConfigError, DamagedFileError, DataError
from ns_ray.store.contents import Count, Seconds, holding
from ns_ray.store.files import exists, read_bytes, read_ends, read_json
from ns_ray.store.paths import absolute, join
from ns_ray.store.publication import check_listed, fingerprint, published

PROVENANCE = "ns_ray.json"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
"""Files of a bundle."""

END = 2**20
"""Bytes of each end of foreign weights that tell them from others: the header and some layers."""


@dataclass(frozen=True)
class Bundle:
    """What is known of a model folder without loading its weights."""

    path: str
    classes: tuple[str, ...]
    architecture: str
    fingerprint: str
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Number of parameters, where the folder says so."""
        return int(self.provenance.get("parameters", 0))

    @property
    def seconds(self) -> float:
        """That its training took, 0 where that is not known."""
        return float(self.provenance.get("seconds", 0.0))

    @property
    def images_per_second(self) -> float:
        """That its training got through, 0 where that is not known."""
        return float(self.provenance.get("images_per_second", 0.0))


def resolve(path: str) -> str:
    """The bundle that a user means: a run folder (its best model), or the bundle itself.

    Raises:
        ConfigError: there is no model.
    """
    path = absolute(path)
    for candidate in (path, join(path, "model"), join(path, "bundle")):
        if exists(join(candidate, CONFIG)):
            return candidate
    raise ConfigError(
        f"{path} is no bundle: expected config.json and model.safetensors in it (a bundle or a "
        "timm local-dir), or in its folder model/ (a run)"
    )


MOST_CLASSES = 10_000_000
"""Most classes of a model without names for them: some hundred times those of ImageNet-21k."""


@dataclass(frozen=True)
class _Pretrained:
    label_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class _Config:
    """What is needed of a bundle's config.json, which may be anybody's."""

    architecture: str = ""
    num_classes: Annotated[int, Field(ge=0, le=MOST_CLASSES)] | None = None
    label_names: tuple[str, ...] | None = None
    pretrained_cfg: _Pretrained | None = None


@dataclass(frozen=True)
class _Provenance:
    """What is needed of a bundle's ns_ray.json."""

    fingerprint: str = ""
    parameters: Count = 0
    seconds: Seconds = 0.0
    images_per_second: Seconds = 0.0
    weights_sha256: str | None = None


def open_bundle(path: str) -> Bundle:
    """What is known of a bundle, a run's best bundle, or a timm local-dir.

    Raises:
        ConfigError: there is none.
        DataError: it is half-written, or damaged.
    """
    path = resolve(path)
    done = published(path)
    config = read_json(join(path, CONFIG))
    known = holding(_Config, config, join(path, CONFIG))
    provenance: dict[str, Any] = {}
    if exists(join(path, PROVENANCE)):
        provenance = read_json(join(path, PROVENANCE))
        holding(_Provenance, provenance, join(path, PROVENANCE))
        if done is None and not _whole(path, provenance):
            reason = f"{path} is half-written: there is no _DONE.json, and {WEIGHTS} is not the "
            raise DamagedFileError(join(path, PROVENANCE), f"{reason}file that {PROVENANCE} names")
        if done is not None and done.fingerprint != provenance.get("fingerprint"):
            reason = f"{path} is half-written: {PROVENANCE} and _DONE.json disagree"
            raise DamagedFileError(join(path, PROVENANCE), reason)
    if done is not None:
        check_listed(path, done, [CONFIG, PROVENANCE])
    if not exists(join(path, WEIGHTS)):
        reason = f"{path} has no {WEIGHTS}; pickled weights are not read"
        raise DamagedFileError(join(path, WEIGHTS), reason)
    names = known.label_names or (known.pretrained_cfg and known.pretrained_cfg.label_names)
    return Bundle(
        path=path,
        classes=names or tuple(str(i) for i in range(known.num_classes or 0)),
        architecture=known.architecture,
        fingerprint=str(provenance.get("fingerprint") or _foreign_fingerprint(config, path)),
        provenance=provenance,
    )


def _whole(path: str, provenance: Mapping[str, Any]) -> bool:
    """Whether a bundle without `_DONE.json` is all there, such as one that the Hub has brought: its
    provenance is written after its weights and its config.json, and names the weights."""
    weights = join(path, WEIGHTS)
    expected = provenance.get("weights_sha256")
    return exists(weights) and hashlib.sha256(read_bytes(weights)).hexdigest() == expected


def check_bundle(path: str) -> None:
    """Read all of a bundle to see that it is as it was written.

    Raises:
        ConfigError: there is none.
        DamagedFileError: it isn't.
    """
    bundle, weights = open_bundle(path), join(path, WEIGHTS)
    expected = bundle.provenance.get("weights_sha256")
    if expected and hashlib.sha256(read_bytes(weights)).hexdigest() != expected:
        raise DamagedFileError(weights, f"it is not the file {PROVENANCE} names")


def check_same_classes(models: Sequence[Bundle]) -> None:
    """Fail where the answers of models cannot be averaged.

    Raises:
        DataError: names two that know different classes, or the same in another order.
    """
    first = models[0]
    for other in models[1:]:
        if other.classes != first.classes:
            raise DataError(
                f"{first.path} knows the classes {list(first.classes)[:10]}, {other.path} "
                f"{list(other.classes)[:10]}; models label together when they know the same ones "
                "in the same order"
            )


def _foreign_fingerprint(config: Mapping[str, Any], path: str) -> str:
    """Changes when somebody else's weights are replaced: with their size and both ends, of which
    training changes one. Not with the time of their file, which another copy has differently."""
    size, *ends = read_ends(join(path, WEIGHTS), END)
    return fingerprint(config, size, *(hashlib.sha256(end).hexdigest() for end in ends))
