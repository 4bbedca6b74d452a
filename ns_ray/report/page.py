"""The page of one run: findings, charts and galleries, put into the template."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from ns_ray import __version__, store
from ns_ray.report import charts, gallery, words
from ns_ray.report.charts import Score, Series
from ns_ray.report.facts import (
    SPLITS,
    Lesson,
    Model,
    Run,
    confusion,
    families,
    kept_precision,
    severities,
    unreadable,
)

MAX_MATRIX = 25
"""Most classes whose confusion matrix is drawn."""
MAX_ROWS = 60
"""Most classes that are listed one by one; of more, the rarest and the most common half of it."""
PAIRS = 12
"""Confusions listed, those that changed most."""


def render(template: str, **values: Any) -> str:
    """A page from its template; everything is escaped but what is marked as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ns_ray.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("percent", "points", "count", "number", "seconds", "p_value")
    environment.filters |= {name: getattr(words, name) for name in names}
    return environment.get_template(template).render(version=__version__, **values)


def run_page(run: Run) -> str:
    """The report of a run, as HTML."""
    pile, labeled = gallery.of_run(run)
    return render(
        "report.html",
        run=run,
        finished=finished(run),
        sentences=[words.asked(run), words.outcome(run)],
        tiles=tiles(run),
        models=[model_row(run, model) for model in run.models],
        accuracy_chart=accuracy_chart(run, run.split),
        robustness=robustness([(m.name, m.kind, m) for m in lined_up(run)]),
        reliability=[
            found
            for model in run.models
            if (found := reliability_of(model, run.split, model.name.capitalize(), model.kind))
        ],
        confusions=confusions(run),
        lessons=[lesson_facts(run, lesson) for lesson in reversed(run.lessons)],
        pile_galleries=pile,
        labeled_galleries=labeled,
        thumbnails=gallery.thumbnails(run, [*pile, *labeled]),
        stages=stages(run),
        corpora=corpora(run),
        unreadable=unreadable(run),
        config=store.read_bytes(run.layout.config).decode(),
        versions=run.result["versions"],
        commit=run.commit,
    )


def finished(run: Run) -> str:
    """When the last model was scored, `2026-11-25 01:54 UTC`."""
    times = []
    for model in run.models:
        path = store.join(run.layout.evaluation(model.generation), run.split, store.DONE)
        if store.exists(path):
            times.append(str(store.read_json(path).get("finished", "")))
    last = max(times, default="")
    return f"{last[:10]} {last[11:16]} UTC" if len(last) >= 16 else ""


def tiles(run: Run) -> list[dict[str, str]]:
    """The figures that matter most: label, value, note."""
    student, teacher = run.student, run.teacher
    low_high = words.interval(run.best.of(run.split))
    found = [
        {
            "label": f"{run.split} accuracy",
            "value": words.percent(run.top1(run.best)),
            "note": f"{run.best.name}"
            + ("" if low_high is None else f", 95% interval {words.span(low_high)}"),
        }
    ]
    others = [(teacher, "over the first teacher")]
    others += [(run.control, "over the control arm")] if run.control else []
    for other, label in others:
        against = words.within(run, other, student)
        moved = (
            f"{against.gained:,} set right, {against.lost:,} newly wrong, "
            if against.gained is not None
            else ""
        )
        value = words.points(against.difference)
        note = f"points; {moved}{words.p_value(against.p)}"
        found.append({"label": label, "value": value, "note": note})
    before, after = teacher.robustness, student.robustness
    if before and after:
        value = words.percent(after.get("mean_corruption_error"))
        note = f"{words.percent(before.get('mean_corruption_error'))} for the first teacher"
        found.append({"label": "mean corruption error", "value": value, "note": note})
    ece = [m.of(run.split).get("ece") for m in (teacher, student)]
    if None not in ece:
        note = f"{words.percent(ece[0])} for the first teacher"
        value = words.percent(ece[1])
        found.append({"label": "calibration error", "value": value, "note": note})
    if run.lessons:
        chosen = run.lessons[-1].selection
        note = f"of {words.count(chosen.facts['rows'])} images of the pile, for the last student"
        value = words.count(chosen.kept)
        found.append({"label": "pseudo-labels kept", "value": value, "note": note})
    return found


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
    topk = next((k for k in main if k.startswith("top") and k[3:].isdigit() and k != "top1"), None)
    return {
        "name": model.name,
        "kind": model.kind,
        "model": model.row["model"],
        "parameters": model.row["parameters"],
        "accepted": None if model.kind != "student" else bool(model.row["accepted"]),
        "p": model.row.get("p_value"),
        "best": model is run.best,
        "topk": (topk, main.get(topk)) if topk else None,
        "nll": main.get("nll"),
        "ece": main.get("ece"),
        **scores,
    }


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


def lined_up(run: Run) -> list[Model]:
    """The models whose curves are compared: teacher, student, control arm."""
    return [run.teacher, run.student, *([run.control] if run.control else [])]


