"""Masks to be judged, drawn without a segmenter: the truth, what could be taken for it, and damaged forms of both."""

from collections.abc import Sequence
from math import isqrt

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from scipy import ndimage
from torch import Tensor

from rea2seg.evaluators.internvl import mask_pixels
from rea2seg.synth.queries import Question
from rea2seg.synth.worlds import World
from training.scenes import code_lattice, code_set

Mask = Bool[np.ndarray, "h w"]
AnyMask = Bool[np.ndarray, "_ _"]
"""A mask among others that belong to pictures of other sizes."""
FINE = 4
"""Squares a side inside one token's cell."""


def likeliest_objects(rng: np.random.Generator, world: World, question: Question) -> list[int]:
    """All objects in random order, but those of the target's kind first; the target is one of them."""
    kind = world.things[question.target[0]].kind
    order = rng.permutation(len(world.things)).tolist()
    return sorted(order, key=lambda index: world.things[index].kind != kind)


def damaged(rng: np.random.Generator, mask: Mask) -> Mask:
    """A mask grown, shrunk, moved or cut, as a segmenter's mistakes are."""
    choice = int(rng.integers(5))
    if choice == 0:
        return ndimage.binary_dilation(mask, iterations=int(rng.integers(1, 5)))
    if choice == 1:
        eroded = ndimage.binary_erosion(mask, iterations=int(rng.integers(1, 3)))
        return eroded if eroded.any() else mask
    if choice == 2:
        moved: Mask = ndimage.shift(mask, rng.integers(-6, 7, 2), order=0)
        return moved if moved.any() else mask
    if choice == 3:
        ys, xs = np.nonzero(mask)
        rows, cols = np.arange(mask.shape[0])[:, None], np.arange(mask.shape[1])[None]
        inside, at = (ys, rows) if rng.random() < 0.5 else (xs, cols)
        border = np.quantile(inside, rng.uniform(0.25, 0.75))
        kept: Mask = mask & ((at <= border) if rng.random() < 0.5 else (at >= border))
        return kept if kept.any() else mask
    stained: Mask = mask | blob(rng, mask.shape)
    return stained


def blob(rng: np.random.Generator, shape: tuple[int, ...]) -> Mask:
    """An ellipse somewhere, which belongs to nothing."""
    height, width = shape
    ys, xs = np.mgrid[:height, :width]
    centre, radii = rng.random(2) * (height, width), rng.uniform(0.04, 0.15, 2) * max(shape)
    mask: Mask = ((ys - centre[0]) / radii[0]) ** 2 + ((xs - centre[1]) / radii[1]) ** 2 < 1
    return mask if mask.any() else np.ones(shape, bool)


def draw_masks(
    rng: np.random.Generator, world: World, codes: UInt8[np.ndarray, "h w"], question: Question, truth: Mask, count: int
) -> list[Mask]:
    """`count` masks for one question, shuffled: the truth in three of four groups, objects, parts and groups of them.

    Many are damaged, the truth too: a search finds most things several times, right or wrong. All shares are ours.
    """
    kind = world.things[question.target[0]].kind
    objects = likeliest_objects(rng, world, question)
    masks: list[Mask] = [truth] if rng.random() < 0.75 else []
    while len(masks) < count:
        choice = rng.random()
        if choice < 0.35 and objects:
            mask = code_set([objects.pop(0)])[codes]
        elif choice < 0.5:
            part = int(rng.integers(1, 3))
            mask = code_set([int(rng.integers(len(world.things)))], part)[codes]
        elif choice < 0.6:
            mask = code_set(thing.index for thing in world.of_kind(kind))[codes]
        elif choice < 0.7:
            mask = code_set(rng.permutation(len(world.things))[: int(rng.integers(2, 5))].tolist())[codes]
        elif choice < 0.95:
            mask = damaged(rng, masks[int(rng.integers(len(masks)))] if masks else truth)
        else:
            mask = blob(rng, truth.shape)
        if mask.any():
            masks.append(mask)
    masks = [damaged(rng, mask) if rng.random() < 0.3 else mask for mask in masks]
    return [masks[int(index)] for index in rng.permutation(count)]


def shown_masks(masks: Sequence[AnyMask], side: int) -> Float[Tensor, "m 3 side side"]:
    """Masks as the pictures that the evaluator sees; their sizes may differ."""
    pictures = [mask_pixels(torch.from_numpy(mask)[None], side) for mask in masks]
    return torch.cat(pictures) if pictures else torch.zeros(0, 3, side, side)


def token_cells(codes: UInt8[np.ndarray, "h w"], grid: int, padded: bool) -> UInt8[np.ndarray, "grid grid fine"]:
    """Samples of the codes inside every token's cell, for pictures letterboxed or stretched onto the token grid."""
    height, width = codes.shape
    cells, long = grid * FINE, max(height, width)
    span = (cells * height / long, cells * width / long) if padded else (float(cells), float(cells))
    shift = np.array([-(cells - span[1]) / 2, -(cells - span[0]) / 2])
    lattice = code_lattice(codes, cells, shift, span)
    return lattice.reshape(grid, FINE, grid, FINE).transpose(0, 2, 1, 3).reshape(grid, grid, FINE * FINE)


def coverage(masks: Sequence[AnyMask], grid: int) -> Float[Tensor, "m tokens fine"]:
    """The share of each of 4 x 4 squares inside every token that a mask covers, on pictures stretched to the grid."""
    side = grid * FINE
    squares = np.zeros((len(masks), grid, FINE, grid, FINE), np.float32)
    for index, mask in enumerate(masks):
        picture = Image.fromarray(mask.astype(np.uint8) * 255).resize((side, side), Image.Resampling.BOX)
        squares[index] = (np.asarray(picture) / 255).reshape(grid, FINE, grid, FINE)
    return torch.from_numpy(squares).transpose(2, 3).reshape(len(masks), grid * grid, FINE * FINE)


def tokens_inside(share: Float[Tensor, "*n tokens"]) -> Bool[Tensor, "*n tokens"]:
    """The tokens that lie inside a target which covers these shares of them: at least half as much as the fullest."""
    return (share >= 0.5 * share.amax(-1, keepdim=True)) & (share > 0)


def connected(inside: Bool[Tensor, "n tokens"]) -> Int[Tensor, "n tokens"]:
    """Numbers the connected parts, corners included, of what lies inside on square grids: from 1 on, 0 outside."""
    grids = inside.view(-1, isqrt(inside.shape[1]), isqrt(inside.shape[1])).numpy()
    parts = [ndimage.label(grid, structure=np.ones((3, 3)))[0] for grid in grids]
    return torch.from_numpy(np.array(parts, np.int64).reshape(inside.shape))


def tokens_under(masks: Sequence[AnyMask], image_grid: int, mask_grid: int) -> Bool[Tensor, "m mask_tokens tokens"]:
    """Which image tokens lie under the part of a mask that each of its tokens shows, on grids of those sides."""
    place = torch.arange(image_grid) * mask_grid // image_grid
    cells = (mask_grid * place[:, None] + place).flatten() == torch.arange(mask_grid * mask_grid)[:, None]
    return tokens_inside(cells * coverage(masks, image_grid).mean(-1)[:, None])
