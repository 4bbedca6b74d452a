"""What a finished run left in its files, as plain values. Knows no HTML and no pictures."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from ns_ray import store
from ns_ray.config import AcceptConfig, validate
from ns_ray.errors import ConfigError, DataError
from ns_ray.steps import teachers
from ns_ray.store import (
    PROVENANCE,
    REJECTED_PREFIX,
    Corpus,
    PseudoLabels,
    RunLayout,
    Selection,
    arm_name,
    open_corpus,
    open_labels,
    open_selection,
)

Array = np.ndarray[Any, Any]
SPLITS = ("labeled", "unlabeled", "validation", "test")


@dataclass(frozen=True)
class Predictions:
    """What a model says about a labeled corpus, sorted by key; all columns have the same length.

    Attributes:
        keys: keys, strings.
        shards: corpus shard of each image, strings.
        truth: index of its class.
        predicted: index of the predicted class.
        confidence: of the prediction, a fraction.
    """

    keys: Array
    shards: Array
    truth: Array
    predicted: Array
    confidence: Array

    @property
    def correct(self) -> Array:
        """Whether the model is right about each."""
        return np.asarray(self.predicted == self.truth)


@dataclass(frozen=True)
class Model:
    """A trained model of the run: the first teacher, a student or the control arm.

    Attributes:
        row: its row of result.json.
        scores: its evaluation.json; empty where there is none.
    """

    row: dict[str, Any]
    scores: dict[str, Any]

    @property
    def is_control(self) -> bool:
        """Whether this is the control arm."""
        return self.kind == "control"

    @property
    def generation(self) -> int:
        """0, 1, ...; CONTROL for the control arm."""
        return int(self.row["generation"])

    @property
    def folder(self) -> str:
        """`gen-00`, or `control`."""
        return arm_name(self.generation)

    @property
    def name(self) -> str:
        """`generation 1`, or `control arm`."""
        return "control arm" if self.is_control else f"generation {self.generation}"

    @property
    def kind(self) -> str:
        """`control`, `teacher` (the first one) or `student`."""
        return str(self.row["role"])

    def of(self, split: str) -> dict[str, Any]:
        """Scores on validation or test; empty where there are none."""
        return dict(self.scores.get(split) or {})

    @property
    def robustness(self) -> dict[str, Any]:
        """Scores on corrupted, perturbed and adversarial images; empty where there are none."""
        return dict(self.scores.get("robustness") or {})


@dataclass(frozen=True)
class Lesson:
    """What a student was taught: the pseudo-labels and the rows chosen from them.

    Attributes:
        generation: the student's.
        teacher: generation of the model that labeled.
    """

    generation: int
    teacher: int
    labels: PseudoLabels
    selection: Selection


@dataclass(frozen=True)
class Run:
    """A finished run."""

    layout: RunLayout
    result: dict[str, Any]
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.result["name"])

    @property
    def mark(self) -> str:
        """Changes with the result."""
        return store.fingerprint(self.result)

    @property
    def classes(self) -> list[str]:
        """Class names in the order of their indices."""
        return [str(name) for name in self.result["data"]["classes"]]

    @cached_property
    def models(self) -> list[Model]:
        """The generations in order, then the control arm."""
        rows = [*self.result["generations"]]
        if self.result.get("control"):
            rows.append(self.result["control"])
        return [Model(row, self._scores(int(row["generation"]))) for row in rows]

    def _scores(self, g: int) -> dict[str, Any]:
        path = store.join(self.layout.generation(g), "evaluation.json")
        return store.read_json(path) if store.exists(path) else {}

    @property
    def commit(self) -> str | None:
        """Commit of the program that trained the best model, where it is known."""
        return self.provenance(self.best).get("git_sha")

    def provenance(self, model: Model) -> dict[str, Any]:
        """What its bundle says of where it came from; empty where it lies elsewhere."""
        path = store.join(self.layout.bundle(model.generation), PROVENANCE)
        return dict(store.read_json(path)) if store.exists(path) else {}

    @property
    def teacher(self) -> Model:
        """The first teacher."""
        return self.models[0]

    @property
    def control(self) -> Model | None:
        """The control arm."""
        return self.models[-1] if self.models[-1].is_control else None

    @property
    def best(self) -> Model:
        """The model that is served."""
        return self.models[int(self.result["best_generation"])]

    @property
    def student(self) -> Model:
        """The best student: the best model, or the last student where the teacher stayed best."""
        if self.best is not self.teacher:
            return self.best
        return [model for model in self.models if not model.is_control][-1]

    @property
    def split(self) -> str:
        """The images that the headline is about: test where there is one."""
        return "test" if self.best.row.get("test_top1") is not None else "validation"

    def top1(self, model: Model) -> float:
        """Accuracy on the headline's images, a fraction."""
        return float(model.row["test_top1" if self.split == "test" else "val_top1"])

    @cached_property
    def lessons(self) -> list[Lesson]:
        """One for each student."""
        accept = validate(AcceptConfig, self.config["accept"])
        students = self.result["generations"][1:]
        taught_by = teachers([bool(row["accepted"]) for row in students], accept)
        return [
            Lesson(
                generation=g,
                teacher=teacher,
                labels=open_labels(self.layout.pseudo_labels(teacher + 1)),
                selection=open_selection(self.layout.selection(g)),
            )
            for g, teacher in enumerate(taught_by, start=1)
        ]

    def corpus(self, split: str) -> Corpus | None:
        """Labeled, unlabeled, validation or test images; None where the run has none."""
        path = self.layout.corpus(split)
        return open_corpus(path) if store.published(path) else None

    def predictions(self, model: Model, split: str) -> Predictions | None:
        """What a model said about validation or test images; None where that is gone."""
        if (model.folder, split) not in self._predictions:
            self._predictions[model.folder, split] = self._read_predictions(model, split)
        return self._predictions[model.folder, split]

    @cached_property
    def _predictions(self) -> dict[tuple[str, str], Predictions | None]:
        return {}

    def _read_predictions(self, model: Model, split: str) -> Predictions | None:
        place = store.join(self.layout.evaluation(model.generation), split)
        done = store.published(place)
        corpus = self.corpus(split)
        if done is None or corpus is None:
            return None
        tables = []
        files = {name.split(".", 1)[0]: name for name in done.files if _is_labels(name)}
        for shard, truth in corpus.scan(["key", "label"]):
            table = store.read_table(
                store.join(place, files[shard.name]), ["key", "label", "confidence", "shard"]
            )
            rows = pc.index_in(table["key"], value_set=truth["key"].combine_chunks())
            tables.append(table.append_column("truth", truth["label"].take(rows)))
        table = pa.concat_tables(tables).sort_by("key")
        column = {name: table[name].to_numpy() for name in table.column_names}
        return Predictions(
            keys=column["key"],
            shards=column["shard"],
            truth=column["truth"],
            predicted=column["label"],
            confidence=column["confidence"],
        )


