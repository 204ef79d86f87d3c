"""Numbers as tables show them."""

from __future__ import annotations

from rea2seg.metrics import Interval


def number(value: float | None) -> str:
    """Three decimals; a dash where there is no number (NaN is not equal to itself)."""
    return "-" if value is None or value != value else f"{value:.3f}"


def signed(value: float) -> str:
    """Three decimals and a sign. Adding nothing turns the -0.0 that rounding may leave into 0.0."""
    return f"{round(value, 3) + 0.0:+.3f}"


def percent(value: float | None) -> str:
    """A share in percent."""
    return "-" if value is None else f"{100 * value:.1f}%"


def ends(interval: Interval) -> str:
    """The two ends of an interval."""
    return "-" if interval.low != interval.low else f"[{number(interval.low)}, {number(interval.high)}]"


def signed_ends(interval: Interval) -> str:
    """The two ends of a difference's interval."""
    return f"[{signed(interval.low)}, {signed(interval.high)}]"


def short_ends(interval: Interval) -> str:
    """The two ends of an interval for a narrow column."""
    return f"{interval.low:.2f}\N{EN DASH}{interval.high:.2f}"


def typeset(text: str) -> str:
    """The same for a page: a dash for what is missing, and a minus, which a hyphen is too short for."""
    return "\N{EN DASH}" if text == "-" else text.replace("-", "\N{MINUS SIGN}")
