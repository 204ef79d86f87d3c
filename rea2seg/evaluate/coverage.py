"""What the candidates allow for: the best of the first K in an order, and what each search finds of the targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from jaxtyping import Float

from rea2seg.evaluate.groups import average_of
from rea2seg.evaluate.rows import KEYS, Found, Row
from rea2seg.metrics import Convention, Interval, bootstrap, iou, stratified_mean
from rea2seg.structures import Source

LONGEST = 15
"""The largest K: the pipeline's three searches find no more candidates for one target."""
LEVELS = (0.5, 0.75)
"""The IoUs from which on a target counts as found, those of COCO's AP50 and AP75."""


def best_of_first(rows: Sequence[Row], convention: Convention) -> dict[str, list[Interval]]:
    """gIoU of the best of the first K = 1 … 15 candidates, by the `ranking` and by every rival's order.

    The truth chooses among the K. Averaged like `average`; a sample with fewer candidates keeps the best it has.
    """
    counted = average_of(rows)
    if not counted.rows:
        return {}
    names = ["ranking", *(key for key in KEYS if all(key in row.orders for row in counted.rows))]
    climbs = np.concatenate([_climbs(counted.rows, name, convention) for name in names], axis=1)
    intervals = bootstrap(climbs, counted.strata)
    return {name: intervals[place * LONGEST : (place + 1) * LONGEST] for place, name in enumerate(names)}


def _climbs(rows: Sequence[Row], name: str, convention: Convention) -> Float[np.ndarray, "n k"]:
    """The best IoU so far of every sample, candidate by candidate."""
    return np.stack([_climb(row, _in_order(row, name), convention) for row in rows])


def _climb(row: Row, order: Sequence[Found], convention: Convention) -> Float[np.ndarray, " k"]:
    values = [iou(found.overlap, convention) for found in order[:LONGEST]] or [iou(row.nothing, convention)]
    return np.pad(np.maximum.accumulate(values), (0, LONGEST - len(values)), mode="edge")


def _in_order(row: Row, name: str) -> Sequence[Found]:
    if name == "ranking":
        return row.ranking
    by_index = {found.index: found for found in row.ranking}
    return [by_index[index] for index in row.orders[name]]


@dataclass(frozen=True)
class Recall:
    """What a search, or all of them together, finds, averaged like `average` over the samples that have a target.

    `at_50` and `at_75` are shares of samples with a candidate of at least that IoU, `best` the mean IoU of the best
    candidate (0 without any), `count` the mean number of candidates, `alone` the share of samples whose best candidate
    is of this search and no other's (None for all of them); a best of IoU 0 is nobody's.
    """

    source: str
    at_50: float
    at_75: float
    best: float
    count: float
    alone: float | None


def recall_by_source(rows: Sequence[Row], convention: Convention) -> list[Recall]:
    """A line for each search that found anything, in the order in which they search, and one for `all`."""
    group = average_of([row for row in rows if row.has_target])
    present = {found.source for row in group.rows for found in row.ranking}
    if not present:
        return []
    searches = {source: {source} for source in get_args(Source) if source in present} | {"all": present}
    lines = []
    for name, sources in searches.items():
        values = np.array([_reached(row, sources, convention) for row in group.rows])
        at_50, at_75, best, count, alone = map(float, stratified_mean(values, group.strata))
        lines.append(Recall(name, at_50, at_75, best, count, None if name == "all" else alone))
    return lines


def _reached(row: Row, sources: set[str], convention: Convention) -> list[float]:
    """One sample's part in a line, in the order of its fields."""
    own = [iou(found.overlap, convention) for found in row.ranking if found.source in sources]
    others = [iou(found.overlap, convention) for found in row.ranking if found.source not in sources]
    best = max(own, default=0.0)
    return [*(float(best >= level) for level in LEVELS), best, float(len(own)), float(best > max(others, default=0.0))]
