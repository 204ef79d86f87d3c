import numpy as np
import pytest
import torch
from scipy import stats

from rea2seg.errors import InputError
from rea2seg.metrics import (
    PRESETS,
    Overlap,
    best_of,
    bootstrap,
    ciou,
    giou,
    iou,
    overlaps,
    preset,
    sign_flip,
)
from rea2seg.torchmetric import SegmentationIoU


def difference(first, second, strata=None):
    """The interval of a paired difference."""
    return bootstrap((first - second)[:, None], strata)[0]


def row(text: str) -> torch.Tensor:
    """A mask of one row: '#' is inside."""
    return torch.tensor([[char == "#" for char in text]])


#                 predicted, true and ignored pixels share columns
PREDICTION, TRUTH, IGNORE = row("####...."), row("..####.."), row("...#.##.")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lisa", Overlap(1, 4)),  # columns 3, 5 and 6 do not exist: predicted 0 1 2, true 2 4
        ("lens", Overlap(1, 5)),  # predicted 0 1 2 3, true 2 4
        ("segzero", Overlap(2, 7)),  # predicted 0 1 2 3, true 2 3 4 5 6
    ],
)
def test_each_preset_reads_ignored_pixels_in_its_own_way(name, expected):
    assert overlaps(PREDICTION[None], TRUTH, IGNORE, PRESETS[name]) == [expected]


def test_without_an_ignore_mask_the_presets_agree():
    found = {name: overlaps(PREDICTION[None], TRUTH, None, convention) for name, convention in PRESETS.items()}
    assert all(value == [Overlap(2, 6)] for value in found.values())


@pytest.mark.parametrize(("name", "empty_scores"), [("lisa", 1.0), ("lens", 1.0), ("segzero", 0.0)])
def test_finding_nothing_where_nothing_is(name, empty_scores):
    nothing = torch.zeros(1, 3, 4, dtype=torch.bool)
    (both_empty,) = overlaps(nothing, None, None, PRESETS[name])
    (false_alarm,) = overlaps(~nothing, None, None, PRESETS[name])
    (missed,) = overlaps(nothing, ~nothing[0], None, PRESETS[name])
    assert iou(both_empty, PRESETS[name]) == empty_scores
    assert iou(false_alarm, PRESETS[name]) == 0.0
    assert iou(missed, PRESETS[name]) == 0.0
    assert ciou([both_empty]) == 0.0


def test_giou_weighs_samples_alike_and_ciou_weighs_pixels_alike():
    samples = [Overlap(1, 2), Overlap(100, 100)]
    assert giou(samples, PRESETS["lisa"]) == 0.75
    assert ciou(samples) == 101 / 102


def test_the_best_of_three_is_chosen_by_iou_and_its_pixels_go_along():
    small, large = Overlap(9, 10), Overlap(800, 1000)
    assert best_of([large, small], PRESETS["lisa"]) is small
    assert best_of([Overlap(1, 2), Overlap(2, 4)], PRESETS["lisa"]) == Overlap(1, 2)


def test_best_of_k_can_lower_ciou():
    lisa = PRESETS["lisa"]
    first = [Overlap(800, 1000), Overlap(1, 1000)]
    best = [best_of([Overlap(800, 1000), Overlap(9, 10)], lisa), first[1]]
    assert giou(best, lisa) > giou(first, lisa)
    assert ciou(best) < ciou(first)


def test_without_samples_there_is_no_number():
    assert np.isnan(giou([], PRESETS["lisa"]))
    assert np.isnan(ciou([]))


def test_a_misspelt_preset_is_named_with_the_choices():
    with pytest.raises(InputError, match=r"'lissa'.*lisa, lens, segzero"):
        preset("lissa")


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_metric_over_batches_equals_the_sums_over_samples(name):
    generator = torch.Generator().manual_seed(0)
    masks, truths, ignores = (torch.rand(3, 5, 7, 6, generator=generator) < level for level in (0.4, 0.5, 0.1))
    metric, samples = SegmentationIoU(name), []
    for batch in range(3):
        metric.update(masks[batch], truths[batch], ignores[batch])
        for i in range(5):
            samples += overlaps(masks[batch, i][None], truths[batch, i], ignores[batch, i], PRESETS[name])
    assert metric.compute()["gIoU"].item() == pytest.approx(giou(samples, PRESETS[name]), abs=1e-12)
    assert metric.compute()["cIoU"].item() == ciou(samples)


