"""What the driver asks of the stages: each is a method, and stages.py binds the real ones."""

from collections.abc import Sequence
from typing import Protocol

from ns_ray.config import (
    DataConfig,
    EvaluateConfig,
    LabelConfig,
    NoiseConfig,
    RobustnessConfig,
    RunConfig,
    SelectConfig,
)
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


class Stages(Protocol):
    """The stages of a run, with its share of a machine or cluster. Each publishes what it makes in
    its step's folder, and returns at once what it finds there, made from the same inputs."""

    def ingest(self, config: DataConfig, *, seed: int, out: RunLayout) -> Corpora:
        """Sources -> corpora: see data/stage.py."""

    def fit_budget(self, config: RunConfig, data: Corpora) -> Facts:
        """What of a run its time is enough for: see planning/budget.py."""

    def forecast(self, config: RunConfig, data: Corpora, out: str) -> None:
        """What the run is going to take, said and written: see planning/forecast.py."""

    def tell(self, found: Facts, out: RunLayout) -> None:
        """What is known so far, written for those who wait: see report/unfinished.py."""

    def symmetric(self, data: Corpora) -> bool:
        """Whether mirrored images look like the others: see data/mirrored.py."""

    def together(self, data: Corpora, out: str) -> Corpus:
        """Labeled and validation images as one corpus: see data/stage.py."""

    def open_bundle(self, path: str) -> Bundle:
        """A model that the user has."""

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
        """Images -> model: see training/stage.py."""

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
        """A model's probabilities for the pile, or the mean of several's, and how foreign its
        images are to labeled and held-out ones: see labeling/stage.py."""

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
        """Which pseudo-labels train the student: see selection/stage.py."""

    def evaluate(
        self, step: Score, config: EvaluateConfig, models: Sequence[Bundle], corpus: Corpus
    ) -> Evaluation:
        """How good a model is, or the mean of several: see scoring/stage.py."""

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
        """How much models bear: see robustness/suites.py."""
