"""Curves and tables of corrupted, perturbed and attacked images."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from ns_ray.report import charts, words
from ns_ray.report.charts import (
    Series,
)
from ns_ray.report.facts import Model


class Cell(NamedTuple):
    """A number in a table.

    Attributes:
        interval: its ends; None where it has none, as in runs from before there were any.
    """

    text: str
    interval: str | None


def robustness(models: Sequence[tuple[str, str, Model]]) -> dict[str, Any] | None:
    """Curves and tables of the models (name, kind, model) that were scored on corrupted,
    perturbed or adversarial images; in the tables also of what they were before their `fixres`.
    None: none was."""
    scored = [(name, kind, m.robustness) for name, kind, m in models if m.robustness]
    if not scored:
        return None
    shown: dict[str, Mapping[str, Any]] = {}
    for name, _, model in models:
        found = {name: model.robustness, f"{name} before fixres": model.before_fixres}
        shown |= {column: numbers for column, numbers in found.items() if numbers}
    figures: list[tuple[str, Markup]] = []
    names = dict.fromkeys(f for _, _, r in scored for f in families(r))
    ticks = severities(scored[0][2])  # a run scores all its models alike
    for family in names:
        series = [
            Series(name, kind, families(r)[family])
            for name, kind, r in scored
            if family in families(r)
        ]
        told = _told(series, f"at severity {ticks[-1]}")
        span = f"severity {ticks[0]} to {ticks[-1]}"
        text = f"Accuracy on images corrupted by {family}, {span}. {told}"
        chart = charts.lines(f"family-{family}", ticks, series, xlabel="severity", words=text)
        figures.append((family.capitalize(), chart))
    for attack in ("fgsm", "pgd"):
        curves = [(n, k, r["adversarial"][attack]) for n, k, r in scored if _has(r, attack)]
        if curves:
            steps = sorted(curves[0][2], key=float)
            series = [Series(n, k, [float(c[s]) for s in steps]) for n, k, c in curves]
            title = f"{attack.upper()} attack"
            text = f"Accuracy under {title}, epsilon {steps[0]} to {steps[-1]}. {_told(series)}"
            label = "epsilon, of 255 gray levels"
            chart = charts.lines(attack, steps, series, xlabel=label, words=text)
            figures.append((title, chart))
    return {**tables(list(shown), list(shown.values())), "figures": figures}


def tables(names: Sequence[str], scored: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The same without curves, of models by their names and results."""
    return {
        "columns": names,
        "figures": [],
        "corruptions": _errors(scored),
        "summary": _summary(scored),
        "attacks": _attacks(scored),
        "rows": scored[0].get("rows"),
    }


def _has(robustness: Mapping[str, Any], attack: str) -> bool:
    return bool((robustness.get("adversarial") or {}).get(attack))


def _told(series: Sequence[Series], where: str = "at the end") -> str:
    return "; ".join(f"{s.name} {words.percent(s.y[-1])}" for s in series) + f" {where}."


def _errors(scored: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row per corruption: name, family, mean errors of the models."""
    names = dict.fromkeys(n for r in scored for n in r.get("corruptions") or {})
    rows = []
    for name in names:
        found = [(r.get("corruptions") or {}).get(name) for r in scored]
        family = next(f["family"] for f in found if f)
        errors = [_cell(f or {}, "mean") for f in found]
        rows.append({"name": name.replace("_", " "), "family": family, "errors": errors})
    return rows


def _cell(found: Mapping[str, Any], number: str) -> Cell:
    low_high = words.interval(found, number)
    return Cell(words.percent(found.get(number)), words.span(low_high) if low_high else None)


def _attacks(scored: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Cell]]]:
    """Rows of accuracies under attack, by attack and epsilon."""
    rows = []
    for attack in ("fgsm", "pgd"):
        curves = [(r.get("adversarial") or {}).get(attack) or {} for r in scored]
        ends = [(r.get("adversarial_intervals") or {}).get(attack) or {} for r in scored]
        for epsilon in sorted({e for curve in curves for e in curve}, key=float):
            cells = [
                _cell({"top1": c.get(epsilon), "top1_interval": e.get(epsilon)}, "top1")
                for c, e in zip(curves, ends, strict=True)
            ]
            rows.append((f"{attack.upper()}, epsilon {epsilon}", cells))
    return rows


def _summary(scored: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Cell]]]:
    """Rows of figures over all corruptions and perturbations; those that nobody has are left
    out."""
    base = next((str(r["relative_to"]) for r in scored if r.get("relative_to")), "gen-00")
    relative = re.sub(r"^gen-0*(\d+)$", r"generation \1", base)
    rows = [
        ("Mean corruption error", "mean_corruption_error"),
        (f"Error relative to {relative}", "relative"),
        ("mCE (relative to AlexNet)", "mce"),
        ("Mean flip rate", "mean_flip_rate"),
        ("mFR (relative to AlexNet)", "mfr"),
        ("Top-1 of perturbed frames (higher is better)", "mean_perturbed_top1"),
    ]
    return [
        (label, [_cell(r, key) for r in scored])
        for label, key in rows
        if any(r.get(key) is not None for r in scored)
    ]


def families(robustness: Mapping[str, Any]) -> dict[str, list[float]]:
    """Family of corruptions -> mean accuracy at each of `severities`, as fractions."""
    errors: dict[str, list[list[float]]] = {}
    for corruption in (robustness.get("corruptions") or {}).values():
        by_severity = [float(corruption["error"][s]) for s in severities(robustness)]
        errors.setdefault(str(corruption["family"]), []).append(by_severity)
    return {name: [float(1 - x) for x in np.mean(rows, axis=0)] for name, rows in errors.items()}


def severities(robustness: Mapping[str, Any]) -> list[str]:
    """The severities that were scored, such as ["1", "2", "3", "4", "5"]."""
    rows = (robustness.get("corruptions") or {}).values()
    return sorted({severity for row in rows for severity in row["error"]}, key=int)
