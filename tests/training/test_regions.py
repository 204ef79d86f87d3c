import numpy as np
import pytest
import torch

from rea2seg.evaluators.internvl import mask_pixels
from rea2seg.masks import iou
from rea2seg.synth.queries import CATEGORIES
from training.regions import (
    blob,
    connected,
    coverage,
    damaged,
    draw_masks,
    likeliest_objects,
    shown_masks,
    tokens_inside,
    tokens_under,
)
from training.scenes import codes_of, scene_with_questions


def asked(seed):
    rng = np.random.default_rng(seed)
    world, rendering, [question] = scene_with_questions(rng, "train", 1, CATEGORIES)
    return rng, world, rendering, question


def test_groups_are_full_and_show_something():
    best = []
    for seed in range(40):
        rng, world, rendering, question = asked(seed)
        truth = question.truth(rendering)
        masks = draw_masks(rng, world, codes_of(rendering), question, truth, 5)
        assert len(masks) == 5
        assert all(mask.any() and mask.shape == truth.shape and mask.dtype == bool for mask in masks)
        scores = [iou(torch.from_numpy(mask), torch.from_numpy(truth)) for mask in masks]
        assert all(0 <= score <= 1 for score in scores)
        best.append(max(scores))
    # The truth is in three groups of four, at times damaged.
    assert 0.4 < np.mean(np.array(best) == 1) < 0.95
    assert min(best) < 0.5


def test_the_same_generator_draws_the_same_masks():
    drawn = []
    for _ in range(2):
        rng, world, rendering, question = asked(3)
        drawn.append(draw_masks(rng, world, codes_of(rendering), question, question.truth(rendering), 5))
    assert all((one == other).all() for one, other in zip(*drawn, strict=True))


def test_objects_of_the_targets_kind_come_first():
    rng, world, _, question = asked(1)
    order = likeliest_objects(rng, world, question)
    kind = world.things[question.target[0]].kind
    same = [world.things[index].kind == kind for index in order]
    assert sorted(order) == list(range(len(world.things)))
    assert same == sorted(same, reverse=True)


def test_damage_leaves_something_to_be_judged():
    single = np.zeros((20, 30), bool)
    single[7, 9] = True
    square = np.zeros((20, 30), bool)
    square[5:15, 5:15] = True
    for mask in (single, square):
        results = [damaged(np.random.default_rng(seed), mask) for seed in range(60)]
        assert all(result.any() and result.shape == mask.shape for result in results)
        assert len({result.tobytes() for result in results}) > 10


def test_blobs_are_never_empty():
    assert all(blob(np.random.default_rng(seed), (3, 50)).any() for seed in range(60))


def test_coverage_is_the_covered_share_of_each_square():
    mask = np.zeros((2, 32, 32), bool)
    mask[0, :4, 16:20] = True  # The first of the 4 x 4 squares of the second of 2 x 2 tokens.
    mask[1, 16:, :16] = True
    mask[1, :2, :4] = True
    found = coverage([*mask], 2)
    assert found.shape == (2, 4, 16)
    assert found[0, 1].tolist() == [1.0] + [0.0] * 15
    assert found[1, 0].tolist() == pytest.approx([0.5] + [0.0] * 15, abs=0.01)
    assert found[1, 2].tolist() == [1.0] * 16
    assert not found[1, 3].any()
    assert coverage([], 2).shape == (0, 4, 16)


def test_masks_of_several_sizes_become_pictures_of_one():
    masks = [np.ones((20, 30), bool), np.zeros((40, 10), bool)]
    shown = shown_masks(masks, 16)
    assert shown.shape == (2, 3, 16, 16)
    for picture, mask in zip(shown, masks, strict=True):
        assert picture.equal(mask_pixels(torch.from_numpy(mask)[None], 16)[0])
    assert shown_masks([], 16).shape == (0, 3, 16, 16)


def test_tokens_count_as_inside_from_half_of_the_fullest_on():
    share = torch.tensor([[0.8, 0.4, 0.39, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert tokens_inside(share).tolist() == [[True, True, False, False], [False] * 4]


def test_every_token_of_a_mask_finds_the_image_tokens_under_its_part():
    mask = np.zeros((40, 40), bool)
    mask[:10, :30] = True  # Of 4 x 4 image tokens the first three of the first row.
    mask[30:, 36:] = True  # Less than half of the last one, which is the fullest in its quarter.
    found = tokens_under([mask], 4, 2)
    assert found.shape == (1, 4, 16)
    assert [row.nonzero().flatten().tolist() for row in found[0]] == [[0, 1], [2], [], [15]]
    uneven = tokens_under([np.ones((12, 12), bool)], 6, 4)[0]
    assert (uneven.sum(0) == 1).all()  # Every image token lies under one token of a full mask.
    assert uneven.any(1).all()
    assert tokens_under([], 4, 2).shape == (0, 4, 16)


def test_connected_parts_are_numbered_and_corners_connect():
    inside = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]]).bool().flatten()
    parts = connected(torch.stack([inside, torch.zeros_like(inside)]))
    assert parts[0].view(4, 4).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 2], [0, 0, 0, 2]]
    assert not parts[1].any()
    assert connected(inside[None][:0]).shape == (0, 16)
