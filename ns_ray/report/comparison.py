"""The page that compares the best models of two runs."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from ns_ray.config import CHOSEN, CHOSEN_NOISE, differences, without_effect_left_out
from ns_ray.errors import DataError
from ns_ray.report import accuracy, charts, findings, gallery, words
from ns_ray.report.facts import Run
from ns_ray.report.pictures import thumbnails
from ns_ray.report.rendering import render
from ns_ray.report.robustness import robustness
from ns_ray.report.timing import stages
from ns_ray.store import Predictions

CLASSES = 20
"""Classes listed, those that changed most."""
NOT_COMPARED = ("config_hash", "versions", "name")
"""Besides settings that do not change what a run makes."""


def comparison_page(a: Run, b: Run) -> str:
    """A page that compares two runs, as HTML.

    Raises:
        DataError: they know different classes.
    """
    if a.classes != b.classes:
        odd = sorted(set(a.classes) ^ set(b.classes)) or ["their order"]
        raise DataError(
            f"{a.layout.root} and {b.layout.root} know different classes ({', '.join(odd[:5])}); "
            "runs are compared on the same ones"
        )
    split = "test" if a.split == b.split == "test" else "validation"
    names = (a.name, b.name) if a.name != b.name else (f"{a.name} (first)", f"{b.name} (second)")
    before, after = (run.predictions(run.best, split) for run in (a, b))
    same = _same_images(before, after)
    galleries = []
    if before is not None and after is not None and same:
        galleries = gallery.disagreements(b, split, (names[0], before), (names[1], after))
    against = findings.versus(
        *((before, after) if same else (None, None)), _top1(a, split), _top1(b, split)
    )
    pair = [(name, kind, run) for name, kind, run in zip(names, KINDS, (a, b), strict=True)]
    return render(
        "comparison.html",
        names=names,
        runs=(a, b),
        split=split,
        sentences=_sentences(names, (a, b), split, against),
        against=against,
        same=same,
        figures=_figures((a, b), split),
        accuracy_charts=_accuracy_charts(names, (a, b), split),
        robustness=robustness([(name, kind, run.best) for name, kind, run in pair]),
        reliability=[
            found
            for name, kind, run in pair
            if (found := accuracy.reliability_of(run.best, split, name, kind))
        ],
        classes=_classes((a, b), split),
        galleries=galleries,
        thumbnails=thumbnails(b, galleries),
        settings=differences(_settings(a), _settings(b)),
        versions=differences(a.result["versions"], b.result["versions"]),
    )


KINDS = ("teacher", "student")
"""Colors and marks of the first and the second run."""


def _top1(run: Run, split: str) -> float:
    return float(run.best.row["test_top1" if split == "test" else "val_top1"])


def _same_images(a: Predictions | None, b: Predictions | None) -> bool:
    """Whether both were scored on the same images with the same answers."""
    return (
        a is not None
        and b is not None
        and len(a.keys) == len(b.keys)
        and bool((a.keys == b.keys).all() and (a.truth == b.truth).all())
    )


def _sentences(
    names: tuple[str, str], runs: tuple[Run, Run], split: str, against: findings.Versus
) -> list[str]:
    question = f"Is the best model of {names[1]} better than that of {names[0]}?"
    scores = [words.percent(_top1(run, split)) for run in runs]
    told = (
        f"on {split} images {scores[1]} of its answers are right and {scores[0]} of the other's, "
        f"which puts it {against.words} {names[0]}"
    )
    if against.p is None:
        return [question, f"Not comparable image by image: {told}."]
    answer = "Yes" if against.better else "No" if against.difference <= 0 else "Not proven"
    return [question, f"{answer}: {told} ({words.p_value(against.p)})."]


def _figures(runs: tuple[Run, Run], split: str) -> list[tuple[str, list[str]]]:
    """Rows of figures: what, then the value of each run; what neither has is left out."""
    scores = [run.best.of(split) for run in runs]
    robust = [run.best.robustness for run in runs]
    kept = [run.lessons[-1].selection if run.lessons else None for run in runs]
    times = [stages(run)["total"] for run in runs]
    rows = [
        (f"Accuracy, {split}", [_of(r.best.of(split), "top1", _top1(r, split)) for r in runs]),
        ("Accuracy, validation", [words.percent(run.best.row["val_top1"]) for run in runs]),
        ("Balanced accuracy", [words.percent(accuracy.balanced(s)) for s in scores]),
        ("NLL", [words.number(s.get("nll")) for s in scores]),
        ("Calibration error (ECE)", [words.percent(s.get("ece")) for s in scores]),
        ("Mean corruption error", [_of(r, "mean_corruption_error") for r in robust]),
        ("Mean flip rate", [_of(r, "mean_flip_rate") for r in robust]),
        ("Top-1, perturbed frames", [_of(r, "mean_perturbed_top1") for r in robust]),
        ("Best generation", [str(run.best.row["generation"]) for run in runs]),
        ("Architecture", [str(run.best.row["model"]) for run in runs]),
        ("Parameters", [words.count(run.best.row["parameters"]) for run in runs]),
        ("Labeled images", [words.count(run.result["data"]["labeled"]) for run in runs]),
        ("Unlabeled images", [words.count(run.result["data"]["unlabeled"]) for run in runs]),
        ("Pseudo-labels kept last", [words.count(s.kept if s else None) for s in kept]),
        ("Time in all stages", [words.seconds(t) for t in times]),
    ]
    if split == "validation":
        rows.pop(1)
    return [(label, values) for label, values in rows if set(values) != {words.NOTHING}]


def _of(scores: Mapping[str, Any], number: str, value: float | None = None) -> str:
    """A number of some scores, or `value`, and its interval."""
    low_high = words.interval(scores, number)
    text = words.percent(scores.get(number) if value is None else value)
    return text + (f" ({words.span(low_high)})" if low_high else "")


def _accuracy_charts(
    names: tuple[str, str], runs: tuple[Run, Run], split: str
) -> list[tuple[str, Markup]]:
    """Both runs' accuracies on one scale."""
    limits = charts.limits(
        score
        for run in runs
        for shown in (split, "validation")
        for score in accuracy.scores_of(run, shown).values()
    )
    return [
        (name, accuracy.accuracy_chart(run, split, f"accuracy-{i}", limits))
        for i, (name, run) in enumerate(zip(names, runs, strict=True))
    ]


def _classes(runs: tuple[Run, Run], split: str) -> list[dict[str, Any]]:
    """F1 per class in both runs, the largest changes first."""
    first, second = ({c["name"]: c for c in r.best.of(split).get("classes", [])} for r in runs)
    rows = [
        {
            "name": name,
            "rows": second[name]["rows"],
            "values": [first[name]["f1"], second[name]["f1"]],
            "change": second[name]["f1"] - first[name]["f1"],
        }
        for name in first
        if name in second
    ]
    return sorted(rows, key=lambda row: -abs(row["change"]))[:CLASSES]


def _settings(run: Run) -> dict[str, Any]:
    """The settings as asked for; what was left open says so."""
    settings = without_effect_left_out(run.config)
    found = {key: value for key, value in settings.items() if key not in NOT_COMPARED}
    train = {**dict.fromkeys(CHOSEN, "chosen"), **found["train"]}
    train["noise"] = {**dict.fromkeys(CHOSEN_NOISE, "chosen"), **train.get("noise", {})}
    return {**found, "train": train}
