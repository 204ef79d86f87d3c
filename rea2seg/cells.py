"""An MLLM's image tokens as cells of the image's pixels, with its attention and the initial mask's logits on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rea2seg.geometry import CellMap


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
