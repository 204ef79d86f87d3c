"""Where the MLLM looks: its most attended image tokens, and points inside them (section 4.2 of the paper).

The paper gives neither the numbers of tokens and points nor the way to spread points; the rules here are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rea2seg.errors import require_positive
from rea2seg.geometry import CellMap
from rea2seg.seeding import generator_for
from rea2seg.structures import Scene


@dataclass(frozen=True)
class SeedSettings:
    """How many tokens are taken by attention, how many of them are kept by their logits, and points in all."""

    attended: int = 48  # ours
    kept: int = 16  # ours
    points: int = 24  # ours
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(attended=self.attended, kept=self.kept, points=self.points)


@dataclass(frozen=True, eq=False)
class Cells:
    """The image tokens whose centre lies on the image, in their order.

    `pixels` are their pixels as (left, top, right, bottom), ends excluded, never empty; `logits` the means of the
    initial mask's logits over them. `lowest` is the pixel with the lowest logit of all.
    """

    centres: Float[Tensor, "n 2"]
    pixels: Int[Tensor, "n 4"]
    attention: Float[Tensor, " n"]
    logits: Float[Tensor, " n"]
    lowest: Float[Tensor, " 2"]


@dataclass(frozen=True, eq=False)
class Seeds:
    """The kept tokens, best mean logit first, and point prompts inside them; `owner` says in which token each lies."""

    centres: Float[Tensor, "m 2"]
    attention: Float[Tensor, " m"]
    points: Float[Tensor, "p 2"]
    owner: Int[Tensor, " p"]


def descending(values: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Indices from the highest value to the lowest; of equals the lower index first."""
    return values.argsort(descending=True, stable=True)


def cell_pixels(boxes: Float[Tensor, "n 4"], size: tuple[int, int]) -> Int[Tensor, "n 4"]:
    """The pixels whose centres lie in each box: (left, top, right, bottom), ends excluded, in an image of `size`.

    A box too small to hold a pixel's centre gets the pixel nearest to its own.
    """
    limit = torch.tensor([size[1], size[0]])
    first = (boxes[:, :2] - 0.5).ceil().long().clamp(min=0)
    last = torch.minimum((boxes[:, 2:] - 0.5).ceil().long(), limit)
    nearest = torch.minimum(((boxes[:, :2] + boxes[:, 2:]) / 2).long().clamp(min=0), limit - 1)
    hollow = last <= first
    return torch.cat([torch.where(hollow, nearest, first), torch.where(hollow, nearest + 1, last)], dim=1)


def cell_means(logits: Float[Tensor, "h w"], pixels: Int[Tensor, "n 4"]) -> Float[Tensor, " n"]:
    """The mean logit over the pixels of each cell."""
    sums = torch.nn.functional.pad(logits.double().cumsum(0).cumsum(1), (1, 0, 1, 0))
    left, top, right, bottom = pixels.unbind(1)
    total = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return (total / ((right - left) * (bottom - top))).to(logits)


def cells_on_image(attention: Float[Tensor, "rows cols"], logits: Float[Tensor, "h w"], grid: CellMap) -> Cells | None:
    """The tokens that look at the image; None if there are none, or a map is not finite."""
    size, boxes = (logits.shape[0], logits.shape[1]), grid.boxes()
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centres >= 0) & (centres < torch.tensor([size[1], size[0]]))).all(1)
    if not inside.any() or not attention.isfinite().all() or not logits.isfinite().all():
        return None
    pixels = cell_pixels(boxes[inside], size)
    row, col = divmod(int((logits == logits.min()).flatten().nonzero()[0]), size[1])
    lowest = torch.tensor([col + 0.5, row + 0.5])
    return Cells(centres[inside], pixels, attention.flatten()[inside], cell_means(logits, pixels), lowest)


def share_points(attention: Float[Tensor, " m"], budget: int) -> list[int]:
    """Points for each of m seeds, at least one each: in proportion to attention, by largest remainders.

    The budget is m or more. Where a proportional share is below one point, the others share what is left.
    """
    weights = attention.double().tolist()
    if sum(weights) == 0:
        weights = [1.0] * len(weights)
    shares, rest = [1] * len(weights), list(range(len(weights)))
    while True:
        left, total = budget - (len(weights) - len(rest)), sum(weights[i] for i in rest)
        quotas = {i: left * weights[i] / total for i in rest}
        rest = [i for i in rest if quotas[i] >= 1]
        if len(rest) == len(quotas):
            break
    for i in rest:
        shares[i] = int(quotas[i])
    by_remainder = sorted(rest, key=lambda i: shares[i] - quotas[i])
    for i in by_remainder[: budget - sum(shares)]:
        shares[i] += 1
    return shares


def draw_points(
    centre: Float[Tensor, " 2"], pixels: Int[Tensor, " 4"], count: int, generator: torch.Generator
) -> Float[Tensor, "count 2"]:
    """The centre of a cell, then centres of pixels drawn from it."""
    uniform = torch.rand((count - 1, 2), generator=generator, dtype=torch.float64)
    drawn = pixels[:2] + (uniform * (pixels[2:] - pixels[:2])).floor() + 0.5
    return torch.cat([centre[None], drawn.to(centre)])


def pick_seeds(cells: Cells, settings: SeedSettings, query_id: str) -> Seeds:
    """Of the most attended cells those with the highest logits: attention sinks lie where the initial mask is not.

    Never more cells than points.
    """
    attended = descending(cells.attention)[: settings.attended]
    kept = attended[descending(cells.logits[attended])][: min(settings.kept, settings.points)]
    shares = share_points(cells.attention[kept], settings.points)
    generator = generator_for(settings.seed, query_id)
    points = [
        draw_points(cells.centres[cell], cells.pixels[cell], count, generator)
        for cell, count in zip(kept, shares, strict=True)
    ]
    owner = torch.arange(len(kept)).repeat_interleave(torch.tensor(shares))
    return Seeds(cells.centres[kept], cells.attention[kept], torch.cat(points), owner)


# Searches of one scene follow each other: remembering the last scene spares the second its full-size logits.
@lru_cache(maxsize=1)
def cells_of(scene: Scene) -> Cells | None:
    """The cells of a scene; None if it has no grounding, no initial mask, or nothing to see in them."""
    if scene.grounding is None or scene.initial is None:
        return None
    logits = scene.initial.upsample()[0].detach().float().cpu()
    return cells_on_image(scene.grounding.attention[0].detach().float().cpu(), logits, scene.grounding.cells)


def seeds_of(scene: Scene, settings: SeedSettings) -> Seeds | None:
    """The seeds of a scene, the same for every search with the same settings; None if there are none."""
    cells = cells_of(scene)
    return None if cells is None else pick_seeds(cells, settings, scene.query.id)
