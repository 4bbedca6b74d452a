"""Model folders, as light frozen values: what is known of them without loading a weight."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ns_ray.errors import ConfigError, DataError
from ns_ray.store.files import exists, read_json
from ns_ray.store.paths import absolute, filesystem, join
from ns_ray.store.publication import already, fingerprint

PROVENANCE = "ns_ray.json"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
"""Files of a bundle."""


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


def open_bundle(path: str) -> Bundle:
    """What is known of a bundle, a run's best bundle, or a timm local-dir.

    Raises:
        ConfigError: there is none.
        DataError: it is half-written.
    """
    path = resolve(path)
    config = read_json(join(path, CONFIG))
    provenance: dict[str, Any] = {}
    if exists(join(path, PROVENANCE)):
        provenance = read_json(join(path, PROVENANCE))
        if already(path, str(provenance.get("fingerprint"))) is None:
            raise DataError(f"{path} is half-written: {PROVENANCE} and _DONE.json disagree")
    if not exists(join(path, WEIGHTS)):
        raise DataError(f"{path} has no {WEIGHTS}; pickled weights are not read")
    names = config.get("label_names") or config.get("pretrained_cfg", {}).get("label_names")
    count = int(config.get("num_classes") or len(names or ()))
    return Bundle(
        path=path,
        classes=tuple(names) if names else tuple(str(i) for i in range(count)),
        architecture=str(config.get("architecture", "")),
        fingerprint=str(provenance.get("fingerprint") or _foreign_fingerprint(config, path)),
        provenance=provenance,
    )


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
    """Changes when somebody else's weights are replaced, without reading them."""
    fs, inner = filesystem(join(path, WEIGHTS))
    info = fs.get_file_info(inner)
    return fingerprint(config, path, info.size, info.mtime_ns)
