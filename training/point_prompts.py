"""Prompts that teach a small SAM what the searches of the pipeline ask of it, with their true masks.

Each prompt has a goal: an object, a part, or a few objects of one kind. The first decode gets one point, a few points
or a box; the second gets more points, a background point and the logits of the first, as the core search does: the
first may have been after something else, and some of the points lie beside the goal, as some seeds do. The
three multi-mask outputs have fixed meanings (part, object, all of the kind), which a small model learns faster than
SAM's choice of the best of three (mini only). A goal of several objects takes the object's place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from scipy.ndimage import binary_dilation
from torch import Tensor

from rea2seg.segmenters.sam import resize_to, resized_shape
from rea2seg.structures import Prompt
from rea2seg.synth.render import Rendering
from rea2seg.synth.vocabulary import PARTS
from rea2seg.synth.worlds import World, pick
from training.batches import Movable
from training.scenes import CODES_PER_OBJECT, Targets, code_lattice, code_set, codes_of, sample_scene, to_tensor

FirstPrompt = Literal["point", "points", "box"]
FIRST_PROMPTS: tuple[FirstPrompt, ...] = ("point", "points", "box")
ASTRAY = 0.4
"""The share of the points of a second decode that lie beside the goal. Ours: half of mini's seeds do."""
Codes = Bool[np.ndarray, " codes"]


@dataclass(frozen=True)
class Goal:
    """What a prompt is after: objects by index, and the part (1 or 2) if not whole objects."""

    objects: tuple[int, ...]
    part: int | None = None

    def codes(self) -> Codes:
        return code_set(self.objects, self.part)


def draw_goal(rng: np.random.Generator, world: World) -> Goal:
    """An object, a part (a quarter, where the kind has parts) or two to four objects of a kind. The shares are ours."""
    thing = world.things[int(rng.integers(len(world.things)))]
    mates = [other.index for other in world.of_kind(thing.kind)]
    choice = rng.random()
    if choice < 0.25 and thing.kind in PARTS:
        return Goal((thing.index,), int(rng.integers(1, 3)))
    if choice < 0.55 and len(mates) > 1:
        return Goal(tuple(rng.permutation(mates)[: int(rng.integers(2, 5))].tolist()))
    return Goal((thing.index,))


def mistaken(rng: np.random.Generator, world: World, goal: Goal) -> Goal:
    """What a generator might take for this goal: the whole for the part, or one mate more, less or instead. Half of the
    goals are taken for what they are. The shares are ours."""
    if rng.random() < 0.5:
        return goal
    if goal.part is not None and rng.random() < 0.5:
        return Goal(goal.objects)
    mates = [thing.index for thing in world.of_kind(world.things[goal.objects[0]].kind)]
    changed = {pick(rng, mates)}
    if goal.part is None and rng.random() < 0.8:
        changed ^= set(goal.objects)
    return Goal(tuple(sorted(changed or goal.objects)), goal.part)


def levels_at(touched: Sequence[int], world: World, goal: Goal) -> Bool[np.ndarray, "3 codes"]:
    """What points on these codes mean: the parts, the objects (or a goal of several objects), all of their kinds."""
    parts = np.zeros_like(goal.codes())
    parts[[code for code in touched if code >= CODES_PER_OBJECT]] = True
    objects = {code // CODES_PER_OBJECT - 1 for code in touched if code >= CODES_PER_OBJECT}
    kinds = {world.things[index].kind for index in objects}
    whole = goal.codes() if len(goal.objects) > 1 else code_set(objects)
    return np.stack([parts, whole, code_set(thing.index for thing in world.things if thing.kind in kinds)])


def points_on(rng: np.random.Generator, where: Bool[np.ndarray, "h w"], count: int) -> Float[np.ndarray, "count 2"]:
    """Pixel centres (x, y) drawn from a mask; where it is empty, from the whole picture."""
    inside = np.flatnonzero(where if where.any() else np.ones_like(where))
    ys, xs = np.unravel_index(rng.choice(inside, count), where.shape)
    places: np.ndarray = np.stack([xs, ys], axis=1)
    return places + 0.5


def beside(where: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """What is within three quarters of a cell of 16 pixels of a mask: where the seeds of small things may lie."""
    around: Bool[np.ndarray, "h w"] = binary_dilation(where, iterations=12) & ~where
    return around


def box_of(where: Bool[np.ndarray, "h w"], jitter: Float[np.ndarray, " 4"]) -> Float[np.ndarray, " 4"]:
    """The bounding box of a mask in pixels, each edge moved by `jitter` box sides."""
    ys, xs = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
    box = np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1], float)
    box += jitter * np.tile(box[2:] - box[:2], 2)
    return box


