"""A figure in the page's style, as inline SVG.

It takes its colors from the page, light or dark: what is drawn in one of the stand-in colors
below becomes a CSS variable. It is drawn for a phone's width, with real text.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 5.0
"""Inches: 360 units of the drawing, about a phone's width in CSS pixels."""
COLORS = {
    "ink": "#010101",
    "muted": "#020202",
    "line": "#030303",
    "teacher": "#040404",
    "student": "#050505",
    "control": "#060606",
    "good": "#070707",
    "bad": "#080808",
    "paper": "#090909",
}
"""CSS variable -> the color that stands for it while drawing."""
STYLE: dict[str, Any] = {
    "axes.edgecolor": COLORS["line"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": COLORS["muted"],
    "axes.labelsize": 11.5,
    "axes.axisbelow": True,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": COLORS["ink"],
    "figure.facecolor": "none",
    "font.family": "sans-serif",
    "font.size": 12,
    "grid.color": COLORS["line"],
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 11.5,
    "legend.labelcolor": COLORS["ink"],
    "lines.linewidth": 2.2,
    "lines.markersize": 6,
    "svg.fonttype": "none",
    "text.color": COLORS["ink"],
    "text.parse_math": False,
    "xtick.color": COLORS["line"],
    "xtick.labelcolor": COLORS["muted"],
    "ytick.color": COLORS["line"],
    "ytick.labelcolor": COLORS["muted"],
    "ytick.major.size": 0,
}


@contextmanager
def drawing(name: str, height: float = 3.2) -> Iterator[tuple[Figure, Axes]]:
    """A figure in the page's style. Names of clips depend on the chart's name, so that charts on
    one page don't use each other's."""
    style: Any = {**STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that its own font lacks: the page's has them
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, figure.add_subplot()


def svg(figure: Figure, name: str, words: str) -> Markup:
    """The figure as an `<svg>` element that takes the page's width and colors."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    box = re.search(r'viewBox="([^"]+)"', text)
    assert box is not None
    head = (
        f'<svg class="chart" role="img" aria-label="{escape(words)}" viewBox="{box[1]}" '
        'xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    for pattern, new in (
        (r"^<svg[^>]*>", head),
        (r"\s*<metadata>.*?</metadata>", ""),
        (r"\s*<style.*?</style>", ""),  # it would be the whole page's
        (r"<!--.*?-->\s*", ""),
        (r'<g id="[^"]*">', "<g>"),
        (r' id="(\w+)"', rf' id="{name}-\1"'),
        (r"url\(#(\w+)\)", rf"url(#{name}-\1)"),
        (r'href="#(\w+)"', rf'href="#{name}-\1"'),
        (r"; font-family: [^;\"]*", ""),
    ):
        text = re.sub(pattern, (lambda _, new=head: new) if new is head else new, text, flags=re.S)
    for variable, color in COLORS.items():
        text = re.sub(rf"(fill|stroke): {color}", rf"\1: var(--{variable})", text)
    return Markup(text)
