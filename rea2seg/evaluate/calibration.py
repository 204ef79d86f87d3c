"""How far estimates of a candidate's IoU can be believed: their order, their size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import stats

from rea2seg.evaluate.groups import average_of
from rea2seg.evaluate.rows import Row
from rea2seg.metrics import Convention, Interval, bootstrap, iou

BINS = 10
"""Of equal width in [0, 1], the number most papers take."""
Estimate = Literal["score", "quality"]
"""The evaluator's, or the segmenter's of its own masks."""


@dataclass(frozen=True)
class Bin:
    """The candidates whose estimate lies in [low, high), in the last bin also at its end: how many, and two means."""

    low: float
    high: float
    n: int
    predicted: float
    true: float


@dataclass(frozen=True)
class Calibration:
    """Estimated against true IoU, over the candidates of the samples that count for `average` and have a target.

    `within` is Spearman's correlation inside each sample, averaged like `average`. It has no value for a sample of
    fewer than two estimates, or whose estimates or true IoUs are all the same: `constant` such samples are left out.
    `pooled` is Spearman's over all candidates at once, `ece` the bins' |mean estimate - mean truth| weighted by their
    numbers, `error` the mean absolute error, `bias` the mean of estimate minus truth. NaN where there is no number.
    """

    estimate: Estimate
    samples: int
    candidates: int
    within: Interval
    constant: int
    pooled: float
    ece: float
    error: float
    bias: float
    bins: tuple[Bin, ...]


def calibrate(rows: Sequence[Row], convention: Convention, estimate: Estimate) -> Calibration:
    """How well one kind of estimate foretells the true IoU; candidates without such an estimate are left out."""
    counted = average_of([row for row in rows if row.has_target])
    pairs = [_pairs(row, convention, estimate) for row in counted.rows]
    within = np.array([[spearman(*pair.T)] for pair in pairs]).reshape(-1, 1)
    ordered = ~np.isnan(within[:, 0])
    strata = [row.category for row, kept in zip(counted.rows, ordered, strict=True) if kept]
    predicted, true = np.concatenate([np.zeros((0, 2)), *pairs]).T
    bins = _bins(predicted, true)
    return Calibration(
        estimate=estimate,
        samples=len(pairs),
        candidates=len(predicted),
        within=bootstrap(within[ordered], strata)[0],
        constant=int((~ordered).sum()),
        pooled=spearman(predicted, true),
        ece=sum(one.n * abs(one.predicted - one.true) for one in bins) / len(predicted) if bins else float("nan"),
        error=_mean(np.abs(predicted - true)),
        bias=_mean(predicted - true),
        bins=bins,
    )


def spearman(first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]) -> float:
    """The correlation of ranks, equal values sharing theirs; NaN where either side has no order to speak of."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(stats.spearmanr(first, second).statistic)


def _pairs(row: Row, convention: Convention, estimate: Estimate) -> Float[np.ndarray, "n 2"]:
    """Estimate and truth of every candidate that has an estimate."""
    known = [
        (value, iou(found.overlap, convention))
        for found in row.ranking
        if (value := found.score if estimate == "score" else found.quality) is not None
    ]
    return np.array(known, np.float64).reshape(-1, 2)


def _bins(predicted: Float[np.ndarray, " n"], true: Float[np.ndarray, " n"]) -> tuple[Bin, ...]:
    """The bins that hold any candidate. A segmenter's estimate may leave [0, 1]: it belongs to the bin at that end."""
    places = np.clip((predicted * BINS).astype(np.int64), 0, BINS - 1)
    inside = [(place, places == place) for place in range(BINS) if (places == place).any()]
    return tuple(
        Bin(place / BINS, (place + 1) / BINS, int(chosen.sum()), _mean(predicted[chosen]), _mean(true[chosen]))
        for place, chosen in inside
    )


def _mean(values: Float[np.ndarray, " n"]) -> float:
    return float(values.mean()) if len(values) else float("nan")