@dataclass(frozen=True, eq=False)
class PromptBatch(Movable):
    """n prompts on each of b scenes; coordinates in pixels of the segmenter's canvas.

    `targets` holds eight masks a prompt: the single mask and the three levels of the first decode, then those of the
    second, which takes place if `refine`.
    """

    images: UInt8[Tensor, "b 3 side side"]
    resized: Int[Tensor, "b 2"]
    kind: FirstPrompt
    first_points: Float[Tensor, "b n p 2"]
    first_labels: Int[Tensor, "b n p"]
    boxes: Float[Tensor, "b n 4"]
    second_points: Float[Tensor, "b n q 2"]
    second_labels: Int[Tensor, "b n q"]
    refine: bool
    targets: Targets

    def __len__(self) -> int:
        return len(self.images)

    def first(self) -> Prompt:
        """The prompts of the first decode, scene after scene."""
        if self.kind == "box":
            return Prompt(box=self.boxes.flatten(0, 1))
        return Prompt(points=self.first_points.flatten(0, 1), labels=self.first_labels.flatten(0, 1))

    def second(self, logits: Float[Tensor, "bn 1 h w"]) -> Prompt:
        """The prompts of the second decode, with the low-resolution logits of the first."""
        points, labels = self.second_points.flatten(0, 1), self.second_labels.flatten(0, 1)
        return Prompt(points=points, labels=labels, mask=logits)


def draw_prompt(
    rng: np.random.Generator, world: World, codes: UInt8[np.ndarray, "h w"], kind: FirstPrompt, sizes: tuple[int, int]
) -> dict[str, np.ndarray]:
    """One prompt of each decode for one goal, with its eight sets of codes."""
    goal = visible(draw_goal(rng, world), codes)
    first = first_prompt(rng, world, codes, visible(mistaken(rng, world, goal), codes), kind, sizes[0])
    second = second_prompt(rng, world, codes, goal, sizes[1])
    table = np.concatenate([first.pop("table"), second.pop("table")])
    return {**first, **second, "table": table}


def visible(goal: Goal, codes: UInt8[np.ndarray, "h w"]) -> Goal:
    """The goal, or all of its objects where its part is hidden altogether, as a thing never is."""
    return goal if goal.codes()[codes].any() else Goal(goal.objects)


