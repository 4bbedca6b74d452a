"""How often each model is right, and how often it thinks so."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from ns_ray.report import charts, words
from ns_ray.report.charts import Score
from ns_ray.report.facts import Model, Run


def model_row(run: Run, model: Model) -> dict[str, Any]:
    """A row of the table of models."""
    scores = {}
    for split in ("test", "validation"):
        of = model.of(split)
        top1 = model.row.get("test_top1" if split == "test" else "val_top1")
        low_high = words.interval(of)
        scores[split] = {
            "top1": top1,
            "interval": None if low_high is None else words.span(low_high),
        }
    main = model.of(run.split)
    return {
        "name": model.name,
        "kind": model.kind,
        "model": model.row["model"],
        "parameters": model.row["parameters"],
        "accepted": None if model.kind != "student" else bool(model.row["accepted"]),
        "p": model.row.get("p_value"),
        "best": model is run.best,
        "delivered": False,
        **_of_probabilities(main),
        **scores,
    }


def refit_rows(run: Run) -> list[dict[str, Any]]:
    """The row of the model that the best student was made once more for, where there is one:
    only test images were left to score it."""
    if not run.refit:
        return []
    scores = dict(run.refit["scores"]["test"] or {})
    low_high = words.interval(scores)
    return [
        {
            "name": f"on all {words.count(run.refit['labeled'])} labels",
            "kind": "student",
            "model": run.best.row["model"],
            "parameters": run.best.row["parameters"],
            "accepted": None,
            "p": None,
            "best": False,
            "delivered": True,
            **_of_probabilities(scores),
            "test": {
                "top1": run.refit["test_top1"],
                "interval": None if low_high is None else words.span(low_high),
            },
            "validation": {"top1": None, "interval": None},
        }
    ]


def _of_probabilities(scores: dict[str, Any]) -> dict[str, Any]:
    """Top-k, log loss, calibration error, and balanced accuracy where it tells more."""
    names = (k for k in scores if k.startswith("top") and k[3:].isdigit() and k != "top1")
    topk = next(names, None)
    return {
        "topk": (topk, scores.get(topk)) if topk else None,
        "nll": scores.get("nll"),
        "ece": scores.get("ece"),
        "balanced": balanced(scores),
    }


UNEVEN = 2
"""Times that the largest class has the images of the smallest, from which it is shown."""


def balanced(scores: Mapping[str, Any]) -> float | None:
    """The mean over classes of the share of their images that is right; None where the classes
    have about as many images each, and it says what top-1 does."""
    rows = [row["rows"] for row in scores.get("classes", ()) if row["rows"]]
    if not rows or max(rows) < UNEVEN * min(rows):
        return None
    return float(np.mean([row["recall"] for row in scores["classes"] if row["rows"]]))


def scores_of(run: Run, split: str) -> dict[str, Score | None]:
    """Accuracy of each model on a split, by its folder."""
    name = "test_top1" if split == "test" else "val_top1"
    return {
        model.folder: None
        if model.row.get(name) is None
        else Score(float(model.row[name]), words.interval(model.of(split)))
        for model in run.models
    }


def accuracy_chart(
    run: Run, split: str, name: str = "accuracy", limits: tuple[float, float] | None = None
) -> Markup:
    """Accuracy per generation with intervals, and the control arm. Test is drawn solid."""
    rows = [("control" if m.is_control else f"gen. {m.generation}", m.kind) for m in run.models]
    splits = {s: list(scores_of(run, s).values()) for s in dict.fromkeys((split, "validation"))}
    told = "; ".join(
        f"{model.name} {words.percent(score.value)}"
        for model, score in zip(run.models, splits[split], strict=True)
        if score is not None
    )
    return charts.accuracies(rows, splits, f"Accuracy on {split} images: {told}.", name, limits)


def reliability_of(model: Model, split: str, name: str, kind: str) -> tuple[str, Markup] | None:
    """The title and the reliability diagram of a model, where it has bins."""
    scores = model.of(split)
    if not scores.get("reliability"):
        return None
    ece = words.percent(scores.get("ece"))
    text = f"Accuracy against confidence of {name}; mean gap (ECE) {ece}."
    identity = f"reliability-{kind}-{model.folder}"
    return (
        f"{name}: ECE {ece}",
        charts.reliability(identity, scores["reliability"], kind, text),
    )
