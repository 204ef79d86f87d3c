"""Scenes of SGDR-Synth as training batches: pictures, label lattices and the sets of labels that make up a mask.

A mask is never stored. Every pixel has a code (which object, which part of it), a target is a set of codes, and a mask
is the lookup of the codes in that set. A batch therefore holds one lattice of codes per scene and a small table per
target, however many targets a scene has.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from rea2seg.synth.queries import THEME_OF, Question, entries_of, questions
from rea2seg.synth.render import Rendering, render, sample_world
from rea2seg.synth.worlds import Theme, World, pick
from training.batches import Movable

CODES_PER_OBJECT = 3
"""Codes per object: part 0 never occurs, 1 is the first part or the whole, 2 the second part."""
CODES = 3 * 16
"""Background is object 0; SGDR-Synth has at most 12 objects in a scene."""


def sample_scene(rng: np.random.Generator, split: str = "train", theme: Theme | None = None) -> tuple[World, Rendering]:
    """A fresh world, of any theme if none is given, and its picture."""
    world = sample_world(rng, split, theme)
    return world, render(world)


def scene_with_questions(
    rng: np.random.Generator, split: str, count: int, categories: Sequence[str]
) -> tuple[World, Rendering, list[Question]]:
    """A fresh world, its picture and exactly `count` questions about it; worlds that offer fewer are passed over.

    The world is one that a component of these categories needs, or of any theme where that one needs none.
    """
    while True:
        world, rendering = sample_scene(rng, split, THEME_OF.get(pick(rng, entries_of(categories))))
        asked = questions(rng, world, rendering, count, categories)
        if len(asked) == count:
            return world, rendering, asked


def codes_of(rendering: Rendering) -> UInt8[np.ndarray, "h w"]:
    """The code of every pixel."""
    codes: np.ndarray = rendering.instance_ids * CODES_PER_OBJECT + rendering.part_ids
    return codes.astype(np.uint8)


def code_set(objects: Iterable[int], part: int | None = None) -> Bool[np.ndarray, " codes"]:
    """The codes of whole objects (indices from 0), or of one part (1 or 2) of each."""
    chosen = np.zeros(CODES, bool)
    for index in objects:
        first = (index + 1) * CODES_PER_OBJECT
        if part is None:
            chosen[first : first + CODES_PER_OBJECT] = True
        else:
            chosen[first + part] = True
    return chosen


def code_lattice(
    codes: UInt8[np.ndarray, "h w"], cells: int, shift: Float[np.ndarray, " 2"], span: tuple[float, float]
) -> UInt8[np.ndarray, "cells cells"]:
    """Codes at the centres of a square lattice of cells moved by `shift` (x, y) cells; 0 outside the picture.

    `span` is how many cells the picture covers, (down, across): fewer than `cells` along its short side.
    """
    height, width = codes.shape
    ys = np.floor((np.arange(cells) + 0.5 + shift[1]) * height / span[0]).astype(int)
    xs = np.floor((np.arange(cells) + 0.5 + shift[0]) * width / span[1]).astype(int)
    looked_up = codes[np.clip(ys, 0, height - 1)[:, None], np.clip(xs, 0, width - 1)[None]]
    within = ((ys >= 0) & (ys < height))[:, None] & ((xs >= 0) & (xs < width))[None]
    return np.where(within, looked_up, 0).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Targets(Movable):
    """The true masks of a batch: `k` masks for each of `n` prompts on each of `b` scenes, on a shifted lattice."""

    lattice: UInt8[Tensor, "b h w"]
    shift: Float[Tensor, "b 2"]
    table: Bool[Tensor, "b n k codes"]

    def masks(self) -> Bool[Tensor, "b n k h w"]:
        """The masks at the lattice points."""
        scenes, prompts, kinds, _ = self.table.shape
        index = self.lattice.long().flatten(1)[:, None, None].expand(-1, prompts, kinds, -1)
        return self.table.gather(3, index).reshape(scenes, prompts, kinds, *self.lattice.shape[1:])


def to_tensor(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[Tensor, "3 h w"]:
    """A picture as the library's nouns hold it."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