def robustness(models: Sequence[tuple[str, str, Model]]) -> dict[str, Any] | None:
    """Curves and tables of the models (name, kind, model) that were scored on corrupted,
    perturbed or adversarial images. None: none was."""
    scored = [(name, kind, m.robustness) for name, kind, m in models if m.robustness]
    if not scored:
        return None
    columns = [name for name, _, _ in scored]
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
    return {
        "columns": columns,
        "figures": figures,
        "corruptions": _errors([r for _, _, r in scored]),
        "summary": _summary([r for _, _, r in scored]),
        "rows": scored[0][2].get("rows"),
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
        errors = [f["mean"] if f else None for f in found]
        rows.append({"name": name.replace("_", " "), "family": family, "errors": errors})
    return rows


def _summary(scored: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
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
    ]
    return [
        (label, [words.percent(r.get(key)) for r in scored])
        for label, key in rows
        if any(r.get(key) is not None for r in scored)
    ]


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


def confusions(run: Run) -> dict[str, Any] | None:
    """What the student confuses less, and more, than the first teacher."""
    before, after = (confusion(run, model) for model in (run.teacher, run.student))
    if before is None or after is None:
        return None
    change = after - before
    off = change.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-np.abs(off), axis=None, kind="stable")[:PAIRS]
    pairs = []
    for cell in order:
        i, j = divmod(int(cell), len(change))
        if off[i, j]:
            pairs.append(
                {
                    "truth": run.classes[i],
                    "predicted": run.classes[j],
                    "before": int(before[i, j]),
                    "after": int(after[i, j]),
                    "change": int(off[i, j]),
                }
            )
    chart = None
    if change.any() and len(run.classes) <= MAX_MATRIX:
        right = int(np.trace(change))
        text = f"Change of the confusion matrix: {right:+d} images right. The table has the pairs."
        chart = charts.confusion_change(change, run.classes, text)
    return {"pairs": pairs, "chart": chart}


def lesson_facts(run: Run, lesson: Lesson) -> dict[str, Any]:
    """The pseudo-labels of one student: totals, and a row per class."""
    precision = kept_precision(run, lesson)
    facts = lesson.selection.facts
    rows = []
    for i, row in enumerate(facts["table"]):
        histogram = [int(n) for n in facts["histogram"][i]]
        cut = facts["threshold"] if row["threshold"] is None else row["threshold"]
        kept = precision[i] if precision else None
        rows.append({**row, "bars": bars(histogram, cut), "precision": kept})
    rest = 0
    if len(rows) > MAX_ROWS:
        by_rows = sorted(rows, key=lambda row: int(row["rows"]))
        rest = len(rows) - MAX_ROWS
        rows = by_rows[: MAX_ROWS // 2] + by_rows[-MAX_ROWS // 2 :]
    total = None
    if precision:
        total = {n: sum(getattr(k, n) for k in precision) for n in ("rows", "right")}
    return {"lesson": lesson, "facts": facts, "rows": rows, "rest": rest, "precision": total}


def bars(histogram: Sequence[int], cut: float) -> list[dict[str, float | bool]]:
    """Bars of a small histogram: x, height (0 to 1), and whether they reach above the cut."""
    most = max(max(histogram), 1)
    size = len(histogram)
    return [
        {"x": i, "height": n / most, "kept": (i + 1) / size > cut}
        for i, n in enumerate(histogram)
        if n
    ]


STAGES = ("label", "select", "train", "validation", "test")


def stages(run: Run) -> dict[str, Any]:
    """Seconds and images/s of every stage: a row per model, a cell per stage."""
    selected = {lesson.generation: lesson.selection for lesson in run.lessons}
    rows: list[dict[str, Any]] = []
    for model in run.models:
        rates = dict(model.row.get("images_per_second") or {})
        took = dict(model.row.get("seconds") or {})
        for split in ("validation", "test"):
            rates.setdefault(split, model.of(split).get("images_per_second"))
        chosen = None if model.is_control else selected.get(model.generation)
        done = store.published(chosen.path) if chosen else None
        if chosen and done and done.seconds:
            took["select"] = done.seconds
            rates["select"] = chosen.facts["rows"] / done.seconds
        cells = [
            {"seconds": took[stage], "rate": rates.get(stage)} if stage in took else None
            for stage in STAGES
        ]
        total = sum(took.values())
        rows.append({"name": model.name, "kind": model.kind, "cells": cells, "total": total})
    longest = max(row["total"] for row in rows) or 1.0
    used = [any(row["cells"][i] for row in rows) for i in range(len(STAGES))]
    return {
        "names": [name for name, use in zip(STAGES, used, strict=True) if use],
        "rows": [
            {
                **row,
                "share": row["total"] / longest,
                "cells": [c for c, use in zip(row["cells"], used, strict=True) if use],
            }
            for row in rows
        ],
        "total": sum(row["total"] for row in rows),
        "trained": words.trained(run),
    }


def corpora(run: Run) -> list[dict[str, Any]]:
    """Images per corpus, how many could not be used, and how fast they were packed."""
    data = run.result["data"]
    rows = []
    for split in SPLITS:
        if data.get(split) is not None:
            done = store.published(run.layout.corpus(split))
            took = done.seconds if done else None
            rejected = sum((data["rejected"].get(split) or {}).values())
            rate = data[split] / took if took else None
            row = {"name": split, "rows": data[split], "rejected": rejected}
            rows.append({**row, "seconds": took, "rate": rate})
    return rows