def test_the_metric_counts_single_pixels_beyond_what_float32_can_hold():
    metric = SegmentationIoU()
    metric.intersection += 2**24
    metric.union += 2**24
    metric.update(torch.ones(1, 1, 1, dtype=torch.bool), torch.ones(1, 1, 1, dtype=torch.bool))
    assert (metric.intersection.item(), metric.intersection.dtype) == (2**24 + 1, torch.int64)
    assert metric.half().compute()["gIoU"].dtype == torch.float64


def test_the_metric_starts_at_zero_and_resets_to_it():
    metric = SegmentationIoU()
    metric.update(torch.ones(1, 2, 2, dtype=torch.bool), torch.ones(1, 2, 2, dtype=torch.bool))
    assert metric.compute()["gIoU"] == 1.0
    metric.reset()
    assert (metric.samples.item(), metric.union.dtype, metric.iou_sum.dtype) == (0, torch.int64, torch.float64)


def test_a_constant_difference_has_an_interval_of_no_width():
    first = np.linspace(0.2, 0.9, 50)
    interval = difference(first, first - 0.1)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.1, 0.1, 0.1))


def test_the_interval_of_one_category_is_that_of_the_normal_distribution():
    differences = np.random.default_rng(1).normal(0.05, 0.3, 400)
    interval = difference(differences, np.zeros(400))
    half = 1.96 * differences.std() / 20
    assert interval.mean == pytest.approx(differences.mean())
    assert interval.low == pytest.approx(differences.mean() - half, abs=0.002)
    assert interval.high == pytest.approx(differences.mean() + half, abs=0.002)


def test_categories_count_alike_however_many_samples_they_have():
    first = np.concatenate([np.ones(90), np.zeros(10)])
    interval = difference(first, np.zeros(100), ["large"] * 90 + ["small"] * 10)
    # Drawn inside the categories, each mean is certain; drawn from the pool, it would spread around 0.9.
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_the_interval_does_not_depend_on_the_chunks(monkeypatch):
    first, second = np.random.default_rng(2).random((2, 60))
    whole = difference(first, second)
    monkeypatch.setattr("rea2seg.metrics.CHUNK", 77_777)
    assert difference(first, second) == whole


def test_an_interval_of_nothing_is_not_a_number():
    assert np.isnan(difference(np.zeros(0), np.zeros(0)).low)


def test_every_column_has_the_interval_that_it_would_have_alone():
    values, strata = np.random.default_rng(3).random((40, 3)), ["a", "b", "b", "b"] * 10
    together = bootstrap(values, strata)
    for place, interval in enumerate(together):
        (alone,) = bootstrap(values[:, place : place + 1], strata)
        assert (alone.mean, alone.low, alone.high) == pytest.approx((interval.mean, interval.low, interval.high))


def test_the_sign_flip_test_counts_the_sign_patterns_that_are_as_far_from_zero():
    # Of the 16 patterns of four equal differences, two have all signs alike.
    (p,) = sign_flip(np.full((4, 1), 0.3))
    assert p == pytest.approx(2 / 16, abs=0.01)
    # One large difference decides the sum, whatever the other signs are.
    (p,) = sign_flip(np.array([[9.0], [0.0], [0.0], [0.0]]))
    assert p == 1.0


def test_the_sign_flip_test_agrees_with_the_t_test_on_normal_differences():
    differences = np.random.default_rng(4).normal([0.0, 0.04], 0.2, (200, 2))
    expected = stats.ttest_1samp(differences, 0.0).pvalue
    assert sign_flip(differences) == pytest.approx(list(expected), abs=0.015)


def test_the_sign_flip_test_weighs_categories_alike_and_sides_alike():
    differences = np.concatenate([np.full(50, 0.01), np.random.default_rng(5).normal(0.0, 0.5, 5)])[:, None]
    strata = ["large"] * 50 + ["small"] * 5
    assert sign_flip(differences)[0] != sign_flip(differences, strata)[0] > 0.1
    assert sign_flip(differences, strata) == sign_flip(-differences, strata)


def test_runs_that_do_not_differ_have_a_p_of_one_and_no_runs_have_none():
    assert sign_flip(np.zeros((5, 2))) == [1.0, 1.0]
    assert np.isnan(sign_flip(np.zeros((0, 1)))[0])
