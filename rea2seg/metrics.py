"""gIoU, cIoU, intervals and a paired test, from integer pixel counts.

Departures from upstream: LISA divides by U + 1e-5 and U + 1e-10; counts are divided as they are here, so a mask of ten
pixels scores 1 and not 0.999999. Seg-Zero drops samples without a union; they count 0 here, as in VisionReasoner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rea2seg.errors import InputError

RESAMPLES = 10_000
"""Of the bootstrap. Ours: the ends of an interval then move by about 1% of its width."""
PERMUTATIONS = 10_000
"""Of the sign-flip test. Ours: p-values near 0.05 are then good to about 0.004."""
CHUNK = 4_000_000
"""Draws held at once. Ours: with what is made of them they take about 130 MB, however many samples there are."""


@dataclass(frozen=True)
class Convention:
    """What an ignored pixel is, and what an empty mask scores where nothing should be found."""

    ignore: Literal["exclude", "background", "foreground"]
    empty: Literal["one", "zero"]


PRESETS: dict[str, Convention] = {
    "lisa": Convention(ignore="exclude", empty="one"),
    "lens": Convention(ignore="background", empty="one"),
    "segzero": Convention(ignore="foreground", empty="zero"),
}


def preset(name: str) -> Convention:
    """The convention of a code base, by its name."""
    if name not in PRESETS:
        raise InputError(f"no metric preset is called {name!r}: choose from {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True)
class Overlap:
    """Pixels that a prediction and the truth share, and pixels that either covers."""

    intersection: int
    union: int


def overlaps(
    masks: Bool[Tensor, "n h w"],
    truth: Bool[Tensor, "h w"] | None,
    ignore: Bool[Tensor, "h w"] | None,
    convention: Convention,
) -> list[Overlap]:
    """Every mask against the truth; no truth is an empty one."""
    wanted = torch.zeros(masks.shape[1:], dtype=torch.bool, device=masks.device) if truth is None else truth
    if ignore is not None:
        if convention.ignore == "exclude":
            masks, wanted = masks & ~ignore, wanted & ~ignore
        elif convention.ignore == "background":
            wanted = wanted & ~ignore
        else:
            wanted = wanted | ignore
    shared = (masks & wanted).sum((1, 2)).tolist()
    either = (masks | wanted).sum((1, 2)).tolist()
    return [Overlap(intersection, union) for intersection, union in zip(shared, either, strict=True)]


def iou(overlap: Overlap, convention: Convention) -> float:
    """Intersection over union of one sample; where both masks are empty, what the convention says."""
    if overlap.union == 0:
        return 1.0 if convention.empty == "one" else 0.0
    return overlap.intersection / overlap.union


def giou(samples: Sequence[Overlap], convention: Convention) -> float:
    """The mean of the IoUs; NaN without samples."""
    return sum(iou(sample, convention) for sample in samples) / len(samples) if samples else float("nan")


def ciou(samples: Sequence[Overlap]) -> float:
    """The summed intersections over the summed unions; 0 where nothing is covered, as upstream; NaN without samples."""
    if not samples:
        return float("nan")
    union = sum(sample.union for sample in samples)
    return sum(sample.intersection for sample in samples) / union if union else 0.0


def best_of(candidates: Sequence[Overlap], convention: Convention) -> Overlap:
    """The oracle's choice by IoU, the first of equals. A cIoU of such choices is of the same masks, so it may fall."""
    return max(candidates, key=lambda overlap: iou(overlap, convention))


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its 95% interval."""

    mean: float
    low: float
    high: float


def stratified_mean(
    values: Float[np.ndarray, "n keys"], strata: Sequence[str] | None = None
) -> Float[np.ndarray, " keys"]:
    """The mean of each column: over each stratum's samples, then over the strata without weights."""
    return np.asarray(np.mean([values[places].mean(axis=0) for places in _strata(len(values), strata)], axis=0))


def bootstrap(values: Float[np.ndarray, "n keys"], strata: Sequence[str] | None = None) -> list[Interval]:
    """The mean of each column with its bootstrap interval; `strata` names the one that each of the n samples is of.

    Samples are drawn with replacement inside each stratum and the strata's means averaged without weights, which is how
    `average` is made of categories. All columns see the same draws.
    """
    if not len(values):
        return [Interval(float("nan"), float("nan"), float("nan"))] * values.shape[1]
    generator = np.random.default_rng(0)
    parts = [values[places] for places in _strata(len(values), strata)]
    means = stratified_mean(values, strata)
    spread = np.mean([_resampled_means(part, generator) for part in parts], axis=0)
    low, high = np.percentile(spread, [2.5, 97.5], axis=0)
    return [Interval(*map(float, ends)) for ends in zip(means, low, high, strict=True)]


def sign_flip(differences: Float[np.ndarray, "n keys"], strata: Sequence[str] | None = None) -> list[float]:
    """Two-sided p-value of each column of paired differences: how often chance signs give a mean as far from 0.

    If neither side is better, every difference could as well have had the other sign. Means are made as in `bootstrap`;
    p is (1 + as far) / (1 + PERMUTATIONS), so never 0; NaN without samples.
    """
    if not len(differences):
        return [float("nan")] * differences.shape[1]
    parts = _strata(len(differences), strata)
    weights = np.zeros(len(differences))
    for places in parts:
        weights[places] = 1 / len(places) / len(parts)
    weighted, generator = differences * weights[:, None], np.random.default_rng(0)
    # Sums that are equal but for the order of their terms count as equal.
    bar = np.abs(weighted.sum(axis=0)) - 1e-12
    as_far = np.zeros(differences.shape[1], np.int64)
    for count in _chunks(PERMUTATIONS, len(differences)):
        signs = generator.integers(0, 2, (count, len(differences)), np.int8) * 2.0 - 1.0
        as_far += (np.abs(signs @ weighted) >= bar).sum(axis=0)
    return [float(number) for number in (1 + as_far) / (1 + PERMUTATIONS)]


def _strata(count: int, names: Sequence[str] | None) -> list[Int[np.ndarray, " m"]]:
    """The places of each stratum's samples, by the strata's names."""
    labels = np.array(["all"] * count if names is None else list(names))
    return [np.flatnonzero(labels == label) for label in sorted(set(labels.tolist()))]


def _chunks(rounds: int, width: int) -> list[int]:
    """How many rounds of `width` draws to hold at once, until all are done."""
    size = max(1, CHUNK // width)
    return [min(size, rounds - done) for done in range(0, rounds, size)]


def _resampled_means(
    values: Float[np.ndarray, "n keys"], generator: np.random.Generator
) -> Float[np.ndarray, "resamples keys"]:
    size = len(values)
    means = []
    for count in _chunks(RESAMPLES, size):
        drawn = generator.integers(0, size, (count, size)) + np.arange(count)[:, None] * size
        times = np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size)
        means.append(times.astype(np.float64) @ values / size)
    return np.concatenate(means)
