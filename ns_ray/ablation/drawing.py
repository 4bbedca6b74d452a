"""The outcome of an ablation as a plot."""

import io
import statistics
from collections.abc import Sequence

from ns_ray.ablation.grid import Grid
from ns_ray.ablation.table import Measured, score_of


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
        scores = [100 * score_of(m) for m in measured if m.arm == arm.name]
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
