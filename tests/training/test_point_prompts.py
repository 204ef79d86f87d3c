"""Prompts for a small SAM: where their points lie, and what they are taken to mean."""

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from rea2seg.structures import Canvas
from rea2seg.synth.render import render
from rea2seg.synth.worlds import Thing, World
from training import point_prompts
from training.point_prompts import Goal, box_of, draw_batch, draw_goal, draw_prompt, levels_at, mistaken, points_on
from training.scenes import CODES, CODES_PER_OBJECT, code_set, codes_of, sample_scene


def thing(index, kind, x):
    return Thing(index, kind, "red", "large", "plain", x=x, y=0.4, radius=0.12, depth=index)


WORLD = World(1.0, 0.8, (thing(0, "cup", 0.2), thing(1, "cup", 0.5), thing(2, "ball", 0.8)), (0.0, -1.0), seed=1)
HANDLE, BODY, OTHER_BODY, BALL = (CODES_PER_OBJECT * owner + part for owner, part in ((1, 1), (1, 2), (2, 2), (3, 1)))


def values_at(array, points):
    return [array[int(y), int(x)] for x, y in points]


def codes(*chosen):
    return np.isin(np.arange(CODES), chosen)


def test_a_point_on_a_part_means_the_part_the_object_or_all_of_its_kind():
    part, whole, kind = levels_at([HANDLE], WORLD, Goal((0,)))
    assert (part == codes(HANDLE)).all()
    assert (whole == code_set([0])).all()
    assert (kind == code_set([0, 1])).all()


def test_points_on_several_objects_mean_those_and_their_kinds():
    part, whole, kind = levels_at([HANDLE, BALL], WORLD, Goal((0,)))
    assert (part == codes(HANDLE, BALL)).all()
    assert (whole == code_set([0, 2])).all()
    assert (kind == code_set([0, 1, 2])).all()


def test_a_goal_of_several_objects_takes_the_place_of_the_object():
    _, whole, _ = levels_at([OTHER_BODY], WORLD, Goal((0, 1)))
    assert (whole == code_set([0, 1])).all()


def test_points_on_the_background_mean_nothing():
    assert not levels_at([0], WORLD, Goal((0,))).any()


def test_goals_are_objects_their_parts_and_groups_of_a_kind():
    rng, seen = np.random.default_rng(0), set()
    for _ in range(200):
        goal = draw_goal(rng, WORLD)
        seen.add((len(goal.objects), goal.part))
        assert {WORLD.things[index].kind for index in goal.objects} in ({"cup"}, {"ball"})
        assert goal.part is None or WORLD.things[goal.objects[0]].kind == "cup"
    assert seen == {(1, None), (1, 1), (1, 2), (2, None)}


def test_points_are_pixel_centres_of_their_mask():
    where = np.zeros((5, 9), bool)
    where[1, 7] = where[4, 2] = True
    points = points_on(np.random.default_rng(0), where, 30)
    assert {tuple(point) for point in points.tolist()} == {(7.5, 1.5), (2.5, 4.5)}


def test_boxes_hold_all_pixels_and_move_by_shares_of_their_sides():
    where = np.zeros((10, 12), bool)
    where[2:6, 3:11] = True
    assert box_of(where, np.zeros(4)).tolist() == [3, 2, 11, 6]
    assert box_of(where, np.array([0.25, -0.5, 0.125, 0])).tolist() == [5, 0, 12, 6]


@pytest.mark.parametrize("kind", ["point", "points", "box"])
def test_positive_points_lie_in_or_near_the_goal_and_the_negative_one_outside(kind):
    rng, world_codes, strays = np.random.default_rng(0), codes_of(render(WORLD)), []
    for _ in range(40):
        drawn = draw_prompt(rng, WORLD, world_codes, kind, (1 if kind == "point" else 3, 4))
        first, goal = (drawn["table"][row][world_codes] for row in (0, 4))
        assert all(values_at(first, drawn["first_points"]))
        inside = values_at(goal, drawn["second_points"])
        assert inside[0]
        assert not inside[-1]
        distances = distance_transform_edt(~goal)
        assert max(values_at(distances, drawn["second_points"][:-1])) <= 12
        strays += [not one for one in inside[1:-1]]
        assert drawn["second_labels"].tolist() == [1, 1, 1, 1, 0]
        assert drawn["first_labels"].all()
        if kind == "box":
            ys, xs = np.nonzero(first)
            left, top, right, bottom = drawn["boxes"]
            assert abs(left - xs.min()) <= 0.05 * (np.ptp(xs) + 1)
            assert abs(bottom - ys.max() - 1) <= 0.05 * (np.ptp(ys) + 1)
            assert top < bottom
            assert left < right
    assert np.mean(strays) == pytest.approx(point_prompts.ASTRAY, abs=0.15)


