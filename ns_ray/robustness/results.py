"""A model's result: rates from the counts of all units, and what relates it to others."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ns_ray import store
from ns_ray.config import RobustnessConfig
from ns_ray.log import say
from ns_ray.robustness import intervals, scores
from ns_ray.robustness.corruptions import STANDARD
from ns_ray.robustness.scores import PERTURBATIONS
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
    errors: dict[str, dict[int, list[float]]] = defaultdict(dict)
    attacks: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for (suite, name, level), total in sorted(totals.items()):
        if suite == "corruptions":
            errors[name][int(level)] = total
        elif suite == "adversarial":
            attacks[name][f"{level:g}"] = total
    clean = errors.pop("clean", {}).get(0)
    perturbed = {name: _perturbed(found) for name, found in sorted(sequences.items())}
    return {
        "clean_error": None if clean is None else clean[0] / clean[1],
        "clean_error_interval": None if clean is None else intervals.of_count(*clean),
        **_corrupted({n: errors[n] for n in names_of(config, "corruptions") if n in errors}),
        "perturbations": perturbed,
        **_perturbed_means(perturbed),
        "adversarial": {n: {e: a / b for e, (a, b) in by.items()} for n, by in attacks.items()},
        "adversarial_intervals": {
            n: {e: intervals.of_count(*total) for e, total in by.items()}
            for n, by in attacks.items()
        },
    }


def _corrupted(counts: Mapping[str, Mapping[int, list[float]]]) -> dict[str, Any]:
    """What `evaluation.json` says of corruptions.

    Args:
        counts: corruption -> severity -> mistakes and images.
    """
    rows = scores.corruption_rows(
        {
            name: {s: wrong / count for s, (wrong, count) in by.items()}
            for name, by in counts.items()
        }
    )
    for name, by in counts.items():
        ends = {str(s): intervals.of_count(*by[s]) for s in sorted(by)}
        rows[name] |= {"error_interval": ends, "mean_interval": intervals.of_mean(ends.values())}
    mean = scores.mean_error(rows)
    return {
        "corruptions": rows,
        "mean_corruption_error": mean,
        "mean_corruption_error_interval": None
        if mean is None
        else intervals.of_mean(rows[name]["mean_interval"] for name in STANDARD),
    }


def _perturbed(sequences: Sequence[Sequence[float]]) -> dict[str, Any]:
    """What `evaluation.json` says of a perturbation.

    Args:
        sequences: for each its share of flips, 1, and the share of its frames that are right, which
            counts from before it was kept lack.
    """
    flips = [numbers[0] for numbers in sequences]
    right = [numbers[2] for numbers in sequences if len(numbers) > 2]
    known = len(right) == len(sequences)
    return {
        "flip_rate": float(np.mean(flips)),
        "flip_rate_interval": intervals.of_sequences(flips),
        "top1": float(np.mean(right)) if known else None,
        "top1_interval": intervals.of_sequences(right) if known else None,
    }


def _perturbed_means(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the perturbations, with their intervals."""
    found: dict[str, Any] = {}
    for number, mean in (("flip_rate", "mean_flip_rate"), ("top1", "mean_perturbed_top1")):
        found[mean] = scores.perturbed_mean(rows, number)
        found[f"{mean}_interval"] = (
            None
            if found[mean] is None
            else intervals.of_mean(rows[name][f"{number}_interval"] for name in PERTURBATIONS)
        )
    return found


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
