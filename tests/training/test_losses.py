"""Losses on cases small enough to be worked out by hand, and lattices that agree on where their points are."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from rea2seg.segmenters.sam import resized_shape
from rea2seg.structures import Canvas
from training.losses import (
    at_lattice,
    hits,
    lattice_iou,
    mask_bce,
    mask_dice,
    mask_focal,
    mass_in_each,
    mass_inside,
    pointing,
)
from training.scenes import code_lattice

LOGITS = torch.tensor([[0.0, math.log(3)], [-math.log(3), math.log(3)]])
TRUTH = torch.tensor([[True, True], [False, False]])
"""Probabilities 1/2, 3/4, 1/4, 3/4; the last point is wrong."""
SHAPES = [(256, 200), (190, 256), (256, 256)]


def test_bce_is_the_mean_over_points():
    expected = (math.log(2) + math.log(4 / 3) + math.log(4 / 3) + math.log(4)) / 4
    assert_close(mask_bce(LOGITS, TRUTH), torch.tensor(expected))


def test_focal_weighs_each_point_by_the_square_of_what_was_missed():
    expected = (math.log(2) / 4 + math.log(4 / 3) / 16 * 2 + math.log(4) * 9 / 16) / 4
    assert_close(mask_focal(LOGITS, TRUTH), torch.tensor(expected))


def test_dice_counts_probabilities_and_smooths_by_one_point():
    overlap, predicted, true = 1 / 2 + 3 / 4, 9 / 4, 2
    assert_close(mask_dice(LOGITS, TRUTH), torch.tensor(1 - (2 * overlap + 1) / (predicted + true + 1)))


def test_losses_of_many_masks_are_those_of_each():
    logits, truth = torch.randn(2, 3, 5, 5), torch.rand(2, 3, 5, 5) > 0.5
    for loss in (mask_bce, mask_focal, mask_dice, lattice_iou):
        assert_close(loss(logits, truth)[1, 2], loss(logits[1, 2], truth[1, 2]))


def test_lattice_iou_counts_points_and_gives_no_gradient():
    assert_close(lattice_iou(LOGITS, TRUTH), torch.tensor(1 / 3))
    assert lattice_iou(-torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool)) == 0
    assert not lattice_iou(LOGITS.clone().requires_grad_(), TRUTH).requires_grad


def test_mass_inside_is_a_share_of_the_image_tokens_alone():
    weights = torch.tensor([[0.1, 0.2, 0.1], [0.3, 0.3, 0.4]])
    inside = torch.tensor([[False, True, False], [False, False, False]])
    assert_close(mass_inside(weights, inside), torch.tensor(math.log(2)))
    assert mass_inside(weights, torch.zeros_like(inside)) == 0


def test_mass_in_each_wants_every_member_and_for_one_is_the_mass_inside():
    weights = torch.tensor([[0.4, 0.4, 0.1, 0.1], [0.8, 0.0, 0.1, 0.1], [0.2, 0.2, 0.3, 0.3]])
    members = torch.tensor([[1, 2, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0]])
    assert_close(mass_in_each(weights[:1], members[:1]), torch.tensor(-math.log(0.8)))
    assert mass_in_each(weights[:2], members[:2]) > mass_inside(weights[:2], members[:2] > 0) + 1
    one = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])
    assert_close(mass_in_each(weights, one), mass_inside(weights, one > 0))
    assert mass_in_each(weights, members.clamp(max=0)) == 0


def test_hits_are_counted_where_something_could_be_hit():
    weights = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    inside = torch.tensor([[False, True], [False, True], [False, False]])
    assert hits(weights, inside).item() == 0.5
    assert hits(weights[2:], inside[2:]).item() == 0


def test_pointing_is_the_softmax_mass_of_cosines_inside():
    state, tokens = torch.tensor([[2.0, 0.0]]), torch.tensor([[[5.0, 0.0], [4.0, 3.0], [0.0, 3.0]]])
    mass = [math.exp(cosine / 0.1) for cosine in (1.0, 0.8, 0.0)]
    right, wrong = torch.tensor([[True, False, False]]), torch.tensor([[False, True, True]])
    assert_close(pointing(state, tokens, right), torch.tensor(-math.log(mass[0] / sum(mass))))
    assert_close(pointing(state, tokens, wrong), torch.tensor(-math.log(sum(mass[1:]) / sum(mass))))


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.3, -0.4)])
def test_logits_are_interpolated_exactly_at_the_lattice_points(shift):
    """On a ramp of the canvas coordinate the value at a point is where the point is."""
    xs, ys = torch.meshgrid((torch.arange(32) + 0.5) / 32, (torch.arange(32) + 0.5) / 32, indexing="xy")
    lowres = torch.stack([xs, ys])[None].expand(2, -1, -1, -1)
    sampled = at_lattice(lowres, torch.tensor([(0.0, 0.0), shift]), 8)
    at = (torch.arange(8) + 0.5)[1:-1] / 8
    assert_close(sampled[1, 0, 1:-1, 1:-1], (at + shift[0] / 8).expand(6, 6))
    assert_close(sampled[1, 1, 1:-1, 1:-1], (at + shift[1] / 8)[:, None].expand(6, 6))
    assert_close(sampled[0, 0, 0, 1:-1], at)


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("cells", [16, 64])
def test_codes_and_logits_are_read_at_the_same_points_of_the_canvas(size, cells):
    """The library's own mask is looked up by the one and predicted by the other; half a cell apart they disagree."""
    canvas = Canvas(size, 64, resized_shape(size, 64))
    coarse = torch.randn(1, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    lowres = torch.nn.functional.interpolate(coarse, (16, 16), mode="bicubic")
    codes = np.where(canvas.to_image(lowres)[0, 0] > 0, 1, 2).astype(np.uint8)
    shift, span = np.array([0.3, -0.4], np.float32), tuple(length * cells / 64 for length in canvas.resized)
    predicted = (at_lattice(lowres, torch.from_numpy(shift)[None], cells)[0, 0] > 0).numpy()

    def agreement(moved):
        lattice = code_lattice(codes, cells, shift + np.float32(moved), span)
        return (predicted == (lattice == 1))[lattice > 0].mean()

    assert agreement(0) > 0.98
    assert max(agreement(-0.5), agreement(0.5)) < agreement(0) - 0.015


@pytest.mark.parametrize("size", SHAPES)
def test_a_lattice_knows_where_a_centred_picture_lies(size):
    """As the generator's tower sees it: letterboxed in the middle, background around it."""
    height, width = size
    long, cells = max(size), 64
    codes = np.where((np.arange(width) < width // 2)[None] & np.ones((height, 1), bool), 5, 7).astype(np.uint8)
    span = (cells * height / long, cells * width / long)
    lattice = code_lattice(codes, cells, np.array([(span[1] - cells) / 2, (span[0] - cells) / 2]), span)
    at = (np.arange(cells) + 0.5 - cells / 2) * long / cells  # pixels from the middle of the square
    across, down = np.abs(at) < width / 2, np.abs(at) < height / 2
    expected = np.where(at + width / 2 < width // 2, 5, 7) * across * down[:, None]
    assert (lattice == expected).all()
