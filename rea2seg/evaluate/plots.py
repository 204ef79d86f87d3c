"""The report's diagrams, as SVG that takes the colour of its ink from the page around it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from io import StringIO

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rea2seg.drawing import BLUE, GREEN, ORANGE, PURPLE, RED, SKY, Colour
from rea2seg.evaluate.calibration import Calibration
from rea2seg.evaluate.coverage import LEVELS, LONGEST, Recall
from rea2seg.evaluate.results import Summary
from rea2seg.metrics import Interval

INK = "#010203"
"""Stands for the page's own ink until the SVG is written: no diagram draws in a colour like this."""
LONGEST_NAME = 40
"""Of a group, in letters. Ours: they take less than half of a diagram."""
ORDERS: dict[str, Colour] = {
    "ranking": BLUE,
    "blind": RED,
    "agreement": GREEN,
    "attention": ORANGE,
    "quality": PURPLE,
    "random": (128, 128, 128),
}


def best_of_first_plot(curves: dict[str, list[Interval]], initial: float | None) -> Markup:
    """gIoU over K for every order, the ranking's with its interval, and the initial mask's as a line."""
    with _styled():
        figure, axes = _figure(6.6, 3.8)
        places = range(1, LONGEST + 1)
        for name, line in curves.items():
            own = name == "ranking"
            colour = _rgb(ORDERS[name])
            axes.plot(places, [one.mean for one in line], "o-" if own else "-", ms=4, color=colour, label=name)
            if own:
                axes.fill_between(
                    places, [one.low for one in line], [one.high for one in line], color=colour, alpha=0.2, lw=0
                )
        if initial is not None:
            axes.axhline(initial, color=INK, ls="--", lw=1, label="initial mask")
        axes.set(xlabel="K, candidates looked at", ylabel="gIoU of the best of them", xticks=places, ylim=(0, 1))
        _legend_beside(axes)
        return _svg(figure, "Best of the first K candidates")


def recall_plot(recall: Sequence[Recall]) -> Markup:
    """Shares of samples that each search reaches."""
    bars = {
        f"IoU ≥ {LEVELS[0]}": (SKY, [one.at_50 for one in recall]),
        f"IoU ≥ {LEVELS[1]}": (BLUE, [one.at_75 for one in recall]),
        "only this search finds the best candidate": (ORANGE, [one.alone for one in recall if one.alone is not None]),
    }
    with _styled():
        figure, axes = _figure(6.6, 3.2)
        for place, (name, (colour, shares)) in enumerate(bars.items()):
            lefts = [x + 0.27 * (place - 1) for x in range(len(shares))]
            drawn = axes.bar(lefts, shares, 0.25, color=_rgb(colour), label=name)
            axes.bar_label(drawn, [f"{100 * share:.0f}" for share in shares], fontsize=8)
        axes.set(xticks=range(len(recall)), xticklabels=[one.source for one in recall], ylim=(0, 1.06))
        axes.set_ylabel("share of samples")
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(visible=False, axis="x")
        _legend_beside(axes)
        return _svg(figure, "What each search finds")


