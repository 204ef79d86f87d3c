"""Where an image lies in what a model sees: among the tokens of an MLLM, and on the canvas of a segmenter.

Coordinates are those of `rea2seg.structures`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class CellMap:
    """Which pixels of the image each image token of an MLLM stands for.

    Token (row, col) covers x in [left + col * cell_width, left + (col + 1) * cell_width), likewise y. The numbers are
    in pixels of the original image: they undo the crop, the padding or the stretch with which the MLLM saw it.
    """

    rows: int
    cols: int
    left: float
    top: float
    cell_width: float
    cell_height: float

    @classmethod
    def stretched(cls, size: tuple[int, int], grid: tuple[int, int]) -> CellMap:
        """The whole image was resized to the token grid, aspect ratio not kept (Qwen2.5-VL, InternVL)."""
        (height, width), (rows, cols) = size, grid
        return cls(rows, cols, 0.0, 0.0, width / cols, height / rows)

    @classmethod
    def padded(cls, size: tuple[int, int], grid: int) -> CellMap:
        """The longest side was resized to the token grid and the short side padded equally on both ends."""
        height, width = size
        cell = max(height, width) / grid
        return cls(grid, grid, (width - grid * cell) / 2, (height - grid * cell) / 2, cell, cell)

    @classmethod
    def cropped(cls, size: tuple[int, int], grid: int, side: int) -> CellMap:
        """The shortest side was resized to `side` pixels and the centre cropped (CLIP in LISA and READ).

        The long side is floored and the crop offset is an integer, as CLIP's processor does it.
        """
        height, width = size
        short = min(height, width)
        resized_height, resized_width = side * height // short, side * width // short
        scale_x, scale_y = width / resized_width, height / resized_height
        left, top = (resized_width - side) // 2 * scale_x, (resized_height - side) // 2 * scale_y
        return cls(grid, grid, left, top, side / grid * scale_x, side / grid * scale_y)

    def boxes(self) -> Float[Tensor, "tokens 4"]:
        """The pixel box (left, top, right, bottom) of every token, row by row. Boxes may reach outside the image."""
        row = torch.arange(self.rows).repeat_interleave(self.cols)
        col = torch.arange(self.cols).repeat(self.rows)
        left, top = self.left + col * self.cell_width, self.top + row * self.cell_height
        return torch.stack([left, top, left + self.cell_width, top + self.cell_height], dim=1)

    def to_image(self, values: Float[Tensor, "rows cols"], size: tuple[int, int]) -> Float[Tensor, "h w"]:
        """At every pixel of an image of (height, width) the value of its token; 0 where no token looks."""
        row = 1 + ((torch.arange(size[0]) + 0.5 - self.top) / self.cell_height).floor().long()
        col = 1 + ((torch.arange(size[1]) + 0.5 - self.left) / self.cell_width).floor().long()
        return functional.pad(values, (1, 1, 1, 1))[row.clamp(0, self.rows + 1)][:, col.clamp(0, self.cols + 1)]


@dataclass(frozen=True)
class Canvas:
    """Where an image lies on the square input of a segmenter.

    `resized` is the image's (height, width) in the top-left corner of a canvas of `side` x `side` pixels, the rest is
    padding (SAM); `None` says the image was stretched over the whole canvas (SAM 2).
    """

    size: tuple[int, int]
    side: int
    resized: tuple[int, int] | None

    def from_pixels(self, xy: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 2"]:
        """Points (x, y) of the image as points of the canvas."""
        height, width = self.resized or (self.side, self.side)
        return xy * torch.tensor([width / self.size[1], height / self.size[0]], dtype=xy.dtype, device=xy.device)

    def content(self, lowres: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n rows cols"]:
        """The part of maps on the canvas, of any resolution, whose pixel centres lie on the image."""
        scale = lowres.shape[-1] / self.side
        rows, cols = (math.ceil(length * scale - 0.5) for length in self.resized or (self.side, self.side))
        return lowres[..., : max(1, rows), : max(1, cols)]

    def to_image(self, lowres: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c height width"]:
        """Logits on the canvas as logits on the image, with upstream's interpolation (bilinear, twice for SAM)."""
        if self.resized is not None:
            lowres = functional.interpolate(lowres, (self.side, self.side), mode="bilinear", align_corners=False)
            lowres = lowres[..., : self.resized[0], : self.resized[1]]
        return functional.interpolate(lowres, self.size, mode="bilinear", align_corners=False)
