"""What is misread looks like what an evaluator writes, and is wrong as often as was said."""

import numpy as np
import pytest

from tests.training.test_judgements import example_with
from training.misreading import CELL, misread, misread_scores


def test_a_misread_example_has_neighbours_of_the_right_cells_and_at_times_another_answer():
    right, rng = "cups from left: a0, e5. below j9: e5. leftmost: e5. answer: lid of e5.", np.random.default_rng(0)
    examples = [misread(rng, example_with(right, "cup e5", "cup c3 and cup e5")) for _ in range(1000)]
    read = [f"{one.reasoning} {one.under[0]} {one.under[1]}" for one in examples]
    assert all(CELL.sub("", one) == CELL.sub("", f"{right} cup e5 cup c3 and cup e5") for one in read)
    first, second, third, _, fifth, answer, *under = np.array([CELL.findall(one) for one in read]).T
    assert set(first) == {"a0", "a1", "b0"}
    assert set(second) == {"e5", "d5", "f5", "e4", "e6"}
    assert set(third) == {"j9", "i9", "j8"}
    assert np.mean(second == "e5") == pytest.approx(0.7, abs=0.05)
    assert all((same == second).all() for same in (fifth, under[0], under[2]))
    assert set(under[1]) == {"c3", "b3", "d3", "c2", "c4"}
    # Of the three that the reasoning names, two are another.
    assert np.mean(answer != second) == pytest.approx(0.3 * 2 / 3, abs=0.04)
    assert len({tuple(one.scores) for one in examples}) > 900


def test_misread_scores_are_scores_and_mostly_near_the_right_ones():
    read = np.array(misread_scores(np.random.default_rng(0), [0.0, 0.3, 0.7, 1.0] * 200)).reshape(200, 4)
    assert ((read >= 0) & (read <= 1)).all()
    assert (np.abs(read - [0.0, 0.3, 0.7, 1.0]) < 0.4).mean() == pytest.approx(0.92, abs=0.04)
