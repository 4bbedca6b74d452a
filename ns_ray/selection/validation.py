"""What the teacher's predictions of validation images say about its pseudo-labels: how sure it must
be, and the temperature of its probabilities."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ns_ray.config import SelectConfig
from ns_ray.errors import ConfigError, DataError
from ns_ray.model import fit_temperature
from ns_ray.selection.policy import Floats
from ns_ray.selection.thresholds import Thresholds, for_precision
from ns_ray.store import Corpus, Evaluation, Predictions, PseudoLabels, read_predictions

SMALLEST = 2.0**-24
"""Probabilities are stored as float16: what is below its smallest value was stored as 0."""


@dataclass(frozen=True, eq=False)
class Validated:
    """Settings that may follow from validation images, resolved.

    Attributes:
        least: float64 [classes], rows must be above this confidence.
        temperature: of soft targets.
        fitted: whether that was fitted.
        precision: what `select.precision` asked for, and
        thresholds: what came of it.
    """

    least: Floats
    temperature: float
    fitted: bool
    precision: float | None
    thresholds: Thresholds | None

    def facts(self) -> dict[str, Any]:
        """What a selection says of them beside the values that it always has."""
        facts: dict[str, Any] = {"temperature_fitted": True} if self.fitted else {}
        if self.thresholds is not None:
            facts["precision"] = {
                "target": self.precision,
                "least": self.least.tolist(),
                "own": self.thresholds.own.tolist(),
                "pooled": self.thresholds.pooled,
                "reached": self.thresholds.reached,
            }
        return facts


def validated(
    config: SelectConfig,
    labels: PseudoLabels,
    evaluation: Evaluation | None,
    corpus: Corpus | None,
    *,
    anew: bool = True,
) -> Validated:
    """Resolve `select.precision` and `select.temperature`.

    Args:
        config: the settings.
        labels: the teacher's pseudo-labels, for their classes.
        evaluation: the teacher's scores on validation images.
        corpus: those images.
        anew: whether rows are selected anew: otherwise no threshold matters.

    Raises:
        ConfigError: the settings ask for validation images, and there are none.
        DataError: their predictions are gone, or they have other classes.
    """
    if not anew:
        config = config.model_copy(update={"precision": None})
    classes = len(labels.classes)
    thresholds, temperature = None, config.temperature
    least = np.full(classes, config.threshold)
    if config.needs_validation:
        said = _predictions(config, labels, evaluation, corpus)
        if config.precision is not None:
            rows = said.confidence <= np.float32(config.max_confidence)
            thresholds = for_precision(
                *(config.precision, config.threshold, classes),
                *(said.predicted[rows], said.confidence[rows], said.correct[rows]),
            )
            least = thresholds.least
        if temperature == "auto":
            assert said.probs is not None
            logits = np.log(np.maximum(said.probs, SMALLEST))
            temperature = round(fit_temperature(logits, said.truth), 4)
    assert temperature != "auto"
    fitted = config.temperature == "auto"
    return Validated(least, temperature, fitted, config.precision, thresholds)


def _predictions(
    config: SelectConfig,
    labels: PseudoLabels,
    evaluation: Evaluation | None,
    corpus: Corpus | None,
) -> Predictions:
    asked = {}
    if config.precision is not None:
        asked[f"select.precision={config.precision}"] = "select.precision=null"
    if config.temperature == "auto":
        asked["select.temperature=auto"] = "select.temperature=1"
    setting, plain = " and ".join(asked), " and ".join(asked.values())
    if evaluation is None or corpus is None:
        raise ConfigError(
            f"{setting}: the teacher's predictions of validation images are needed, which only a "
            f"run has (python -m ns_ray.run); here, set {plain}"
        )
    if corpus.classes != labels.classes:
        raise DataError(
            f"{setting}: the validation images {corpus.path} have the classes "
            f"{list(corpus.classes)[:10]}, the pseudo-labels {labels.path} "
            f"{list(labels.classes)[:10]}; they must be the same"
        )
    said = read_predictions(evaluation.path, corpus, probs=config.temperature == "auto")
    if said is None:
        raise DataError(f"{setting}: {evaluation.path} holds no predictions; score the model again")
    return said
