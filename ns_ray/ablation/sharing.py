"""Stages that publish under a name made of their inputs, so that the runs of an ablation share what
they have in common."""

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ns_ray import store
from ns_ray.config import (
    DataConfig,
    EvaluateConfig,
    LabelConfig,
    NoiseConfig,
    RobustnessConfig,
    RunConfig,
    SelectConfig,
)
from ns_ray.protocol import Stages
from ns_ray.steps import Label, Score, Select, Train
from ns_ray.store import (
    Bundle,
    Corpora,
    Corpus,
    Evaluation,
    Facts,
    PseudoLabels,
    RunLayout,
    Selection,
)


class Shared:
    """The folder where all runs look. A stage that is asked for twice at the same time is run once.

    Args:
        root: the folder.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    @contextmanager
    def place(self, kind: str, *inputs: object) -> Iterator[str]:
        """The folder of a stage's output, to itself."""
        out = store.join(self._root, kind, store.fingerprint(*inputs))
        with self._locks[out]:
            yield out


@dataclass(frozen=True)
class SharedStages:
    """`selftrain.Stages` that publish where all runs look.

    Attributes:
        own: the same stages with the run's resources.
        shared: where they publish.
        run: its name, for the log.
    """

    own: Stages
    shared: Shared
    run: str

    def ingest(self, config: DataConfig, *, seed: int, out: RunLayout) -> Corpora:
        """Sources -> corpora."""
        with self.shared.place("images", config.model_dump(mode="json"), seed) as place:
            return self.own.ingest(config, seed=seed, out=RunLayout(place))

    def fit_budget(self, config: RunConfig, data: Corpora) -> Facts:
        """What of a run its time is enough for."""
        return self.own.fit_budget(config, data)

    def forecast(self, config: RunConfig, data: Corpora, out: str) -> None:
        """Nothing: the runs share much of what they make, and a plan of one says little."""

    def tell(self, found: Facts, out: RunLayout) -> None:
        """Nothing: who waits for an ablation reads its table."""

    def symmetric(self, data: Corpora) -> bool:
        """Whether mirrored images look like the others."""
        return self.own.symmetric(data)

    def together(self, data: Corpora, out: str) -> Corpus:
        """Labeled and validation images as one corpus."""
        return self.own.together(data, out)

    def open_bundle(self, path: str) -> Bundle:
        """A model that the user has."""
        return self.own.open_bundle(path)

    def fit(
        self,
        step: Train,
        *,
        labeled: Corpus,
        validation: Corpus | None,
        pseudo: Selection | None,
        teacher: Bundle | None,
        seed: int,
        provenance: Facts,
    ) -> Bundle:
        """Images -> model."""
        settings = [
            step.model.model_dump(mode="json", exclude={"train"}),
            step.train.model_dump(mode="json"),
        ]
        made_of = [labeled.fingerprint]
        if validation is not None and step.train.calibrate:
            made_of.append(validation.fingerprint)
        if pseudo is not None:
            made_of.append(pseudo.fingerprint)
        if teacher is not None and step.model.init == "teacher":
            made_of.append(teacher.fingerprint)
        if step.temperature is not None:
            made_of.append(f"{step.temperature:g}")
        with self.shared.place("models", *settings, seed, *made_of) as place:
            step = replace(
                step,
                title=f"{self.run} {step.title}",
                out=store.join(place, "bundle"),
                checkpoints=store.join(place, "checkpoints"),
            )
            return self.own.fit(
                step,
                labeled=labeled,
                validation=validation,
                pseudo=pseudo,
                teacher=teacher,
                seed=seed,
                provenance=provenance,
            )

    def pseudo_label(
        self,
        step: Label,
        config: LabelConfig,
        teachers: Sequence[Bundle],
        unlabeled: Corpus,
        *,
        noise: NoiseConfig | None,
        known: tuple[Corpus, Corpus] | None = None,
    ) -> PseudoLabels:
        """Probabilities for the pile."""
        settings = [c.model_dump(mode="json") if c else None for c in (config, noise)]
        first, *others = [teacher.fingerprint for teacher in teachers]
        made_of = (first, unlabeled.fingerprint, *others)
        with self.shared.place("labels", *settings, *made_of) as place:
            made = store.published(place) is not None  # by a version that knew nothing of foreign
        images = () if made else [corpus.fingerprint for corpus in known or ()]
        with self.shared.place("labels", *settings, *made_of, *images) as place:
            step = replace(step, title=f"{self.run} {step.title}", out=place)
            return self.own.pseudo_label(
                step, config, teachers, unlabeled, noise=noise, known=known
            )

    def select(
        self,
        step: Select,
        config: SelectConfig,
        labels: PseudoLabels,
        *,
        seed: int,
        labeled_counts: Sequence[int],
        previous: Selection | None,
        evaluation: Evaluation,
        validation: Corpus,
    ) -> Selection:
        """Which pseudo-labels train the student."""
        made_of = [seed, labels.fingerprint, previous.fingerprint if previous else None]
        if config.needs_validation:
            made_of.append(evaluation.fingerprint)
        settings = config.model_dump(mode="json")
        with self.shared.place("selections", settings, *made_of) as place:
            return self.own.select(
                replace(step, out=place),
                config,
                labels,
                seed=seed,
                labeled_counts=labeled_counts,
                previous=previous,
                evaluation=evaluation,
                validation=validation,
            )

    def evaluate(
        self, step: Score, config: EvaluateConfig, models: Sequence[Bundle], corpus: Corpus
    ) -> Evaluation:
        """How good a model is."""
        first, *others = [model.fingerprint for model in models]
        made_of = (config.model_dump(mode="json"), first, corpus.fingerprint, *others)
        with self.shared.place("scores", *made_of) as place:
            step = replace(step, title=f"{self.run} {step.title}", out=place)
            return self.own.evaluate(step, config, models, corpus)

    def robustness(
        self,
        config: RobustnessConfig,
        models: Sequence[Bundle],
        corpus: Corpus,
        *,
        outs: Sequence[str],
        names: Sequence[str],
        batch_size: int,
    ) -> Sequence[Facts]:
        """How much models bear; not shared."""
        return self.own.robustness(
            config, models, corpus, outs=outs, names=names, batch_size=batch_size
        )
