"""Example pictures show what was right and what a model said, each in its place and colour."""

import numpy as np
import pytest
import torch

from rea2seg.drawing import GREEN, HEAT, INK, ORANGE, PAPER, RED
from training.pictures import (
    CLIP,
    SIDE,
    attended,
    boxed,
    captioned,
    compared,
    from_lattice,
    judged,
    named,
    on_picture,
    plain,
    pointed,
    restored,
)
from training.point_prompts import draw_batch

BLACK = torch.zeros(3, 64, 64, dtype=torch.uint8)


def quarter(rows, cols, side=64):
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[rows, cols] = True
    return mask


TOP_LEFT, BOTTOM_RIGHT = quarter(slice(32), slice(32)), quarter(slice(32, None), slice(32, None))


def share(panel, colour):
    """How much of a panel has a colour."""
    return float((panel == np.array(colour)).all(-1).mean())


def near(panel, x, y, colour, within=8):
    """Whether a colour is near a point."""
    return share(panel[max(y - within, 0) : y + within, max(x - within, 0) : x + within], colour) > 0


def test_what_was_normalised_is_restored():
    image = torch.arange(3 * 64, dtype=torch.uint8).view(3, 8, 8)
    mean, deviation = (torch.tensor(numbers)[:, None, None] for numbers in CLIP)
    assert restored((image / 255 - mean) / deviation, *CLIP).equal(image)


def test_a_lattice_is_looked_up_where_its_points_lie():
    lattice = torch.zeros(4, 4, dtype=torch.bool)
    lattice[1, 2] = True  # Row 1, column 2: its centre at x = 2.5 + 0.25, y = 1.5 - 0.5 cells of 16 pixels.
    found = from_lattice(lattice, torch.tensor([0.25, -0.5]), 64)
    ys, xs = torch.nonzero(found, as_tuple=True)
    assert (xs.min(), xs.max()) == (36, 51)
    assert (ys.min(), ys.max()) == (8, 23)


@pytest.mark.parametrize("seed", range(4))
def test_a_mask_lies_under_the_point_that_asks_for_it(seed):
    batch = draw_batch(np.random.default_rng(seed), 1, 1, 128, 128, "train")
    scene = batch.images[0], batch.resized[0], batch.targets.masks()[0, 0, 0], batch.targets.shift[0]
    image, truth, guess = on_picture(*scene, torch.eye(32) - 0.5)
    assert image.shape[1:] == truth.shape == guess.shape == (*batch.resized[0],)
    assert guess[60, 60]
    assert not guess[60, 20]
    x, y = batch.first_points[0, 0, 0].int().tolist()
    assert truth[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].any()


def test_the_guess_is_a_tint_and_the_truth_an_outline():
    panel = compared(BLACK, TOP_LEFT, BOTTOM_RIGHT)
    half = SIDE // 2
    assert share(panel[half + 10 :, half + 10 :], np.round(0.6 * np.array(ORANGE))) > 0.9
    assert share(panel[: half - 10, : half - 10], (0, 0, 0)) > 0.9
    assert near(panel, half, half // 2, GREEN)
    assert near(panel, half // 2, half, GREEN)
    assert not near(panel, half + half // 2, SIDE - 10, GREEN)


def test_points_and_boxes_lie_where_they_were_given():
    panel = plain(BLACK)
    marked = pointed(panel, torch.tensor([[100.0, 50.0], [200.0, 300.0]]))
    assert near(marked, 100, 50, PAPER)
    assert near(marked, 200, 300, PAPER)
    assert not near(marked, 50, 100, PAPER, 20)
    framed = boxed(panel, torch.tensor([20.0, 40.0, 120.0, 200.0]))
    assert all(near(framed, x, y, PAPER, 4) for x, y in ((20, 40), (120, 200), (70, 40), (20, 120)))
    assert not near(framed, 70, 120, PAPER, 20)


def test_the_strongest_token_is_the_lightest_and_the_right_ones_are_outlined():
    attention, inside = torch.full((4, 4), 0.01), torch.zeros(4, 4, dtype=torch.bool)
    attention[0, 3], inside[2, 0] = 0.5, True
    panel = attended(BLACK, attention, inside)
    light, dark = (np.round(0.6 * np.array(HEAT[place])) for place in (-1, 0))
    cell = SIDE // 4
    assert np.abs(panel[cell // 2, 3 * cell + cell // 2] - light).max() <= 1
    assert np.abs(panel[cell // 2, cell // 2] - dark).max() <= 3
    assert near(panel, cell // 2, 2 * cell, GREEN)
    assert not near(panel, 3 * cell + cell // 2, cell, GREEN)


def test_things_are_painted_and_right_names_are_green():
    things, paint = np.zeros((4, 4), bool), np.zeros((4, 4, 3), np.uint8)
    things[1, 0], things[2, 3] = True, True
    paint[1, 0], paint[2, 3], paint[0, 0] = (9, 8, 7), (6, 5, 4), (3, 2, 1)
    panel, cell = named(BLACK, paint, things, [(1, 0, "cup", True), (2, 3, "cup", False)]), SIDE // 4
    assert tuple(panel[cell + 2, 2]) == (9, 8, 7)
    assert tuple(panel[2 * cell + 2, 3 * cell + 2]) == (6, 5, 4)
    assert tuple(panel[2, 2]) == (0, 0, 0)
    first, second = panel[cell : 2 * cell, :cell], panel[2 * cell : 3 * cell, 3 * cell :]
    assert share(first, GREEN) > 0 == share(first, RED)
    assert share(second, RED) > 0 == share(second, GREEN)


def test_masks_stand_beside_each_other_with_the_scores_below():
    white = torch.full((3, 16, 16), 255, dtype=torch.uint8)
    black = torch.zeros_like(white)
    panel, side = judged([black, white], [0.9, 0.2], [0.85, 0.9]), SIDE // 2
    assert share(panel[2 : side - 2, 2 : side - 2], (0, 0, 0)) == 1
    assert share(panel[2 : side - 2, side + 10 : -2], PAPER) == 1
    first, second = panel[side:, :side], panel[side:, side + 8 :]
    assert share(first, INK) > 0 == share(first, RED)
    assert share(second, RED) > 0 == share(second, INK)
    assert not np.array_equal(panel, judged([black, white], [0.9, 0.3], [0.85, 0.9]))


def test_a_caption_stands_above_its_panels():
    red, blue = (np.full((30, 200, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    page = np.asarray(captioned("the red cup", red, blue))
    assert page.shape[1] == 2 * 200 + 8 + 2 * 12
    assert share(page[-42:-12, 12:212], (255, 0, 0)) == share(page[-42:-12, 220:-12], (0, 0, 255)) == 1
    assert share(page[:-42], INK) > 0
    assert captioned("", red).height < page.shape[0]
