"""From candidates to a ranking: shuffle, group, score, sort."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rea2seg.errors import ConfigError, InputError, require_positive
from rea2seg.protocols import Evaluator
from rea2seg.seeding import random_for
from rea2seg.structures import Candidate, Query, Ranking, Scene, Score

NO_CANDIDATES = "no candidate masks were found"


def rank(query: Query, candidates: Sequence[Candidate], evaluator: Evaluator, group: int = 5, seed: int = 0) -> Ranking:
    """Score shuffled groups, then sort all candidates by score, best first. Groups of five are the paper's.

    Raises `InputError` for a mask that is not a bool tensor of the image's size.
    """
    _check(query, candidates)
    groups = shuffled_groups(len(candidates), group, seed, query.id)
    members = [[candidates[index] for index in indices] for indices in groups]
    scores = [Score(None, fallback=True)] * len(candidates)
    for indices, judged in zip(groups, evaluator.score(query, members) if members else [], strict=True):
        # Scores that cannot be told apart belong to nobody: a wrong count fails the group, not the query.
        if len(judged) == len(indices):
            for index, score in zip(indices, judged, strict=True):
                scores[index] = score if _is_usable(score) else replace(score, iou=None, fallback=True)
    return _sorted(candidates, scores)


@dataclass(frozen=True)
class ByEvaluator:
    """The pipeline's own selector: an evaluator that judges groups of candidates.

    With `no_target_below`, in [0, 1], a ranking says `no_target` where no candidate is estimated at that IoU or more.
    Ours, and off unless given: the paper answers every question. A query whose groups all failed is not refused, since
    nobody judged its candidates.
    """

    evaluator: Evaluator
    group: int = 5
    seed: int = 0
    no_target_below: float | None = None

    def __post_init__(self) -> None:
        require_positive(group=self.group)
        if self.no_target_below is not None and not 0 <= self.no_target_below <= 1:
            raise ConfigError(f"no_target_below must be an IoU from 0 to 1, not {self.no_target_below}")

    def __call__(self, scene: Scene, candidates: Sequence[Candidate]) -> Ranking:
        ranking = rank(scene.query, candidates, self.evaluator, self.group, self.seed)
        return replace(ranking, no_target=self._refuses(ranking))

    def _refuses(self, ranking: Ranking) -> bool:
        if self.no_target_below is None:
            return False
        estimates = [score.iou for score in ranking.scores if score.iou is not None]
        return max(estimates) < self.no_target_below if estimates else not ranking.candidates


def shuffled_groups(count: int, size: int, seed: int, query_id: str) -> list[list[int]]:
    """The places 0 … count - 1 in random order, in groups of `size`; the last may be short."""
    require_positive(group=size)
    order = random_for(seed, query_id).sample(range(count), count)
    return [order[start : start + size] for start in range(0, count, size)]


def ranked(
    candidates: Sequence[Candidate], order: Sequence[int], scores: Sequence[Score], warnings: tuple[str, ...] = ()
) -> Ranking:
    """The ranking that puts candidate `order[0]` first; scores are given in the candidates' own order."""
    if not candidates:
        warnings = (*warnings, NO_CANDIDATES)
    in_order = tuple(candidates[index] for index in order)
    return Ranking(in_order, tuple(scores[index] for index in order), tuple(order), warnings)


def best_first(values: Sequence[float], candidates: Sequence[Candidate]) -> list[int]:
    """Places by falling value, ties by falling quality, then as found; what is not a number comes last."""

    def key(index: int) -> tuple[float, float, int]:
        return -_or_worst(values[index]), -_or_worst(candidates[index].quality), index

    return sorted(range(len(candidates)), key=key)


def _check(query: Query, candidates: Sequence[Candidate]) -> None:
    for mask in (candidate.mask for candidate in candidates):
        given = f"{tuple(mask.shape)} of {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        if given != f"{query.size} of {torch.bool}":
            raise InputError(f"a mask must be a bool tensor of its image's (height, width) = {query.size}, not {given}")


def _sorted(candidates: Sequence[Candidate], scores: Sequence[Score]) -> Ranking:
    order = best_first([math.nan if score.iou is None else score.iou for score in scores], candidates)
    failed = sum(score.fallback for score in scores)
    told = f"{failed} of {len(scores)} candidates could not be scored: they come last, by the segmenter's estimate"
    return ranked(candidates, order, scores, (told,) if failed else ())


def _is_usable(score: Score) -> bool:
    return not score.fallback and score.iou is not None and math.isfinite(score.iou)


def _or_worst(value: float) -> float:
    return -math.inf if math.isnan(value) else value