def calibration_plot(calibration: Sequence[Calibration]) -> Markup:
    """Mean true IoU over mean estimate, bin by bin, and how many candidates each bin holds."""
    with _styled():
        figure = Figure(figsize=(6.6, 4.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot((0, 1), (0, 1), color=INK, ls="--", lw=1, label="as it should be")
        for place, (one, colour) in enumerate(zip(calibration, (BLUE, ORANGE), strict=False)):
            means = [each.predicted for each in one.bins], [each.true for each in one.bins]
            upper.plot(*means, "o-", ms=5, color=_rgb(colour), label=one.estimate)
            lefts = [each.low + 0.01 + 0.04 * place for each in one.bins]
            lower.bar(lefts, [each.n for each in one.bins], 0.035, align="edge", color=_rgb(colour))
        upper.set(ylabel="mean true IoU", ylim=(0, 1), xlim=(0, 1))
        lower.set(xlabel="estimated IoU", ylabel="candidates")
        _legend_beside(upper)
        return _svg(figure, "Estimated against true IoU")


def groups_plot(summaries: Sequence[Summary]) -> Markup:
    """Initial mask, first choice with its interval and best candidate of every group, one line each."""
    marks = [("initial", "D", PURPLE), ("top1", "o", BLUE), ("oracle", "|", GREEN)]
    with _styled():
        figure, axes = _figure(6.6, 0.9 + 0.28 * len(summaries))
        kinds = list(dict.fromkeys(summary.kind for summary in summaries))
        # Half a line of room between kinds.
        places = [-place - 0.5 * kinds.index(summary.kind) for place, summary in enumerate(summaries)]
        for key, mark, colour in marks:
            if all(key in summary.giou for summary in summaries):
                means = [summary.giou[key].mean for summary in summaries]
                axes.plot(means, places, mark, ms=6, mew=2 if mark == "|" else 0, color=_rgb(colour), label=key)
        tops = [summary.giou["top1"] for summary in summaries]
        axes.hlines(places, [one.low for one in tops], [one.high for one in tops], color=_rgb(BLUE), lw=1.5)
        axes.set(yticks=places, yticklabels=[f"{_legible(summary.name)} ({summary.n})" for summary in summaries])
        axes.set(xlabel="gIoU; the line is the 95% interval of top1", xlim=(0, 1))
        _legend_beside(axes)
        return _svg(figure, "gIoU by group")


def differences_plot(names: Sequence[str], differences: Mapping[str, Sequence[Interval]]) -> Markup:
    """Variants minus the pipeline with their intervals: one line for each, the keys one below the other."""
    with _styled():
        figure, axes = _figure(6.6, 1.0 + 0.34 * len(names))
        for place, ((key, gaps), colour) in enumerate(zip(differences.items(), (BLUE, GREEN), strict=True)):
            heights = [-line - 0.24 * place + 0.12 for line in range(len(names))]
            axes.hlines(heights, [one.low for one in gaps], [one.high for one in gaps], color=_rgb(colour), lw=1.5)
            axes.plot([one.mean for one in gaps], heights, "o", ms=5, color=_rgb(colour), label=key)
        axes.axvline(0, color=INK, ls="--", lw=1)
        axes.set(yticks=[-line for line in range(len(names))], yticklabels=[_legible(name) for name in names])
        axes.set(xlabel="gIoU minus the pipeline's, with its 95% interval")
        _legend_beside(axes)
        return _svg(figure, "Differences to the pipeline")


def _styled() -> AbstractContextManager[None]:
    """Text as text, the page's ink, a faint grid, no frame."""
    return matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "font.size": 10,
            "text.parse_math": False,  # names of categories are text, dollars and all
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": INK,
            "axes.titlesize": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": INK,
            "grid.alpha": 0.12,
            "xtick.color": INK,
            "ytick.color": INK,
            "legend.frameon": False,
        }
    )


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A page of inches with one diagram on it. No pyplot: it would keep a state of its own."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _legend_beside(axes: Axes) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)


def _legible(name: str) -> str:
    """A name that leaves room for the diagram; what is no character becomes its escape, as in JSON."""
    short = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
    return short.encode("utf-8", "backslashreplace").decode("utf-8")


def _rgb(colour: Colour) -> tuple[float, float, float]:
    red, green, blue = colour
    return red / 255, green / 255, blue / 255


def _svg(figure: Figure, title: str) -> Markup:
    """The drawing without what differs from one run to the next, ready to stand in a page."""
    text = StringIO()
    # The salt names clip paths; those of two diagrams in one page must differ.
    with matplotlib.rc_context({"svg.hashsalt": title}), warnings.catch_warnings():
        # The browser has letters that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        nobody = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata={"Title": title, **nobody})
    drawn = text.getvalue()
    return Markup(drawn[drawn.index("<svg") :].replace(INK, "currentColor"))
