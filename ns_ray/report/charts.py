"""The charts of the report, drawn by matplotlib."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from ns_ray.report.drawing import COLORS, WIDTH, drawing, svg
from ns_ray.report.predictions import Array

CROWDED = 6
"""More models than this are named in smaller letters."""
MARKERS = {"teacher": "s", "student": "o", "control": "D"}
DASHES = {"teacher": (4, 2), "student": (1, 0), "control": (1, 1.5)}


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        name: what it is called.
        kind: teacher, student or control: its color, marker and dashes.
        y: values at the chart's x positions.
    """

    name: str
    kind: str
    y: Sequence[float]


@dataclass(frozen=True)
class Score:
    """An accuracy and its interval, fractions.

    Attributes:
        interval: lowest and highest plausible value; None: unknown.
    """

    value: float
    interval: tuple[float, float] | None


def limits(scores: Iterable[Score | None]) -> tuple[float, float]:
    """Ends of an axis that shows all of some scores, with a little room."""
    ends = [end for s in scores if s for end in (s.value, *(s.interval or ()))] or [0.0, 1.0]
    room = max((max(ends) - min(ends)) * 0.08, 0.02)  # ticks are whole percents
    return max(0.0, min(ends) - room), min(1.005, max(ends) + room)


def accuracies(
    rows: Sequence[tuple[str, str]],
    splits: Mapping[str, Sequence[Score | None]],
    words: str,
    name: str,
    ends: tuple[float, float] | None = None,
) -> Markup:
    """Accuracy of every model, with its interval.

    Args:
        rows: name and kind of each model; the control arm's is drawn as a line across.
        splits: name of a split -> a score per model. The first split is drawn solid.
        words: what the chart says, for those who can't see it.
        name: of the chart.
        ends: of the axis; None: from the scores.
    """
    with drawing(name) as (figure, axes):
        offsets = np.linspace(-0.11, 0.11, len(splits)) if len(splits) > 1 else [0.0]
        for offset, (split, scores) in zip(offsets, splits.items(), strict=True):
            solid = split == next(iter(splits))
            for x, ((_, kind), score) in enumerate(zip(rows, scores, strict=True)):
                if score is not None:
                    _score(axes, x + float(offset), score, kind, solid)
        main = next(iter(splits.values()))
        ticks = [
            label + (f"\n{score.value:.1%}" if score else "")
            for (label, _), score in zip(rows, main, strict=True)
        ]
        size = 12 if len(rows) <= CROWDED else 12 * CROWDED / len(rows)
        axes.set_xticks(range(len(rows)), ticks, fontsize=size, color=COLORS["ink"])
        axes.set_xlim(-0.6, len(rows) - 0.4)
        axes.set_ylim(*(ends or limits(s for scores in splits.values() for s in scores)))
        axes.yaxis.set_major_formatter("{x:.0%}")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        return svg(figure, name, words)


def _score(axes: Axes, x: float, score: Score, kind: str, solid: bool) -> None:
    """A mark and its interval."""
    color = COLORS[kind]
    if score.interval:
        axes.plot([x, x], list(score.interval), color=color, linewidth=1.6)
    face = color if solid else COLORS["paper"]
    axes.plot(x, score.value, MARKERS[kind], color=color, mfc=face, markersize=8)
    if solid and kind == "control":
        axes.axhline(score.value, color=color, linewidth=1, dashes=(2, 3), zorder=1)


def lines(
    name: str,
    ticks: Sequence[str],
    series: Sequence[Series],
    *,
    xlabel: str,
    words: str,
    height: float = 2.6,
) -> Markup:
    """Accuracies over a few positions, one line per model, named at its end."""
    with drawing(name, height) as (figure, axes):
        x = np.arange(len(ticks))
        for one in series:
            axes.plot(
                x, one.y, color=COLORS[one.kind], marker=MARKERS[one.kind],
                dashes=DASHES[one.kind], label=one.name,
            )  # fmt: skip
        axes.set_xticks(x, ticks)
        axes.set_xlabel(xlabel)
        axes.set_ylim(0, 1.03)
        axes.yaxis.set_major_formatter("{x:.0%}")
        axes.legend(loc="lower left", handlelength=2.6, borderaxespad=0.1)
        return svg(figure, name, words)


def reliability(name: str, bins: Sequence[Mapping[str, float]], kind: str, words: str) -> Markup:
    """Accuracy against confidence: bars that end on the diagonal are honest. Wide bars hold many
    images."""
    with drawing(name, 3.4) as (figure, axes):
        filled = [b for b in bins if b["rows"]]
        most = max((b["rows"] for b in filled), default=1)
        axes.plot([0, 1], [0, 1], color=COLORS["muted"], linewidth=1.2, dashes=(3, 3))
        for b in filled:
            width = (b["high"] - b["low"]) * (0.25 + 0.7 * (b["rows"] / most) ** 0.5)
            middle = (b["low"] + b["high"]) / 2
            axes.bar(middle, b["accuracy"], width, color=COLORS[kind], alpha=0.7)
            ink = COLORS["ink"]
            axes.plot([middle] * 2, [b["accuracy"], b["confidence"]], color=ink, linewidth=1.2)
            axes.plot(middle, b["confidence"], "_", color=ink, markersize=8, mew=2)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.xaxis.set_major_formatter("{x:.0%}")
        axes.yaxis.set_major_formatter("{x:.0%}")
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
        return svg(figure, name, words)


def confusion_change(change: Array, classes: Sequence[str], words: str) -> Markup:
    """How many images moved in the confusion matrix [true, predicted]. Blue is better: more on
    the diagonal, fewer beside it."""
    size = len(classes)
    with drawing("confusion", WIDTH) as (figure, axes):
        most = max(1, int(np.abs(change).max()))
        for i in range(size):
            for j in range(size):
                value = int(change[i, j])
                better = value > 0 if i == j else value < 0
                color = COLORS["good" if better else "bad"] if value else COLORS["line"]
                alpha = 0.12 + 0.6 * (abs(value) / most) ** 0.6 if value else 0.18
                cell = Rectangle((j + 0.03, i + 0.03), 0.94, 0.94, color=color, alpha=alpha, lw=0)
                axes.add_patch(cell)
                if value:
                    text = f"{value:+d}".replace("-", "\N{MINUS SIGN}")
                    axes.text(
                        *(j + 0.5, i + 0.5, text), ha="center", va="center",
                        fontsize=max(5.0, min(11.0, 110 / size)),
                    )  # fmt: skip
        names = [name if len(name) <= 12 else f"{name[:11]}…" for name in classes]
        font = max(5.0, min(11.0, 130 / size))
        axes.set_xticks(np.arange(size) + 0.5, names, fontsize=font)
        axes.set_yticks(np.arange(size) + 0.5, names, fontsize=font)
        if max(map(len, names)) > 2:
            axes.tick_params("x", rotation=90)
        axes.set_xlim(0, size)
        axes.set_ylim(size, 0)
        axes.set_aspect("equal")
        axes.grid(False)
        axes.tick_params(length=0)
        axes.spines["bottom"].set_visible(False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        return svg(figure, "confusion", words)