def first_prompt(
    rng: np.random.Generator,
    world: World,
    codes: UInt8[np.ndarray, "h w"],
    goal: Goal,
    kind: FirstPrompt,
    count: int,
) -> dict[str, np.ndarray]:
    """Points on the goal and the box around it, with the sets of codes of the four masks to be found."""
    where = goal.codes()[codes]
    points = points_on(rng, where, count)
    touched = codes_at(codes, points)
    if kind == "point":  # One point cannot ask for a group, nor for a part alone.
        goal = Goal((touched[0] // CODES_PER_OBJECT - 1,))
    return {
        "first_points": points,
        "first_labels": np.ones(count, int),
        "boxes": box_of(where, rng.uniform(-0.05, 0.05, 4)),
        "table": np.concatenate([goal.codes()[None], levels_at(touched, world, goal)]),
    }


def second_prompt(
    rng: np.random.Generator, world: World, codes: UInt8[np.ndarray, "h w"], goal: Goal, count: int
) -> dict[str, np.ndarray]:
    """Points on the goal, some of which go astray, and one elsewhere, with the sets of codes of the four masks."""
    where = goal.codes()[codes]
    inside, outside = points_on(rng, where, count), points_on(rng, beside(where), count)
    # At least one point lies on the goal.
    astray = (rng.random(count) < ASTRAY) & (np.arange(count) > 0)
    points = np.where(astray[:, None], outside, inside)
    return {
        "second_points": np.concatenate([points, points_on(rng, elsewhere(rng, world, codes, goal), 1)]),
        "second_labels": np.array([1] * count + [0]),
        "table": np.concatenate([goal.codes()[None], levels_at(codes_at(codes, inside[~astray]), world, goal)]),
    }


def elsewhere(
    rng: np.random.Generator, world: World, codes: UInt8[np.ndarray, "h w"], goal: Goal
) -> Bool[np.ndarray, "h w"]:
    """Where a background point may lie: at times only on others of the goal's kind, if there are any."""
    own = goal.codes()
    mates = (code_set(thing.index for thing in world.of_kind(world.things[goal.objects[0]].kind)) & ~own)[codes]
    around: Bool[np.ndarray, "h w"] = mates if rng.random() < 0.5 and mates.any() else ~own[codes]
    return around


def codes_at(codes: UInt8[np.ndarray, "h w"], points: Float[np.ndarray, "n 2"]) -> list[int]:
    """The codes of the pixels that points lie in."""
    return [int(codes[int(y), int(x)]) for x, y in points]


def draw_batch(rng: np.random.Generator, scenes: int, prompts: int, side: int, cells: int, split: str) -> PromptBatch:
    """A batch of fresh scenes; all first prompts of a batch are of one kind, so that they stack."""
    kind = FIRST_PROMPTS[int(rng.choice(3, p=[0.5, 0.3, 0.2]))]
    sizes = (1 if kind == "point" else int(rng.integers(2, 5)), int(rng.integers(2, 10)))
    drawn = [draw_scene(rng, prompts, side, cells, split, kind, sizes) for _ in range(scenes)]
    stacked = {name: torch.from_numpy(np.stack([scene[name] for scene in drawn])) for name in drawn[0]}
    targets = Targets(stacked.pop("lattice"), stacked.pop("shift"), stacked.pop("table"))
    return PromptBatch(kind=kind, refine=bool(rng.random() < 0.5), targets=targets, **stacked)


def draw_scene(
    rng: np.random.Generator, prompts: int, side: int, cells: int, split: str, kind: FirstPrompt, sizes: tuple[int, int]
) -> dict[str, np.ndarray]:
    """One fresh scene with its prompts, in canvas pixels, and the codes on the lattice of the losses."""
    world, rendering = sample_scene(rng, split)
    codes = codes_of(rendering)
    rows = [draw_prompt(rng, world, codes, kind, sizes) for _ in range(prompts)]
    scene = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    image, resized, scale = on_canvas(rendering, side)
    for name in ("first_points", "second_points"):
        scene[name] = (scene[name] * scale).astype(np.float32)
    scene["boxes"] = (scene["boxes"] * np.tile(scale, 2)).astype(np.float32)
    lattice, shift = canvas_lattice(rng, codes, resized, side, cells)
    return scene | {"images": image, "resized": np.array(resized), "lattice": lattice, "shift": shift}


def canvas_lattice(
    rng: np.random.Generator, codes: UInt8[np.ndarray, "h w"], resized: tuple[int, int], side: int, cells: int
) -> tuple[UInt8[np.ndarray, "cells cells"], Float[np.ndarray, " 2"]]:
    """The codes at `cells` x `cells` points of the canvas, on which the picture has that (height, width), and how far
    these points are shifted: a random (x, y) in [-0.5, 0.5] cells."""
    shift = rng.uniform(-0.5, 0.5, 2).astype(np.float32)
    return code_lattice(codes, cells, shift, (resized[0] * cells / side, resized[1] * cells / side)), shift


def on_canvas(
    rendering: Rendering, side: int
) -> tuple[UInt8[np.ndarray, "3 side side"], tuple[int, int], Float[np.ndarray, " 2"]]:
    """A picture in the corner of SAM's canvas, its (height, width) there, and the scale (x, y) to it."""
    height, width = rendering.instance_ids.shape
    resized = resized_shape((height, width), side)
    canvas = np.zeros((3, side, side), np.uint8)
    canvas[:, : resized[0], : resized[1]] = resize_to(to_tensor(rendering.image), resized).numpy()
    return canvas, resized, np.array([resized[1] / width, resized[0] / height])
