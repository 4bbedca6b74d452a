"""What one step hands to the next, as light frozen values: read from a folder's JSON files, without
an image or a weight."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ns_ray.errors import ConfigError, DataError
from ns_ray.store import files
from ns_ray.store.schema import FORMAT, REJECTED_PREFIX, shard_of

PROVENANCE = "ns_ray.json"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
"""Files of a bundle."""

Facts = Mapping[str, object]
"""What a stage has to say of its work, for `_DONE.json` and its kind."""


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a corpus."""

    name: str
    file: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class Corpus:
    """A packed image set. `classes` is empty for an unlabeled one."""

    path: str
    fingerprint: str
    shards: tuple[Shard, ...]
    classes: tuple[str, ...] = ()
    class_counts: tuple[int, ...] = ()
    rejected: dict[str, int] = field(default_factory=dict)
    """Rejected images by reason."""

    @property
    def rows(self) -> int:
        """Number of images."""
        return sum(shard.rows for shard in self.shards)

    def read(self, shard: Shard, columns: list[str] | None = None) -> pa.Table:
        """Rows of one shard."""
        return files.read_table(files.join(self.path, shard.file), columns)

    def scan(self, columns: list[str]) -> Iterator[tuple[Shard, pa.Table]]:
        """Every shard with some of its columns, in order."""
        for shard in self.shards:
            yield shard, self.read(shard, columns)


def open_corpus(path: str) -> Corpus:
    """A published corpus; a `pointer.json` (an adopted corpus) is followed.

    Raises:
        DataError: there is none, it is unfinished, or its format is newer than this program.
    """
    path = files.absolute(path)
    pointer = files.join(path, "pointer.json")
    if files.exists(pointer):
        return open_corpus(str(files.read_json(pointer)["corpus"]))
    done = files.published(path)
    manifest = files.join(path, "manifest.json")
    if done is None or not files.exists(manifest):
        raise DataError(f"{path} is not a packed corpus: it has no manifest.json and _DONE.json")
    raw = files.read_json(manifest)
    if int(raw.get("format", 0)) > FORMAT:
        raise DataError(f"{manifest} has format {raw['format']}; this ns-ray reads up to {FORMAT}")
    return Corpus(
        path=path,
        fingerprint=done.fingerprint,
        shards=tuple(Shard(**shard) for shard in raw["shards"]),
        classes=tuple(raw.get("classes") or ()),
        class_counts=tuple(raw.get("class_counts") or ()),
        rejected={str(k): int(v) for k, v in raw.get("rejected", {}).items()},
    )


def corpus_manifest(
    shards: list[Shard],
    classes: list[str],
    class_counts: list[int],
    rejected: dict[str, int],
    source: str,
) -> dict[str, Any]:
    """The contents of `manifest.json`."""
    return {
        "format": FORMAT,
        "rows": sum(shard.rows for shard in shards),
        "classes": classes,
        "class_counts": class_counts,
        "rejected": rejected,
        "source": source,
        "shards": [vars(shard) for shard in shards],
    }


@dataclass(frozen=True)
class Corpora:
    """The images of a run, all with the labeled set's class indices."""

    labeled: Corpus
    unlabeled: Corpus | None
    validation: Corpus
    test: Corpus | None


@dataclass(frozen=True)
class PseudoLabels:
    """A teacher's probabilities for a corpus: one Parquet file per corpus shard."""

    path: str
    fingerprint: str
    corpus: str
    classes: tuple[str, ...]
    files: dict[str, str]
    """Corpus shard name -> file."""
    rows: int
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def teacher(self) -> str:
        """Folder of the bundle that labeled."""
        return str(self.facts["teacher"])

    @property
    def images_per_second(self) -> float:
        """How fast it was, 0 where that is not known."""
        return float(self.facts.get("images_per_second", 0.0))

    def read(self, shard: str, columns: list[str] | None = None) -> pa.Table:
        """Pseudo-labels of one corpus shard."""
        return files.read_table(files.join(self.path, self.files[shard]), columns)


