import math

import pytest

from rea2seg.evaluate.calibration import calibrate
from tests.evaluate.paint import LISA, found, ranked_row


def test_estimates_that_are_true_have_no_error_and_the_right_order():
    row = ranked_row(0, *(found(place, iou, iou) for place, iou in enumerate((0.1, 0.5, 1.0))))
    told = calibrate([row], LISA, "score")
    assert (told.ece, told.error, told.bias, told.samples, told.candidates) == (0.0, 0.0, 0.0, 1, 3)
    assert told.within.mean == told.pooled == pytest.approx(1.0)
    assert [(one.low, one.n) for one in told.bins] == [(0.1, 1), (0.5, 1), (0.9, 1)]  # the last holds its end


def test_errors_cancel_inside_a_bin_for_the_ece_and_never_for_the_mean_error():
    row = ranked_row(0, found(0, 0.4, 0.52), found(1, 0.64, 0.52), found(2, 0.5, 0.7))
    told = calibrate([row], LISA, "score")
    assert told.ece == pytest.approx(0.2 / 3)
    assert told.error == pytest.approx((0.12 + 0.12 + 0.2) / 3)
    assert told.bias == pytest.approx(0.2 / 3)


def test_the_correlation_inside_samples_is_not_that_of_all_candidates_at_once():
    easy = ranked_row(0, found(0, 0.8, 0.9), found(1, 0.9, 0.8))
    hard = ranked_row(1, found(0, 0.1, 0.2), found(1, 0.2, 0.1))
    told = calibrate([easy, hard], LISA, "score")
    assert told.within.mean == pytest.approx(-1.0)
    assert told.pooled == pytest.approx(0.6)


def test_equal_values_share_their_rank():
    row = ranked_row(0, found(0, 0.1, 0.3), found(1, 0.2, 0.3), found(2, 0.3, 0.6))
    assert calibrate([row], LISA, "score").within.mean == pytest.approx(math.sqrt(3) / 2)


def test_samples_without_an_order_are_counted_and_left_out_of_the_correlation():
    rows = [
        ranked_row(0, found(0, 0.1, 0.3), found(1, 0.2, 0.4)),
        ranked_row(1, found(0, 0.1, 0.5), found(1, 0.2, 0.5)),  # equal estimates
        ranked_row(2, found(0, 0.0, 0.3), found(1, 0.0, 0.4)),  # equal truths
        ranked_row(3, found(0, 0.1, 0.3), found(1, 0.2, None)),  # a single estimate
        ranked_row(4),
        ranked_row(5, found(0, 0.0, 0.3), found(1, 0.0, 0.4), target_area=0),
    ]
    told = calibrate(rows, LISA, "score")
    assert (told.within.mean, told.constant) == (pytest.approx(1.0), 4)
    assert (told.samples, told.candidates) == (5, 7)


def test_the_correlation_is_averaged_like_the_average():
    good = [ranked_row(place, found(0, 0.1, 0.3), found(1, 0.2, 0.4), category="a") for place in range(3)]
    bad = ranked_row(3, found(0, 0.1, 0.4), found(1, 0.2, 0.3), category="b")
    told = calibrate([*good, bad], LISA, "score")
    assert told.within.mean == pytest.approx(0.0)


def test_the_segmenters_estimates_are_judged_likewise():
    told = calibrate([ranked_row(0, found(0, 0.1), found(1, 0.2))], LISA, "quality")
    assert told.error == pytest.approx(0.35)
    assert (told.constant, math.isnan(told.within.mean), math.isnan(told.pooled)) == (1, True, True)


def test_of_nothing_there_is_no_calibration():
    told = calibrate([ranked_row(0)], LISA, "score")
    assert (told.candidates, told.bins) == (0, ())
    assert math.isnan(told.ece)
    assert math.isnan(told.error)
