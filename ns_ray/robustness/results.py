"""A model's result: rates from the counts of all units, and what relates it to others."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ns_ray import store
from ns_ray.config import RobustnessConfig
from ns_ray.log import say
from ns_ray.robustness import scores
from ns_ray.robustness.units import names_of


def summary(out: str, files: Sequence[str], config: RobustnessConfig) -> dict[str, Any]:
    """Rates from the counts of all units: what `evaluation.json` says, but for what needs the
    baseline."""
    totals: dict[tuple[str, str, float], list[float]] = defaultdict(lambda: [0.0, 0.0])
    sequences: dict[str, list[Sequence[float]]] = defaultdict(list)
    for file in files:
        part = store.read_json(store.join(out, file))
        for name, level, *numbers in part["rows"]:
            total = totals[part["suite"], name, level]
            total[0] += numbers[0]
            total[1] += numbers[1]
            if part["suite"] == "perturbations":
                sequences[name].append(numbers)
    rate = {key: value / count for key, (value, count) in totals.items()}
    errors: dict[str, dict[int, float]] = defaultdict(dict)
    attacks: dict[str, dict[str, float]] = defaultdict(dict)
    for (suite, name, level), value in sorted(rate.items()):
        if suite == "corruptions":
            errors[name][int(level)] = value
        elif suite == "adversarial":
            attacks[name][f"{level:g}"] = value
    clean = errors.pop("clean", {}).get(0)
    rows = scores.corruption_rows(
        {n: errors[n] for n in names_of(config, "corruptions") if n in errors}
    )
    perturbed = {name: _perturbed(found) for name, found in sorted(sequences.items())}
    return {
        "clean_error": clean,
        "corruptions": rows,
        "mean_corruption_error": scores.mean_error(rows),
        "perturbations": perturbed,
        "mean_flip_rate": scores.perturbed_mean(perturbed, "flip_rate"),
        "mean_perturbed_top1": scores.perturbed_mean(perturbed, "top1"),
        "adversarial": dict(attacks),
    }


def _perturbed(sequences: Sequence[Sequence[float]]) -> dict[str, Any]:
    """What `evaluation.json` says of a perturbation.

    Args:
        sequences: for each its share of flips, 1, and the share of its frames that are right, which
            counts from before it was kept lack.
    """
    right = [numbers[2] for numbers in sequences if len(numbers) > 2]
    return {
        "flip_rate": float(np.mean([numbers[0] for numbers in sequences])),
        "top1": float(np.mean(right)) if len(right) == len(sequences) else None,
    }


def related(
    result: dict[str, Any], baseline: dict[str, Any], name: str | None, imagenet: bool
) -> dict[str, Any]:
    """A model's result with what relates it to the baseline and to AlexNet."""
    flips, theirs = (
        {n: row["flip_rate"] for n, row in r["perturbations"].items()} for r in (result, baseline)
    )
    return {
        **result,
        "relative_to": name,
        "relative": scores.relative_error(result["corruptions"], baseline["corruptions"])
        if name is not None
        else None,
        "relative_flip_rate": scores.mfr(flips, theirs) if name is not None else None,
        "mce": scores.mce(result["corruptions"]) if imagenet else None,
        "mfr": scores.mfr(flips) if imagenet else None,
    }


def show(result: dict[str, Any], name: str) -> None:
    """One line for people."""
    words = []
    if result["mean_corruption_error"] is not None:
        words.append(f"mean corruption error {result['mean_corruption_error']:.4f}")
    if result["relative"] is not None:
        words.append(f"{result['relative']:.3f} times {result['relative_to']}")
    if result["mce"] is not None:
        words.append(f"mCE {result['mce']:.4f}")
    if result["mean_flip_rate"] is not None:
        words.append(f"mean flip rate {result['mean_flip_rate']:.4f}")
    if result.get("mean_perturbed_top1") is not None:
        words.append(f"top-1 of perturbed frames {result['mean_perturbed_top1']:.4f}")
    for attack, curve in result["adversarial"].items():
        points = " ".join(f"{value:.3f}" for value in curve.values())
        words.append(f"{attack.upper()} {points}")
    say(f"{name}: {', '.join(words)}")
