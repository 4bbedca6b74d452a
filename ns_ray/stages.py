"""The stages of a run, bound to its share of a machine or cluster: what the driver is handed."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from ns_ray.compute import Machine, Pool, Workers, resources
from ns_ray.config import (
    DataConfig,
    EvaluateConfig,
    LabelConfig,
    NoiseConfig,
    PredictConfig,
    RobustnessConfig,
    RunConfig,
    SelectConfig,
)
from ns_ray.data import ingest, symmetric, together
from ns_ray.errors import first_line
from ns_ray.labeling import pseudo_label
from ns_ray.log import Metrics, say
from ns_ray.protocol import Stages
from ns_ray.robustness import evaluate_robustness
from ns_ray.scoring import evaluate
from ns_ray.selection import select
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
    open_bundle,
)
from ns_ray.training import Limits, fit


def open_stages(config: RunConfig, machine: Machine, metrics: Metrics | None = None) -> Stages:
    """The stages of a run, with their share of a machine or cluster on which Ray runs.

    Args:
        config: the run.
        machine: what there is.
        metrics: where each training's metrics go; None: nowhere.
    """
    return RayStages(
        pool=resources.pool(config.resources, machine),
        workers=resources.workers(config.resources, machine),
        limits=Limits(config.resources.max_failures, config.resources.max_wait),
        predict=config.predict,
        metrics=metrics,
    )


@dataclass(frozen=True)
class RayStages:
    """What `selftrain.Stages` asks for: the real stages.

    Attributes:
        pool: actors that label and score.
        workers: that train.
        limits: what a training bears.
        predict: how images go through a model.
        metrics: where each training's metrics go.
        opened: when the run began, on the clock of `time.monotonic`.
    """

    pool: Pool
    workers: Workers
    limits: Limits
    predict: PredictConfig
    metrics: Metrics | None
    opened: float = field(default_factory=time.monotonic)

    def ingest(self, config: DataConfig, *, seed: int, out: RunLayout) -> Corpora:
        """Sources -> corpora."""
        return ingest(config, seed=seed, out=out)

    def fit_budget(self, config: RunConfig, data: Corpora) -> Facts:
        """What of a run its time is enough for."""
        from ns_ray.planning import fit_budget  # imports torch: only where there is a budget

        passed = time.monotonic() - self.opened
        return fit_budget(config, data, workers=self.workers, pool=self.pool, passed=passed)

    def forecast(self, config: RunConfig, data: Corpora, out: str) -> None:
        """What it is going to take."""
        from ns_ray.planning import forecast_run

        forecast_run(config, data, workers=self.workers, pool=self.pool, out=out)

    def tell(self, found: Facts, out: RunLayout) -> None:
        """What is known so far. Whatever goes wrong here must not cost the run."""
        from ns_ray import report

        try:
            report.tell(out.root, found)
        except Exception as error:
            say(f"the report of what is known so far could not be written: {first_line(error)}")

    def symmetric(self, data: Corpora) -> bool:
        """Whether mirrored images look like the others."""
        return symmetric(data.unlabeled or data.labeled)

    def together(self, data: Corpora, out: str) -> Corpus:
        """Labeled and validation images as one corpus."""
        return together(data.labeled, data.validation, out)

    def open_bundle(self, path: str) -> Bundle:
        """A model that the user has."""
        return open_bundle(path)

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
        return fit(
            step.model,
            step.train,
            labeled=labeled,
            validation=validation,
            temperature=step.temperature,
            pseudo=pseudo,
            teacher=teacher,
            seed=seed,
            workers=self.workers,
            limits=self.limits,
            checkpoints=step.checkpoints,
            out=step.out,
            title=step.title,
            provenance=provenance,
            metrics=partial(self.metrics.write, step.id) if self.metrics else None,
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
        return pseudo_label(
            config,
            teachers[0],
            unlabeled,
            pool=self.pool,
            out=step.out,
            title=step.title,
            predict=self.predict,
            noise=noise,
            others=teachers[1:],
            known=known,
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
        return select(
            config,
            labels,
            seed=seed,
            labeled_counts=labeled_counts,
            previous=previous,
            evaluation=evaluation,
            validation=validation,
            out=step.out,
        )

    def evaluate(
        self, step: Score, config: EvaluateConfig, models: Sequence[Bundle], corpus: Corpus
    ) -> Evaluation:
        """How good a model is."""
        return evaluate(
            config,
            models[0],
            corpus,
            pool=self.pool,
            out=step.out,
            title=step.title,
            predict=self.predict,
            others=models[1:],
        )

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
        """How much models bear."""
        return evaluate_robustness(
            config,
            models,
            corpus,
            outs=outs,
            names=names,
            pool=self.pool,
            title="robustness",
            batch_size=batch_size,
            predict=self.predict,
        )
