"""Numbers as the page writes them."""

from collections.abc import Mapping
from typing import Any

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"
NOTHING = DASH


def percent(value: float | None, digits: int = 1) -> str:
    """`95.4%` of a fraction; a dash of nothing."""
    return NOTHING if value is None else f"{value:.{digits}%}"


def points(difference: float, digits: int = 1) -> str:
    """`+2.0` percentage points of a difference of fractions, with a real minus sign."""
    text = f"{100 * difference:+.{digits}f}"
    return (text.lstrip("+-") if float(text) == 0 else text).replace("-", MINUS)


def count(value: int | float | None) -> str:
    """`1,097`; a dash of nothing."""
    return NOTHING if value is None else f"{value:,.0f}"


def number(value: float | None, digits: int = 3) -> str:
    """`0.213`; a dash of nothing."""
    return NOTHING if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def seconds(value: float) -> str:
    """`0.3 s`, `58 s`, `3 min 20 s`, `2 h 5 min`."""
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def minute(time: str) -> str:
    """`2026-11-25 01:54 UTC` of a time in UTC, as stages write it; empty of nothing."""
    return f"{time[:10]} {time[11:16]} UTC" if len(time) >= 16 else ""


def size(value: int) -> str:
    """`35 MB`, `27.6 GB` of bytes."""
    return f"{value / 1e9:,.1f} GB" if value >= 1e9 else f"{max(1, round(value / 1e6))} MB"


def p_value(p: float | None) -> str:
    """`p = 0.03`."""
    if p is None:
        return "p unknown"
    return "p < 0.001" if p < 0.001 else f"p = {p:.2f}" if p >= 0.01 else f"p = {p:.3f}"


def interval(scores: Mapping[str, Any], number: str = "top1") -> tuple[float, float] | None:
    """Interval of the accuracy, or of another number, where it was computed."""
    found = scores.get(f"{number}_interval")
    return (float(found[0]), float(found[1])) if found else None


def span(low_high: tuple[float, float]) -> str:
    """The ends of an interval, in percent."""
    return f"{100 * low_high[0]:.1f}{DASH}{100 * low_high[1]:.1f}"
