"""Scores are read from digits as at inference, and their losses are those of the choice that they make."""

import math

import pytest
import torch

from rea2seg.evaluators.replies import Choice, expected_value
from training.evaluator import as_scores
from training.scores import PLACES, WrittenScores

DIGITS = list(range(3, 13))
VOCABULARY = 14


def written(right, read=None, logits=None, sizes=None):
    right = torch.tensor(right)
    if logits is None:
        logits = torch.full((len(right), 3, VOCABULARY), -20.0).scatter(2, right[..., None] + DIGITS[0], 0.0)
    return WrittenScores(logits, right, right if read is None else torch.tensor(read), DIGITS, sizes or [len(right)])


def test_a_score_is_the_expectation_that_is_read_at_inference():
    logits = torch.randn(4, 3, VOCABULARY, generator=torch.Generator().manual_seed(0))
    told = written([[0, 1, 2]] * 4, logits=logits).expected()
    for row, value in zip(logits, told, strict=True):
        whole = tuple(row[0, DIGITS[:2]].softmax(0).tolist())
        decimals = [tuple(digit[DIGITS].softmax(0).tolist()) for digit in row[1:]]
        number = [Choice(0, whole, 1.0), *(Choice(0, among, 1.0) for among in decimals)]
        assert float(value) == pytest.approx(expected_value(number), abs=1e-6)


def test_the_nines_after_a_one_are_no_part_of_the_score():
    right = [[1, 9, 9], [1, 0, 0], [0, 8, 7]]
    assert written(right).truth().tolist() == pytest.approx([1.0, 1.0, 0.87])
    assert as_scores(torch.tensor(right).flatten()) == pytest.approx([1.0, 1.0, 0.87])


def test_right_digits_cost_nothing_and_choose_the_best():
    losses = written([[0, 2, 0], [0, 9, 1], [0, 0, 0], [0, 5, 0], [0, 4, 0]], sizes=[3, 2]).losses()
    assert float(losses["digits"]) == pytest.approx(0, abs=1e-6)
    assert float(losses["choice"]) == pytest.approx(0, abs=1e-5)
    assert float(losses["iou/chosen"]) == float(losses["iou/best"]) == pytest.approx((0.91 + 0.5) / 2)


def test_the_choice_is_compared_inside_its_group_alone():
    # The second group has one mask: whatever is told of it, there is nothing to choose.
    right = [[0, 9, 0], [0, 1, 0], [0, 3, 0]]
    swapped = torch.full((3, 3, VOCABULARY), -20.0)
    for mask, digits in enumerate([[0, 1, 0], [0, 9, 0], [0, 8, 0]]):
        for place, digit in enumerate(digits):
            swapped[mask, place, DIGITS[digit]] = 0.0
    losses = written(right, logits=swapped, sizes=[2, 1]).losses()
    best = math.exp(9) / (math.exp(9) + math.exp(1))
    assert float(losses["choice"]) == pytest.approx((8 * best - 8 * (1 - best)) / 2, rel=1e-3)
    assert float(losses["iou/chosen"]) == pytest.approx((0.1 + 0.3) / 2)
    assert float(losses["iou/best"]) == pytest.approx((0.9 + 0.3) / 2)


def test_a_group_that_is_smaller_than_others_has_a_gradient():
    logits = torch.randn(3, 3, VOCABULARY, generator=torch.Generator().manual_seed(1)).requires_grad_()
    losses = written([[0, 9, 0], [0, 1, 0], [0, 3, 0]], logits=logits, sizes=[2, 1]).losses()
    losses["choice"].backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[:2].any()
    assert not logits.grad[2].any()


@pytest.mark.parametrize(
    ("right", "read", "counted"),
    [
        ([0, 8, 7], [0, 8, 3], (1, 1, 1)),
        ([0, 8, 7], [0, 5, 7], (1, 1, 0)),
        ([0, 8, 7], [1, 0, 0], (1, 0, 0)),
        ([1, 0, 0], [1, 0, 0], (1, 1, 1)),
        ([1, 9, 9], [0, 6, 1], (1, 1, 0)),
    ],
)
def test_digits_after_one_that_is_read_wrong_count_only_where_they_are_right_of_it(right, read, counted):
    for place in range(3):
        logits = torch.zeros(1, 3, VOCABULARY)
        logits[0, :, DIGITS] = 30.0 * torch.nn.functional.one_hot(torch.tensor(right), 10)
        logits[0, place] = 0.0
        lost = float(written([right], [read], logits).losses()["digits"])
        weights = [weight * count for weight, count in zip(PLACES, counted, strict=True)]
        assert lost == pytest.approx(math.log(VOCABULARY) * weights[place] / sum(weights), abs=1e-4)
