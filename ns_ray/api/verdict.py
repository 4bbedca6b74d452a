"""The verdict of a run, on one screen."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from ns_ray import store
from ns_ray.log import say, tabulate
from ns_ray.store import CONTROL, RunLayout, arm_name


def table(result: Mapping[str, Any]) -> Table:
    """The models of a run."""
    made = Table(title=f"run {result['name']}", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("generation", "model"):
        made.add_column(name, no_wrap=True)
    for name in (
        "parameters",
        "validation",
        "test",
        "accepted",
        "kept",
        "label img/s",
        "train img/s",
        "seconds",
    ):
        made.add_column(name, justify="right")
    rows = [*result["generations"], *([result["control"]] if result["control"] else [])]
    for row in rows:
        pseudo = row["pseudo_labels"]
        control = row["role"] == "control"
        made.add_row(
            "control arm" if control else f"{row['generation']} {row['role']}",
            row["model"],
            f"{row['parameters']:,}",
            f"{row['val_top1']:.4f}",
            "-" if row["test_top1"] is None else f"{row['test_top1']:.4f}",
            "" if control else ("yes" if row["accepted"] else "no"),
            "" if pseudo is None else f"{pseudo['kept']:,}",
            _rate(row, "label"),
            _rate(row, "train"),
            f"{sum(row['seconds'].values()):.0f}",
        )
    if refit := result.get("refit"):
        top1, seconds = refit["test_top1"], sum(refit["seconds"].values())
        name, right = f"{refit['generations'][-1]} refit", "-" if top1 is None else f"{top1:.4f}"
        made.add_row(name, "", "", "-", right, "", "", "", "", f"{seconds:.0f}")
    return made


def show(result: Mapping[str, Any], layout: RunLayout) -> None:
    """The verdict on one screen."""
    tabulate(table(result))
    refit = result.get("refit")
    more = f", made once more with all {refit['labeled']:,} labels" if refit else ""
    say(f"best: generation {result['best_generation']}{more}; model: {layout.model}")
    if refit and refit["test_top1"] is None:
        say("how good that model is, no image is left to say: none were given as data.test")
    if result["status"] != "done":
        say("no student was better than the first teacher (see accept.max_p), which is delivered")
    elif result["best_generation"] == 0:
        say("no student has helped: the first teacher beats them on validation, and is delivered")
    if line := _control_ahead(result, layout):
        say(line)


def _control_ahead(result: Mapping[str, Any], layout: RunLayout) -> str | None:
    """A line where the control arm has more right than the delivered model: on test where there is
    one, else on validation."""
    control, best = result["control"], result["generations"][result["best_generation"]]
    if control is None:
        return None
    split, name = ("validation", "val_top1")
    if control["test_top1"] is not None and best["test_top1"] is not None:
        split, name = ("test", "test_top1")
    if control[name] <= best[name]:
        return None
    path = store.join(layout.generation(CONTROL), "evaluation.json")
    paired = store.read_scores(path).get("paired", {}) if store.exists(path) else {}
    against = paired.get(arm_name(result["best_generation"]))
    p = "unknown" if against is None else f"{against['p']:.3f}"
    return (
        "labels alone did better: the control arm is ahead of the delivered model on "
        f"{split}, {control[name]:.4f} against {best[name]:.4f} (paired p = {p})"
    )


def _rate(row: Mapping[str, Any], stage: str) -> str:
    value = row["images_per_second"].get(stage, 0.0)
    return f"{value:,.0f}" if value else ""
