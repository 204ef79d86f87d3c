"""What a variant changes: its gIoU minus the pipeline's, sample by sample, over all shuffles that each goes through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from rea2seg.evaluate.groups import AVERAGE, Group, groups_of, ious, shared_keys
from rea2seg.evaluate.rows import Row
from rea2seg.evaluate.variants import Variant
from rea2seg.metrics import Convention, Interval, bootstrap, stratified_mean

HEADLINES = ("initial", "top1", "top3", "oracle")
COMPARED = ("top1", "top3", "oracle")


@dataclass(frozen=True)
class Effect:
    """A variant on one group of samples.

    candidates: their mean number. giou: by key, of each sample the mean over the shuffles. by_shuffle: top1 of each
    shuffle. differences: this minus the pipeline, by key; empty for the pipeline itself.
    """

    label: str
    n: int
    candidates: float
    giou: Mapping[str, float]
    by_shuffle: tuple[float, ...]
    differences: Mapping[str, Interval]


@dataclass(frozen=True)
class Outcome:
    """A variant and its effects: on each category, and last on the average where there is one."""

    variant: Variant
    effects: tuple[Effect, ...]

    @property
    def headline(self) -> Effect:
        """The effect on the average, or where no sample counts for it, on the one category that there is."""
        return next((one for one in self.effects if one.label == AVERAGE), self.effects[0])

    @property
    def holds(self) -> bool:
        """Whether the pipeline is better in top1 or oracle, beyond chance and by as much as the claim says."""
        told = (self.headline.differences[key] for key in ("top1", "oracle"))
        return any(one.high < 0 and one.mean <= -self.variant.by for one in told)

    def to_json(self) -> dict[str, Any]:
        """An entry of `ablations.json`."""
        claim = {"claim": self.variant.claim, "holds": self.holds} if self.variant.claim else {}
        effects = [asdict(effect) for effect in self.effects]
        about = {"without": list(self.variant.without), "change": dict(self.variant.change)}
        return {"name": self.variant.name, "shows": self.variant.shows, **about, **claim, "effects": effects}


def outcomes_of(runs: Mapping[Variant, Sequence[Sequence[Row]]], convention: Convention) -> list[Outcome]:
    """The outcomes of variants of which the first is the pipeline itself; each run holds the rows of one shuffle."""
    pipeline, *_ = runs.values()
    groups = [group for group in groups_of(pipeline[0]) if group.kind in ("category", "average")]
    outcomes = []
    for variant, own in runs.items():
        other = None if own is pipeline else pipeline
        outcomes.append(Outcome(variant, tuple(_effect(group, own, other, convention) for group in groups)))
    return outcomes


def _effect(
    group: Group, own: Sequence[Sequence[Row]], pipeline: Sequence[Sequence[Row]] | None, convention: Convention
) -> Effect:
    runs = [_paired(group, run) for run in own]
    keys = [key for key in HEADLINES if key in shared_keys(runs[0])]
    counts = np.array([[len(row.ranking)] for row in runs[0]], np.float64)
    differences = {}
    if pipeline is not None:
        theirs = [_paired(group, run) for run in pipeline]
        gaps = _means(runs, COMPARED, convention) - _means(theirs, COMPARED, convention)
        differences = dict(zip(COMPARED, bootstrap(gaps, group.strata), strict=True))
    return Effect(
        label=group.label,
        n=len(group.rows),
        candidates=float(stratified_mean(counts, group.strata)[0]),
        giou=dict(zip(keys, map(float, stratified_mean(_means(runs, keys, convention), group.strata)), strict=True)),
        by_shuffle=tuple(float(stratified_mean(ious(run, ["top1"], convention), group.strata)[0]) for run in runs),
        differences=differences,
    )


def _paired(group: Group, run: Sequence[Row]) -> list[Row]:
    """The rows of a run in the order of the group's."""
    known = {row.id: row for row in run}
    return [known[row.id] for row in group.rows]


def _means(runs: Sequence[Sequence[Row]], keys: Sequence[str], convention: Convention) -> Float[np.ndarray, "n keys"]:
    """Per-sample IoUs, each the mean over the runs."""
    return np.asarray(np.mean([ious(run, keys, convention) for run in runs], axis=0))