def open_run(path: str) -> Run:
    """A finished run's folder or URI.

    Raises:
        ConfigError: there is no run.
        DataError: the run has not finished.
    """
    layout = RunLayout(store.absolute(path))
    if not store.exists(layout.config):
        raise ConfigError(f"{layout.root} is no run: it has no config.yaml; give a run's folder")
    if not store.exists(layout.result):
        raise DataError(
            f"{layout.root} has no result.json: the run has not finished; start it again"
        )
    config = yaml.safe_load(store.read_bytes(layout.config))
    return Run(layout, store.read_json(layout.result), config)


def matched(a: Array, b: Array) -> tuple[Array, Array]:
    """Positions in each of two arrays of unique keys of those that both hold."""
    at_a = pc.index_in(pa.array(b), value_set=pa.array(a)).to_numpy(zero_copy_only=False)
    at_b = np.flatnonzero(~np.isnan(at_a.astype(np.float64)))
    return at_a[at_b].astype(np.int64), at_b


@dataclass(frozen=True)
class Kept:
    """How right a class's pseudo-labels are, as far as validation images can tell.

    Attributes:
        rows: validation images that the teacher gives this class and selection would not drop.
        right: those that are of this class.
    """

    rows: int
    right: int


def kept_precision(run: Run, lesson: Lesson) -> list[Kept] | None:
    """Per class, on validation: the teacher's answers above the class's threshold of confidence.
    None where the teacher's predictions are gone."""
    found = run.predictions(run.models[lesson.teacher], "validation")
    if found is None:
        return None
    facts = lesson.selection.facts
    cuts = np.array(
        [
            facts["threshold"] if row["threshold"] is None else row["threshold"]
            for row in facts["table"]
        ],
        np.float32,
    )
    above = found.confidence > cuts[found.predicted]
    rows = np.bincount(found.predicted[above], minlength=len(cuts))
    right = np.bincount(found.predicted[above & found.correct], minlength=len(cuts))
    return [Kept(int(n), int(k)) for n, k in zip(rows, right, strict=True)]


