"""The outcome of an ablation as a table for people, Markdown and CSV.

Accuracies are fractions in, percent out. Knows nothing about how they came about.
"""

import csv
import io
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields

from rich import box
from rich.table import Table

from ns_ray.ablation.grid import Arm, Grid


@dataclass(frozen=True)
class Measured:
    """One arm with one seed. Accuracies are fractions; those of test are None without a test."""

    arm: str
    seed: int
    model: str
    parameters: int
    validation: float
    test: float | None
    teacher_validation: float
    teacher_test: float | None
    kept: int | None
    """Pseudo-labeled images that trained it."""
    copies: int | None
    """The same, copies counted."""


def cells(grid: Grid, measured: Sequence[Measured]) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of the table. A spread is the standard deviation over seeds; that of a
    difference, taken seed by seed, is its standard error."""
    scored = "test" if all(m.test is not None for m in measured) else "validation"
    titles = ["", "seeds", "teacher", *dict.fromkeys(["validation", scored])]
    titles += [f"against {grid.arms[0].name}", *(f"paper: {name}" for name in grid.columns)]
    reference = {m.seed: score_of(m) for m in measured if m.arm == grid.arms[0].name}
    rows = []
    for arm in grid.arms:
        mine = [m for m in measured if m.arm == arm.name]
        if not mine:
            continue
        row = [arm.name, str(len(mine)), _mean(_teacher(m) for m in mine)]
        row.append(_mean(m.validation for m in mine))
        if scored == "test":
            row.append(_mean(score_of(m) for m in mine))
        gains = [score_of(m) - reference[m.seed] for m in mine if m.seed in reference]
        row.append("" if arm is grid.arms[0] else _difference(gains))
        rows.append([*row, *_paper(grid, arm)])
    return titles, rows


def score_of(m: Measured) -> float:
    """Accuracy on test images where there are any, else on validation."""
    return m.validation if m.test is None else m.test


def _teacher(m: Measured) -> float:
    return m.teacher_validation if m.teacher_test is None else m.teacher_test


def _mean(values: Iterable[float]) -> str:
    percent = [100 * value for value in values]
    spread = f" ± {statistics.stdev(percent):.1f}" if len(percent) > 1 else ""
    return f"{statistics.mean(percent):.1f}{spread}"


def _difference(gains: Sequence[float]) -> str:
    if not gains:
        return ""
    percent = [100 * gain for gain in gains]
    mean = f"{statistics.mean(percent):+.1f}"
    if len(percent) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(percent) / len(percent) ** 0.5:.1f}"


def _paper(grid: Grid, arm: Arm) -> list[str]:
    numbers = arm.paper or (None,) * len(grid.columns)
    return ["" if n is None else n if isinstance(n, str) else f"{n:.1f}" for n in numbers]


def screen(name: str, grid: Grid, measured: Sequence[Measured]) -> Table:
    """The table for a terminal."""
    titles, rows = cells(grid, measured)
    table = Table(title=f"{name}: {grid.title}", title_justify="left", box=box.SIMPLE_HEAD)
    for index, title in enumerate(titles):
        table.add_column(title, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    return table


def markdown(name: str, grid: Grid, measured: Sequence[Measured]) -> str:
    """The table as a section of a Markdown page."""
    titles, rows = cells(grid, measured)
    lines = [f"| {' | '.join(row)} |" for row in [titles, ["---", *["---:"] * (len(titles) - 1)]]]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return f"## {name}: {grid.title}\n\n" + "\n".join(lines) + f"\n\nPaper: {grid.paper}\n"


def as_csv(measured: Sequence[Measured]) -> str:
    """Every single result, a row per arm and seed."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Measured)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(m) for m in measured)
    return text.getvalue()