def open_labels(path: str) -> PseudoLabels:
    """Published pseudo-labels.

    Raises:
        DataError: there are none, or labeling has not finished.
    """
    path = files.absolute(path)
    done = files.published(path)
    if done is None or done.stage != "label":
        raise DataError(f"{path} holds no finished pseudo-labels (no _DONE.json of `label`)")
    return PseudoLabels(
        path=path,
        fingerprint=done.fingerprint,
        corpus=str(done.facts["corpus"]),
        classes=tuple(done.facts["classes"]),
        files={
            shard_of(name): name
            for name in done.files
            if name.endswith(".parquet") and not name.startswith(REJECTED_PREFIX)
        },
        rows=int(done.facts["rows"]),
        seconds=done.seconds,
        facts=done.facts,
    )


@dataclass(frozen=True)
class Selection:
    """The pseudo-labeled rows that train a student, and how many copies of each."""

    path: str
    fingerprint: str
    labels: str
    """Folder of the pseudo-labels it was made from."""
    corpus: str
    files: dict[str, str]
    counts: dict[str, int]
    """Corpus shard name -> rows, copies counted."""
    kept: int
    copies: int
    """Rows, copies counted."""
    facts: dict[str, Any] = field(default_factory=dict)

    def read(self, shard: str, columns: list[str] | None = None) -> pa.Table:
        """Selected rows of one corpus shard."""
        return files.read_table(files.join(self.path, self.files[shard]), columns)


def open_selection(path: str) -> Selection:
    """A published selection.

    Raises:
        DataError: there is none, or selecting has not finished.
    """
    path = files.absolute(path)
    done = files.published(path)
    if done is None or done.stage != "select":
        raise DataError(f"{path} holds no finished selection (no _DONE.json of `select`)")
    return Selection(
        path=path,
        fingerprint=done.fingerprint,
        labels=str(done.facts["labels"]),
        corpus=str(done.facts["corpus"]),
        files={shard_of(name): name for name in done.files if name.endswith(".parquet")},
        counts={str(k): int(v) for k, v in done.facts["counts"].items()},
        kept=int(done.facts["kept"]),
        copies=int(done.facts["copies"]),
        facts=done.facts,
    )


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
    path = files.absolute(path)
    for candidate in (path, files.join(path, "model"), files.join(path, "bundle")):
        if files.exists(files.join(candidate, CONFIG)):
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
    config = files.read_json(files.join(path, CONFIG))
    provenance: dict[str, Any] = {}
    if files.exists(files.join(path, PROVENANCE)):
        provenance = files.read_json(files.join(path, PROVENANCE))
        if files.already(path, str(provenance.get("fingerprint"))) is None:
            raise DataError(f"{path} is half-written: {PROVENANCE} and _DONE.json disagree")
    if not files.exists(files.join(path, WEIGHTS)):
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


def _foreign_fingerprint(config: Mapping[str, Any], path: str) -> str:
    """Changes when somebody else's weights are replaced, without reading them."""
    fs, inner = files.filesystem(files.join(path, WEIGHTS))
    info = fs.get_file_info(inner)
    return files.fingerprint(config, path, info.size, info.mtime_ns)


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one corpus.

    Attributes:
        path: folder of the predictions.
        scores: what `metrics.score` returns.
        keys: keys of the scored images, sorted.
        correct: whether the model is right about each.
        seconds: how long it took.
    """

    path: str
    scores: dict[str, Any]
    keys: tuple[str, ...]
    correct: tuple[bool, ...]
    seconds: float

    @property
    def top1(self) -> float:
        """Accuracy, a fraction."""
        return float(self.scores["top1"])

    def beside(self, other: "Evaluation") -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Whether this model and the other are right, on the images that both have scored."""
        right = dict(zip(self.keys, self.correct, strict=True))
        both = [
            (right[key], correct)
            for key, correct in zip(other.keys, other.correct, strict=True)
            if key in right
        ]
        pairs = np.array(both, dtype=np.bool_).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]
