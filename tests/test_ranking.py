"""Ranking by an evaluator and by its rivals, on evaluators that are a few lines of Python."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Bool
from torch import Tensor

from rea2seg import rivals
from rea2seg.errors import ConfigError, InputError
from rea2seg.geometry import Canvas, CellMap
from rea2seg.protocols import Selector
from rea2seg.ranking import ByEvaluator, rank, shuffled_groups
from rea2seg.structures import Candidate, Embedding, Grounding, Masks, Query, Ranking, Scene, Score

SIZE = (32, 48)
QUERY = Query(torch.zeros(3, *SIZE, dtype=torch.uint8), "the disc", "q7")


def disc(radius: float) -> Bool[Tensor, "h w"]:
    y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    return (y - 16) ** 2 + (x - 24) ** 2 < radius**2


def candidates(count: int, quality: float = 0.5) -> list[Candidate]:
    return [Candidate(disc(radius + 2), "attention", quality) for radius in range(count)]


@dataclass
class Oracle:
    """Knows the true mask and says its IoU with each candidate; keeps the sizes of the groups it was asked about."""

    truth: Bool[Tensor, "h w"]
    group_sizes: list[int] = field(default_factory=list)

    def score(self, query: Query, groups: Sequence[Sequence[Candidate]]) -> list[list[Score]]:
        assert query is QUERY
        self.group_sizes = [len(group) for group in groups]
        return [[self.judge(candidate) for candidate in group] for group in groups]

    def judge(self, candidate: Candidate) -> Score:
        both, either = (candidate.mask & self.truth).sum(), (candidate.mask | self.truth).sum()
        return Score(float(both / either))


@dataclass
class Failing(Oracle):
    """An oracle that fails on the groups that hold an unlucky mask."""

    unlucky: Bool[Tensor, "h w"] = field(default_factory=lambda: disc(5))
    failure: tuple[Score, ...] | None = None

    def score(self, query: Query, groups: Sequence[Sequence[Candidate]]) -> list[list[Score]]:
        judged = super().score(query, groups)
        for place, group in enumerate(groups):
            if any(candidate.mask.equal(self.unlucky) for candidate in group):
                failed = [Score(None, fallback=True)] * len(group)
                judged[place] = failed if self.failure is None else list(self.failure)
        return judged


@pytest.mark.parametrize("group", [1, 2, 5, 13, 50])
def test_the_oracle_is_ranked_first_whatever_the_grouping(group: int) -> None:
    ranking = rank(QUERY, candidates(13), Oracle(disc(9)), group=group)
    assert ranking.best is not None
    assert ranking.best.mask.equal(disc(9))
    assert sorted(ranking.indices) == list(range(13))
    assert [score.iou for score in ranking.scores] == sorted((s.iou for s in ranking.scores), reverse=True)
    assert ranking.warnings == ()


def test_groups_have_five_members_and_the_last_what_is_left() -> None:
    evaluator = Oracle(disc(9))
    for count, sizes in {13: [5, 5, 3], 5: [5], 1: [1], 6: [5, 1]}.items():
        rank(QUERY, candidates(count), evaluator)
        assert evaluator.group_sizes == sizes


def test_the_shuffle_depends_on_seed_and_query_alone() -> None:
    assert shuffled_groups(15, 5, 0, "a") == shuffled_groups(15, 5, 0, "a")
    assert shuffled_groups(15, 5, 0, "a") != shuffled_groups(15, 5, 0, "b")
    assert shuffled_groups(15, 5, 0, "a") != shuffled_groups(15, 5, 1, "a")


def test_ties_go_to_quality_and_then_to_the_first_found() -> None:
    same = [Candidate(disc(4), "given", quality) for quality in (0.2, 0.9, 0.9, math.nan, 0.5)]
    assert rank(QUERY, same, Oracle(disc(4)), group=2).indices == (1, 2, 4, 0, 3)


def test_a_failed_group_comes_last_by_quality_and_is_marked() -> None:
    found = [Candidate(disc(radius), "core", radius / 20) for radius in range(2, 14)]
    ranking = rank(QUERY, found, Failing(disc(5)), group=4)
    assert [score.fallback for score in ranking.scores] == [False] * 8 + [True] * 4
    tail = [candidate.quality for candidate in ranking.candidates[8:]]
    assert tail == sorted(tail, reverse=True)
    assert all(score.iou is None for score in ranking.scores[8:])
    assert len(ranking.warnings) == 1
    assert "4 of 12" in ranking.warnings[0]


@pytest.mark.parametrize("failure", [(), (Score(0.5),) * 4, (Score(math.nan),) * 5, (Score(None),) * 5])
def test_wrong_counts_and_scores_that_are_no_numbers_fail_their_group_only(failure: tuple[Score, ...]) -> None:
    ranking = rank(QUERY, candidates(10), Failing(disc(5), failure=failure))
    assert [score.fallback for score in ranking.scores] == [False] * 5 + [True] * 5


def test_no_candidates_rank_to_nothing_with_a_warning() -> None:
    ranking = rank(QUERY, [], Oracle(disc(5)))
    assert len(ranking) == 0
    assert ranking.best is None
    assert ranking.warnings


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (disc(5)[None], r"its image's \(height, width\) = \(32, 48\), not \(1, 32, 48\) of torch\.bool"),
        (disc(5).T, r"not \(48, 32\)"),
        (disc(5) * torch.tensor(255, dtype=torch.uint8), r"of torch\.uint8"),
        (disc(5).numpy(), "not ndarray"),
    ],
)
def test_masks_that_are_no_masks_of_the_image_are_refused(mask: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        rank(QUERY, [*candidates(2), Candidate(mask)], Oracle(disc(5)))


def test_a_ranking_can_be_walked_and_read() -> None:
    ranking = rank(QUERY, [Candidate(disc(radius)) for radius in (5, 9)], Oracle(disc(9)))
    assert [candidate for candidate, _ in ranking] == list(ranking.candidates)
    assert [str(score) for _, score in ranking] == ["1.000", "0.277"]
    assert (str(Score(None)), str(Score(None, fallback=True))) == ("none", "failed")
    assert "tensor" not in repr((QUERY, ranking))


def test_groups_of_none_are_refused() -> None:
    with pytest.raises(ConfigError, match="group must be 1 or more, not 0"):
        rank(QUERY, candidates(3), Oracle(disc(5)), group=0)


@given(st.integers(1, 20), st.integers(1, 7), st.integers(0, 5))
def test_any_grouping_ranks_alike(count: int, group: int, seed: int) -> None:
    found = candidates(count)
    assert rank(QUERY, found, Oracle(disc(6)), group, seed).indices == rank(QUERY, found, Oracle(disc(6))).indices


def scene(initial: bool = True, grounding: bool = True) -> Scene:
    """The initial mask is the disc of radius 9; attention is 1 on the right half, which a crop hid below row 16."""
    canvas = Canvas(SIZE, 48, SIZE)
    logits = torch.nn.functional.pad(torch.where(disc(9), 4.0, -4.0), (0, 0, 0, 16))[None, None]
    attention = torch.tensor([[[0.0, 1.0]]])
    return Scene(
        QUERY,
        Embedding(torch.zeros(1, 1, 1), canvas),
        Grounding(torch.zeros(1, 1, 4), attention, CellMap(1, 2, 0.0, 0.0, 24.0, 16.0), "") if grounding else None,
        Masks(logits, torch.ones(1, 1), canvas) if initial else None,
    )


def halves() -> list[Candidate]:
    """Left half, right half, upper right quarter, nothing, everything, with rising quality."""
    masks = torch.zeros(5, *SIZE, dtype=torch.bool)
    masks[0, :, :24] = True
    masks[1, :, 24:] = True
    masks[2, :16, 24:] = True
    masks[4] = True
    return [Candidate(mask, "given", place / 10) for place, mask in enumerate(masks)]


def test_each_rival_has_its_own_order() -> None:
    assert rivals.quality(scene(), halves()).indices == (4, 3, 2, 1, 0)
    assert rivals.attention(scene(), halves()).indices == (2, 1, 0, 4, 3)
    best = rivals.agreement(scene(), candidates(13)).best
    assert best is not None
    assert best.mask.equal(disc(9))


def test_random_is_a_permutation_that_only_seed_and_query_move() -> None:
    first, again, other = (rivals.Random(seed)(scene(), halves()).indices for seed in (0, 0, 1))
    assert sorted(first) == [0, 1, 2, 3, 4]
    assert first == again != other


SELECTORS: list[Selector] = [
    rivals.quality,
    rivals.agreement,
    rivals.attention,
    rivals.Random(),
    ByEvaluator(Oracle(disc(9))),
]


@pytest.mark.parametrize("select", SELECTORS)
def test_every_selector_survives_no_candidates(select: Selector) -> None:
    ranking: Ranking = select(scene(), [])
    assert len(ranking) == 0
    assert ranking.warnings


def test_the_pipeline_selector_ranks_by_its_evaluator() -> None:
    assert ByEvaluator(Oracle(disc(9)), group=3, seed=2)(scene(), candidates(13)).indices[0] == 7


def test_rivals_without_their_evidence_say_so() -> None:
    with pytest.raises(ConfigError, match="initial"):
        rivals.agreement(scene(initial=False), halves())
    with pytest.raises(ConfigError, match="attention"):
        rivals.attention(scene(grounding=False), halves())


def selected(oracle: Oracle, threshold: float | None, count: int = 13) -> Ranking:
    """The ranking of the selector over a scene of that many discs."""
    return ByEvaluator(oracle, no_target_below=threshold)(scene(), candidates(count))


@pytest.mark.parametrize(
    ("threshold", "refused"), [(None, False), (0.0, False), (0.3, False), (0.5, True), (1.0, True)]
)
def test_a_query_is_refused_if_even_its_best_candidate_is_bad(threshold: float | None, refused: bool) -> None:
    """The best of the discs has IoU 0.4 or so with the target, half of which lies outside of them all."""
    target = disc(14) & (torch.arange(SIZE[0])[:, None] < 12)
    ranking = selected(Oracle(target), threshold)
    assert 0.3 < float(ranking.scores[0].iou or 0) < 0.5
    assert ranking.no_target is refused
    assert len(ranking) == 13


def test_only_what_was_judged_is_refused() -> None:
    assert selected(Oracle(disc(9)), 0.5, count=0).no_target
    assert not selected(Oracle(disc(9)), None, count=0).no_target
    everything = Failing(disc(9), unlucky=disc(2))
    assert not selected(everything, 1.0, count=1).no_target


def test_a_threshold_is_an_iou() -> None:
    with pytest.raises(ConfigError, match="no_target_below must be an IoU from 0 to 1"):
        ByEvaluator(Oracle(disc(9)), no_target_below=1.5)
