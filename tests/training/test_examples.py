"""Groups of masks have the sizes that inference shows."""

import numpy as np

from training.examples import group_sizes


def test_a_share_of_the_groups_is_smaller() -> None:
    rng = np.random.default_rng(0)
    assert group_sizes(rng, 100, 5, short=0.0) == [5] * 100
    assert group_sizes(rng, 100, 0, short=1.0) == [0] * 100
    assert set(group_sizes(rng, 200, 5, short=1.0)) == {1, 2, 3, 4, 5}
