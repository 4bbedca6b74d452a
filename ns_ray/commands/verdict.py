"""The verdict of a run, on one screen."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from ns_ray.log import console, say


def show(result: Mapping[str, Any]) -> None:
    """The verdict on one screen."""
    table = Table(title=f"run {result['name']}", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("generation", "model"):
        table.add_column(name, no_wrap=True)
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
        table.add_column(name, justify="right")
    rows = [*result["generations"], *([result["control"]] if result["control"] else [])]
    for row in rows:
        pseudo = row["pseudo_labels"]
        control = row["role"] == "control"
        table.add_row(
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
    console.print(table)
    say(f"best: generation {result['best_generation']}; model: {result['model']}")
    if result["status"] != "done":
        say("no student was better than the first teacher (see accept.max_p)")


def _rate(row: Mapping[str, Any], stage: str) -> str:
    value = row["images_per_second"].get(stage, 0.0)
    return f"{value:,.0f}" if value else ""
