"""The outcome of an ablation as a table for people, Markdown, CSV and a plot.

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
    reference = {m.seed: _score(m) for m in measured if m.arm == grid.arms[0].name}
    rows = []
    for arm in grid.arms:
        mine = [m for m in measured if m.arm == arm.name]
        if not mine:
            continue
        row = [arm.name, str(len(mine)), _mean(_teacher(m) for m in mine)]
        row.append(_mean(m.validation for m in mine))
        if scored == "test":
            row.append(_mean(_score(m) for m in mine))
        gains = [_score(m) - reference[m.seed] for m in mine if m.seed in reference]
        row.append("" if arm is grid.arms[0] else _difference(gains))
        rows.append([*row, *_paper(grid, arm)])
    return titles, rows


def _score(m: Measured) -> float:
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


def plot(name: str, grid: Grid, measured: Sequence[Measured]) -> bytes:
    """An SVG: each seed a dot, mean and standard deviation a bar; the paper's numbers beside."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    arms = [arm for arm in grid.arms if any(m.arm == arm.name for m in measured)]
    papers = [
        [n if isinstance(n, int | float) else None for n in (arm.paper or ())] for arm in arms
    ]
    with_paper = any(n is not None for row in papers for n in row)
    figure = Figure(figsize=(9 if with_paper else 6, 1.2 + 0.45 * len(arms)), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(1, 2 if with_paper else 1, sharey=True, squeeze=False)[0]
    for y, arm in enumerate(arms):
        scores = [100 * _score(m) for m in measured if m.arm == arm.name]
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        axes[0].errorbar(statistics.mean(scores), y, xerr=spread, fmt="o", color="C0", capsize=4)
        axes[0].scatter(scores, [y] * len(scores), s=12, color="C0", alpha=0.4)
    axes[0].set_yticks(range(len(arms)), [arm.name for arm in arms])
    axes[0].invert_yaxis()
    scored = "test" if all(m.test is not None for m in measured) else "validation"
    axes[0].set_xlabel(f"{scored} accuracy, %")
    axes[0].set_title("here", fontsize=10)
    if with_paper:
        for column, title in enumerate(grid.columns):
            found = [(row[column], y) for y, row in enumerate(papers) if row]
            points = [(x, y) for x, y in found if x is not None]
            axes[1].plot(*zip(*points, strict=True), "o", label=title) if points else None
        axes[1].set_xlabel("ImageNet accuracy, %")
        axes[1].set_title("paper", fontsize=10)
        axes[1].legend(fontsize=8)
    for axis in axes:
        axis.grid(axis="x", alpha=0.3)
    figure.suptitle(f"{name}: {grid.title}", fontsize=11)
    buffer = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):  # text, and the same each time
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