def confusion(run: Run, model: Model) -> Array | None:
    """int64 [true class, predicted class] on the headline's images."""
    counts = model.of(run.split).get("confusion")
    if counts is not None:
        return np.array(counts, np.int64)
    found = run.predictions(model, run.split)
    if found is None:
        return None
    size = len(run.classes)
    cells = found.truth.astype(np.int64) * size + found.predicted
    return np.asarray(np.bincount(cells, minlength=size * size).reshape(size, size), np.int64)


def unreadable(run: Run) -> list[dict[str, Any]]:
    """Images that could not be used: {corpus, reason, rows, examples: [uri]}, most rows first.
    Examples are looked for among the first ones only."""
    found = []
    for split in SPLITS:
        corpus = run.corpus(split)
        for reason, rows in (corpus.rejected if corpus else {}).items():
            assert corpus is not None
            path = store.join(corpus.path, "rejected.parquet")
            examples = _examples([path]).get(reason, [])
            found.append({"corpus": split, "reason": reason, "rows": rows, "examples": examples})
    if run.lessons and run.lessons[0].labels.facts.get("rejected"):
        labels = run.lessons[0].labels
        done = store.published(labels.path)
        names = [n for n in done.files if n.startswith(REJECTED_PREFIX)] if done else []
        by_reason = _examples([store.join(labels.path, name) for name in names[:10]])
        found.append(
            {
                "corpus": "unlabeled",
                "reason": f"unreadable when labeled: {', '.join(by_reason)}",
                "rows": int(labels.facts["rejected"]),
                "examples": [uri for uris in by_reason.values() for uri in uris][:3],
            }
        )
    return sorted(found, key=lambda row: -int(row["rows"]))


def _examples(paths: list[str]) -> dict[str, list[str]]:
    """Up to three images per reason of rejection."""
    found: dict[str, list[str]] = {}
    for path in filter(store.exists, paths):
        for row in store.read_first(path, 10_000, ["uri", "reason"]).to_pylist():
            known = found.setdefault(row["reason"], [])
            if len(known) < 3:
                known.append(row["uri"])
    return found


def severities(robustness: Mapping[str, Any]) -> list[str]:
    """The severities that were scored, such as ["1", "2", "3", "4", "5"]."""
    rows = (robustness.get("corruptions") or {}).values()
    return sorted({severity for row in rows for severity in row["error"]}, key=int)


def families(robustness: Mapping[str, Any]) -> dict[str, list[float]]:
    """Family of corruptions -> mean accuracy at each of `severities`, as fractions."""
    errors: dict[str, list[list[float]]] = {}
    for corruption in (robustness.get("corruptions") or {}).values():
        by_severity = [float(corruption["error"][s]) for s in severities(robustness)]
        errors.setdefault(str(corruption["family"]), []).append(by_severity)
    return {name: [float(1 - x) for x in np.mean(rows, axis=0)] for name, rows in errors.items()}


def _is_labels(name: str) -> bool:
    return name.endswith(".parquet") and not name.startswith(REJECTED_PREFIX)
