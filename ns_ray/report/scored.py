"""The page of several models that were scored beside each other."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ns_ray.report import words
from ns_ray.report.accuracy import balanced
from ns_ray.report.findings import PROVEN, Versus
from ns_ray.report.rendering import render
from ns_ray.report.robustness import tables
from ns_ray.store import Bundle


def models_page(
    names: Sequence[str],
    models: Sequence[Bundle],
    scores: Sequence[Mapping[str, Any]],
    data: str,
) -> str:
    """A page that shows models beside each other, as HTML.

    Args:
        names: of the models.
        models: their bundles.
        scores: what `evaluation.json` of each says; those after the first are compared with it.
        data: the images, as the user named them.
    """
    rows = [_row(*one) for one in zip(names, models, scores, strict=True)]
    top = max(row["top1"] for row in rows)
    best = next(i for i, row in enumerate(rows) if row["top1"] == top)
    pairs = [_pair(*one) for one in zip(names[1:], scores[1:], strict=True)]
    damaged = [one.get("robustness") or {} for one in scores]
    return render(
        "models.html",
        names=names,
        data=data,
        images=scores[0]["rows"],
        rows=rows,
        top=top,
        pairs=pairs,
        answer=_answer(names, rows, pairs, best),
        robustness=tables(names, damaged) if all(damaged) else None,
    )


def _row(name: str, model: Bundle, scores: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table of models."""
    k = next((n for n in scores if re.fullmatch("top[0-9]+", n) and n != "top1"), None)
    low_high = words.interval(scores)
    return {
        "name": name,
        "path": model.path,
        "architecture": model.architecture,
        "parameters": model.parameters or None,
        "top1": float(scores["top1"]),
        "interval": words.span(low_high) if low_high else None,
        "topk": (f"Top-{k[3:]}", scores[k]) if k else None,
        "nll": scores["nll"],
        "ece": scores["ece"],
        "balanced": balanced(scores),
    }


def _pair(name: str, scores: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table of differences."""
    (found,) = scores["paired"].values()
    low, high = found["interval"]
    return {
        "name": name,
        **found,
        "span": f"{words.points(low)} to {words.points(high)}",
        "versus": Versus(found["difference"], found["gained"], found["lost"], found["p"]),
        "proven": found["p"] <= PROVEN or found["p"] >= 1 - PROVEN,
    }


def _answer(
    names: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    pairs: Sequence[Mapping[str, Any]],
    best: int,
) -> str:
    """The second sentence of the page."""
    right = f"{names[best]} is right on {words.percent(rows[best]['top1'])}"
    if best == 0:
        return f"{right}, and none of the others on more."
    pair = pairs[best - 1]
    sure = "" if pair["proven"] else "Not proven: "
    return f"{sure}{right}, {pair['versus'].words} {names[0]} ({words.p_value(pair['p'])})."
