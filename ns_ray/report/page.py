"""The page of one run: findings, charts and galleries, put into the template."""

from typing import Any

from ns_ray import store
from ns_ray.report import findings, gallery, words
from ns_ray.report.accuracy import accuracy_chart, model_row, refit_rows, reliability_of
from ns_ray.report.copies import copies
from ns_ray.report.corpora import corpora, left_out, unreadable
from ns_ray.report.damaged import damaged
from ns_ray.report.facts import Model, Run
from ns_ray.report.lessons import lesson_facts
from ns_ray.report.mistakes import confusions
from ns_ray.report.pictures import thumbnails
from ns_ray.report.planned import planned
from ns_ray.report.rendering import render
from ns_ray.report.robustness import robustness
from ns_ray.report.timing import finished, stages
from ns_ray.report.unfinished import coming


def run_page(run: Run) -> str:
    """The report of a run, as HTML."""
    pile, labeled = gallery.of_run(run)
    corrupted, corrupted_thumbnails = damaged(run)
    left, left_thumbnails = copies(run)
    come = None if run.ended else coming(run)
    return render(
        "report.html",
        run=run,
        finished=finished(run) if come is None else come["at"],
        coming=come,
        sentences=[findings.asked(run), findings.outcome(run), *findings.warnings(run)],
        tiles=tiles(run),
        models=[*(model_row(run, model) for model in run.models), *refit_rows(run)],
        accuracy_chart=accuracy_chart(run, run.split),
        robustness=robustness([(m.name, m.kind, m) for m in lined_up(run)]),
        reliability=[
            found
            for model in run.models
            if (found := reliability_of(model, run.split, model.name.capitalize(), model.kind))
        ],
        confusions=confusions(run) if run.student is not run.teacher else None,
        lessons=[lesson_facts(run, lesson) for lesson in reversed(run.lessons)],
        pile_galleries=pile,
        labeled_galleries=labeled,
        damaged_galleries=[corrupted] if corrupted else [],
        copy_galleries=left,
        thumbnails=thumbnails(run, [*pile, *labeled]) | corrupted_thumbnails | left_thumbnails,
        stages=stages(run),
        planned=planned(run),
        corpora=corpora(run),
        unreadable=unreadable(run),
        left_out=left_out(run),
        config=store.read_bytes(run.layout.config).decode(),
        versions=run.result["versions"],
        commit=run.commit,
    )


def brief_part(run: Run) -> str:
    """The sentences and the table of models of a run's report, as a part of a page."""
    return render(
        "brief.html",
        run=run,
        sentences=[findings.asked(run), findings.outcome(run), *findings.warnings(run)],
        models=[*(model_row(run, model) for model in run.models), *refit_rows(run)],
    )


def tiles(run: Run) -> list[dict[str, str]]:
    """The figures that matter most: label, value, note."""
    student, teacher = run.student, run.teacher
    found = [_delivered(run)]
    others = [(teacher, "over the first teacher")] if student is not teacher else []
    others += [(run.control, "over the control arm")] if run.control else []
    for other, label in others:
        against = findings.within(run, other, student)
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
    delivered = _scores_of_refit(run) or student.of(run.split)
    ece = [scores.get("ece") for scores in (teacher.of(run.split), delivered)]
    if None not in ece:
        note = f"{words.percent(ece[0])} for the first teacher" if student is not teacher else ""
        value = words.percent(ece[1])
        found.append({"label": "calibration error", "value": value, "note": note})
    if run.lessons:
        chosen = run.lessons[-1].selection
        note = f"of {words.count(chosen.facts['rows'])} images of the pile, for the last student"
        value = words.count(chosen.kept)
        found.append({"label": "pseudo-labels kept", "value": value, "note": note})
    return found


def _delivered(run: Run) -> dict[str, str]:
    """How right the model is that is served."""
    top1, name, scores = run.top1(run.best), run.best.name, run.best.of(run.split)
    if again := _scores_of_refit(run):
        top1, scores = again["top1"], again
        name += f", made once more with all {words.count(run.refit['labeled'])} labels"
    low_high = words.interval(scores)
    interval = "" if low_high is None else f", 95% interval {words.span(low_high)}"
    return {
        "label": f"{run.split} accuracy",
        "value": words.percent(top1),
        "note": name + interval,
    }


def _scores_of_refit(run: Run) -> dict[str, Any]:
    """Those on test of the model that the best student was made once more for; empty without."""
    return dict(run.refit["scores"]["test"] or {}) if run.refit else {}


def lined_up(run: Run) -> list[Model]:
    """The models whose curves are compared: teacher, student, control arm."""
    return [run.teacher, run.student, *([run.control] if run.control else [])]
