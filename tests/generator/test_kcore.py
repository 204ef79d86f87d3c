from itertools import combinations

import pytest
import torch

from rea2seg.cells import Cells
from rea2seg.generator.kcore import background_point, innermost_core, look_alike


def graph(nodes: int, *edges: tuple[int, int]) -> torch.Tensor:
    adjacent = torch.zeros(nodes, nodes, dtype=torch.bool)
    for a, b in edges:
        adjacent[a, b] = adjacent[b, a] = True
    return adjacent


def clique(*nodes: int) -> list[tuple[int, int]]:
    return list(combinations(nodes, 2))


@pytest.mark.parametrize(
    ("adjacent", "core"),
    [
        (graph(5, *clique(0, 1, 2, 3), (3, 4)), [0, 1, 2, 3]),  # a clique of four with a tail: its 3-core
        (graph(4, (0, 1), (1, 2), (2, 3)), [0, 1, 2, 3]),  # a path is a 1-core
        (graph(6, (0, 1), (1, 2), (2, 3), (3, 4), (4, 1), (4, 5)), [1, 2, 3, 4]),  # a ring with two tails: its 2-core
        (graph(7, *clique(0, 1, 2), *clique(3, 4, 5, 6)), [3, 4, 5, 6]),  # the denser of two groups
        (graph(3), []),  # no edge, no core
        (graph(1), []),
    ],
)
def test_known_cores(adjacent, core):
    assert innermost_core(adjacent, torch.ones(len(adjacent))).tolist() == core


def test_of_equal_cores_the_one_with_most_attention_wins_then_the_first():
    twins = graph(6, *clique(0, 1, 2), *clique(3, 4, 5))
    assert innermost_core(twins, torch.tensor([1.0, 1, 1, 0, 4, 0])).tolist() == [3, 4, 5]
    assert innermost_core(twins, torch.ones(6)).tolist() == [0, 1, 2]


def test_features_are_alike_by_angle_not_by_length():
    features = torch.tensor([[1.0, 0.0], [5.0, 0.1], [0.0, 1.0], [0.0, 0.0]])
    assert look_alike(features, 0.9).nonzero().tolist() == [[0, 1], [1, 0]]


def test_features_that_are_not_numbers_are_like_nothing():
    assert not look_alike(torch.full((3, 2), torch.nan), -1.0).any()


def test_the_background_point_is_the_lowest_cell_or_else_the_lowest_pixel():
    cells = Cells(
        centres=torch.tensor([[5.0, 5], [15, 5], [25, 5]]),
        pixels=torch.tensor([[0, 0, 10, 10], [10, 0, 20, 10], [20, 0, 30, 10]]),
        attention=torch.ones(3),
        logits=torch.tensor([2.0, -3.0, -3.0]),
        lowest=torch.tensor([7.5, 2.5]),
    )
    assert background_point(cells, below=-2.0).tolist() == [15, 5]
    assert background_point(cells, below=-3.0).tolist() == [7.5, 2.5]
