"""Rows of samples as a table of categories, and differences with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from rea2seg.cli import table
from rea2seg.errors import InputError
from rea2seg.evaluate.judging import KEYS, Row
from rea2seg.metrics import Convention, ciou, giou, iou, paired_difference

AVERAGE, APART = "average", "attribute"
"""`average` is the mean of all categories but `attribute`, whose questions ask for no reasoning."""


def category_rows(rows: Sequence[Row], convention: Convention) -> list[dict[str, Any]]:
    """The rows of `metrics.json`: categories, granularities where there are several, and the average last."""
    keys = shared_keys(rows)
    categories = sorted({row.category for row in rows}, key=lambda name: (name == APART, name))
    by_category = {
        name: _summary(name, [row for row in rows if row.category == name], keys, convention) for name in categories
    }
    averaged = [row for row in rows if row.category != APART]
    granularities = sorted({row.granularity for row in averaged})
    by_granularity = [
        _summary(f"granularity={name}", [row for row in averaged if row.granularity == name], keys, convention)
        for name in granularities
    ]
    summaries = [*by_category.values(), *(by_granularity if len(granularities) > 1 else [])]
    if averaged:
        summaries.append(_average([summary for name, summary in by_category.items() if name != APART], keys))
    return [_rounded(summary) for summary in summaries]


def shared_keys(rows: Sequence[Row]) -> list[str]:
    """The keys that every sample has: a mean over some samples cannot be compared with one over all."""
    return [key for key in KEYS if all(key in row.overlaps for row in rows)]


def _summary(name: str, rows: Sequence[Row], keys: Sequence[str], convention: Convention) -> dict[str, Any]:
    return {
        "category": name,
        "n": len(rows),
        "gIoU": {key: giou([row.overlaps[key] for row in rows], convention) for key in keys},
        "cIoU": {key: ciou([row.overlaps[key] for row in rows]) for key in keys},
        "failures": {
            "fallback": sum(row.fallback for row in rows),
            "no_candidates": sum(row.candidates == 0 for row in rows),
        },
    }


def _average(summaries: Sequence[dict[str, Any]], keys: Sequence[str]) -> dict[str, Any]:
    """Every category counts alike, for cIoU too; numbers of samples and failures are sums."""
    means = {
        metric: {key: sum(summary[metric][key] for summary in summaries) / len(summaries) for key in keys}
        for metric in ("gIoU", "cIoU")
    }
    failures = {name: sum(summary["failures"][name] for summary in summaries) for name in ("fallback", "no_candidates")}
    return {"category": AVERAGE, "n": sum(summary["n"] for summary in summaries), **means, "failures": failures}


def _rounded(summary: dict[str, Any]) -> dict[str, Any]:
    metrics = {metric: {key: round(value, 6) for key, value in summary[metric].items()} for metric in ("gIoU", "cIoU")}
    return {**summary, **metrics}


def metric_table(summaries: Sequence[dict[str, Any]], metric: str) -> str:
    """One line for each category, one column for each key."""
    keys = list(summaries[0][metric])
    lines = [[s["category"], str(s["n"]), *(f"{s[metric][key]:.3f}" for key in keys)] for s in summaries]
    return table([metric, "n", *keys], lines)


def difference_table(rows: Sequence[Row], convention: Convention) -> str:
    """`top1` minus every other key, averaged over categories like `average`, with its 95% interval."""
    counted = _counted(rows)
    first = _ious(counted, "top1", convention)
    keys = [key for key in shared_keys(counted) if key != "top1"]
    lines = [_difference(key, first, _ious(counted, key, convention), counted) for key in keys]
    return table(["gIoU: top1 minus", *_INTERVAL], lines)


def comparison_table(rows: Sequence[Row], others: Sequence[Row], convention: Convention) -> str:
    """These rows minus those of another run on the same samples, key by key."""
    counted, known = _counted(rows), {row.id: row for row in others}
    if missing := [row.id for row in counted if row.id not in known]:
        raise InputError(f"--compare: the other run lacks {len(missing)} of these samples, such as {missing[0]!r}")
    paired = [known[row.id] for row in counted]
    lines = [
        _difference(key, _ious(counted, key, convention), _ious(paired, key, convention), counted)
        for key in shared_keys([*counted, *paired])
    ]
    return table(["gIoU: this run minus the other", *_INTERVAL], lines)


def failure_line(rows: Sequence[Row]) -> str:
    """What could not be scored, as a share of what was to be."""
    groups, failed = sum(row.groups for row in rows), sum(row.fallback for row in rows)
    share = f" ({100 * failed / groups:.2f}%)" if groups else ""
    empty = sum(row.candidates == 0 for row in rows)
    return f"{failed} of {groups} groups fell back{share}; {empty} samples without candidates"


_INTERVAL = ("mean", "95% interval")


def _difference(
    key: str, first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"], rows: Sequence[Row]
) -> list[str]:
    """A line of a table: first minus second, averaged over categories."""
    interval = paired_difference(first, second, [row.category for row in rows])
    return [key, f"{interval.mean:+.3f}", f"[{interval.low:+.3f}, {interval.high:+.3f}]"]


def _counted(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.category != APART] or list(rows)


def _ious(rows: Sequence[Row], key: str, convention: Convention) -> Float[np.ndarray, " n"]:
    return np.array([iou(row.overlaps[key], convention) for row in rows])