def test_half_of_the_goals_are_taken_for_others_of_their_kind():
    rng, taken = np.random.default_rng(0), []
    for _ in range(400):
        goal = draw_goal(rng, WORLD)
        other = mistaken(rng, WORLD, goal)
        assert {WORLD.things[i].kind for i in other.objects} == {WORLD.things[i].kind for i in goal.objects}
        assert other.part in (None, goal.part)
        taken.append((len(goal.objects), goal.part is not None, len(other.objects), other.part is not None))
    same = np.mean([one[:2] == one[2:] for one in taken])
    assert 0.45 < same < 0.85
    assert {(1, True, 1, False), (1, False, 2, False), (2, False, 1, False)} <= set(taken)


def test_a_single_point_asks_for_its_object_even_if_the_goal_is_a_group(monkeypatch):
    monkeypatch.setattr(point_prompts, "draw_goal", lambda *_: Goal((0, 1)))
    monkeypatch.setattr(point_prompts, "mistaken", lambda *given: given[-1])
    world_codes = codes_of(render(WORLD))
    drawn = draw_prompt(np.random.default_rng(0), WORLD, world_codes, "point", (1, 3))
    x, y = drawn["first_points"][0]
    own = code_set([int(world_codes[int(y), int(x)]) // CODES_PER_OBJECT - 1])
    assert (drawn["table"][0] == own).all()
    assert (drawn["table"][2] == own).all()
    assert (drawn["table"][4] == code_set([0, 1])).all()
    assert (
        draw_prompt(np.random.default_rng(0), WORLD, world_codes, "box", (3, 3))["table"][0] == code_set([0, 1])
    ).all()


def test_a_part_that_is_hidden_altogether_gives_way_to_its_object(monkeypatch):
    monkeypatch.setattr(point_prompts, "draw_goal", lambda *_: Goal((0,), 1))
    hidden = codes_of(render(WORLD))
    hidden[hidden == HANDLE] = BODY
    drawn = draw_prompt(np.random.default_rng(0), WORLD, hidden, "box", (2, 2))
    assert (drawn["table"][4] == code_set([0])).all()


def test_a_batch_is_in_pixels_of_the_canvas(monkeypatch):
    """Points go to the canvas as the segmenter takes them there, and meet their truth on the lattice."""
    monkeypatch.setattr(point_prompts, "ASTRAY", 0.0)
    batch = draw_batch(np.random.default_rng(2), scenes=3, prompts=4, side=64, cells=64, split="train")
    truth = batch.targets.masks()[:, :, 4]
    assert truth.shape == (3, 4, 64, 64)
    agreement = []
    for scene in range(3):
        height, width = batch.resized[scene].tolist()
        assert max(height, width) == 64
        assert (batch.images[scene, :, height:] == 0).all()
        assert (batch.images[scene, :, :, width:] == 0).all()
        points, shift = batch.second_points[scene][:, :-1], batch.targets.shift[scene]
        assert (points[..., 0] < width).all()
        assert (points[..., 1] < height).all()
        nearest = (points - 0.5 - shift).round().long().clamp(0, 63)
        for prompt in range(4):
            agreement.append(truth[scene, prompt][nearest[prompt, :, 1], nearest[prompt, :, 0]].float().mean())
    assert torch.stack(agreement).mean() > 0.75  # of thin things a lattice point often misses


def test_the_canvas_of_training_is_the_canvas_of_the_segmenter():
    _, rendering = sample_scene(np.random.default_rng(1))
    _, resized, scale = point_prompts.on_canvas(rendering, 64)
    point = torch.tensor([[100.5, 40.5]])
    canvas = Canvas(rendering.instance_ids.shape, 64, resized)
    assert torch.allclose(canvas.from_pixels(point).double(), point.double() * torch.from_numpy(scale))


@pytest.mark.parametrize("kind", ["point", "points", "box"])
def test_prompts_of_a_batch_stand_scene_after_scene(kind):
    drawn = (draw_batch(np.random.default_rng(seed), 2, 3, 64, 8, "train") for seed in range(24))
    batch = next(batch for batch in drawn if batch.kind == kind)
    first, second = batch.first(), batch.second(torch.zeros(6, 1, 16, 16))
    assert len(first) == len(second) == 6
    if kind == "box":
        assert first.box[4].equal(batch.boxes[1, 1])
    else:
        assert first.points[4].equal(batch.first_points[1, 1])
    assert second.points[4].equal(batch.second_points[1, 1])


def test_all_kinds_of_prompts_are_drawn():
    batches = [draw_batch(np.random.default_rng(seed), 1, 1, 64, 8, "train") for seed in range(24)]
    assert {batch.kind for batch in batches} == {"point", "points", "box"}
    assert {batch.refine for batch in batches} == {True, False}
