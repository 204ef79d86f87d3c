"""Example pictures of a training: what a model was shown, what is right (green) and what it says (orange)."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from rea2seg.drawing import (
    FAINT,
    GREEN,
    INK,
    ORANGE,
    PAPER,
    RED,
    Colour,
    font,
    headline,
    heat,
    luminance,
    mask_at,
    outlined,
    picture_at,
    stacked,
    tinted,
    write,
)

SHOWN = 4
"""How many examples of a batch are drawn. Ours."""
SIDE = 320
"""The longer side of a panel in pixels."""
TRUTH, GUESS = GREEN, ORANGE
CLIP, IMAGENET = (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD), (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
"""The means and deviations that pictures are normalised with for the generator and for the evaluator."""


def restored(
    pixels: Float[Tensor, "3 h w"], mean: Sequence[float], deviation: Sequence[float]
) -> UInt8[Tensor, "3 h w"]:
    """The picture that was normalised with these for a model."""
    scaled = pixels.cpu() * torch.tensor(deviation)[:, None, None] + torch.tensor(mean)[:, None, None]
    return (scaled * 255).round().clamp(0, 255).to(torch.uint8)


def from_lattice(mask: Bool[Tensor, "cells cells"], shift: Float[Tensor, " 2"], side: int) -> Bool[Tensor, "side side"]:
    """A mask known on a lattice moved by `shift` (x, y) cells, at every pixel of the canvas: that of the next point."""
    cells, pixels = len(mask), torch.arange(side) + 0.5
    cols, rows = ((pixels * cells / side - move).floor().long().clamp(0, cells - 1) for move in shift.tolist())
    return mask.cpu()[rows][:, cols]


def on_picture(
    canvas: UInt8[Tensor, "3 side side"],
    resized: Int[Tensor, " 2"],
    truth: Bool[Tensor, "cells cells"],
    shift: Float[Tensor, " 2"],
    lowres: Float[Tensor, "h w"],
) -> tuple[UInt8[Tensor, "3 height width"], Bool[Tensor, "height width"], Bool[Tensor, "height width"]]:
    """The picture in the corner of a segmenter's canvas, the true mask, known on a lattice, and that of the logits."""
    side, (height, width) = canvas.shape[-1], resized.tolist()
    logits = functional.interpolate(
        lowres.float().cpu()[None, None], (side, side), mode="bilinear", align_corners=False
    )
    known = from_lattice(truth, shift, side)
    return canvas.cpu()[:, :height, :width], known[:height, :width], logits[0, 0, :height, :width] > 0


def plain(image: UInt8[Tensor, "3 h w"]) -> UInt8[np.ndarray, "height width 3"]:
    """The image as it is."""
    return picture_at(image, panel_size(image))


def compared(
    image: UInt8[Tensor, "3 h w"], truth: Bool[Tensor, "h w"], guess: Bool[Tensor, "h w"]
) -> UInt8[np.ndarray, "height width 3"]:
    """The image with the model's mask as a tint and the true one as an outline."""
    size = panel_size(image)
    filled = tinted(picture_at(image, size), mask_at(guess, size), GUESS, 0.6)
    return outlined(filled, mask_at(truth, size), TRUTH, 2)


def pointed(panel: UInt8[np.ndarray, "h w 3"], points: Float[Tensor, "p 2"]) -> UInt8[np.ndarray, "h w 3"]:
    """A panel with + at points (x, y) in its pixels."""
    page = Image.fromarray(panel)
    for x, y in points.tolist():
        write(ImageDraw.Draw(page), (x, y), "+", 20, "mm")
    return np.asarray(page)


def boxed(panel: UInt8[np.ndarray, "h w 3"], box: Float[Tensor, " 4"]) -> UInt8[np.ndarray, "h w 3"]:
    """A panel with a white box (left, top, right, bottom) in its pixels."""
    page = Image.fromarray(panel)
    ImageDraw.Draw(page).rectangle(box.tolist(), outline=PAPER, width=2)
    return np.asarray(page)


def attended(
    image: UInt8[Tensor, "3 side side"], attention: Float[Tensor, "rows cols"], inside: Bool[Tensor, "rows cols"]
) -> UInt8[np.ndarray, "height width 3"]:
    """How strongly each token of a square image is attended to, up to the strongest; the right ones are outlined."""
    size = panel_size(image)
    strength = (attention.float() / attention.max().clamp(min=1e-12)).cpu().numpy()
    hot = heat(_cells(strength, size))
    laid = 0.4 * luminance(picture_at(image, size)) + 0.6 * hot
    return outlined(laid.round().astype(np.uint8), _cells(inside.cpu().numpy(), size), TRUTH, 2)


def named(
    image: UInt8[Tensor, "3 side side"],
    paint: UInt8[np.ndarray, "rows cols 3"],
    things: Bool[np.ndarray, "rows cols"],
    words: Sequence[tuple[int, int, str, bool]],
) -> UInt8[np.ndarray, "height width 3"]:
    """On a grey image the tokens that are said to be things, in paint.

    `words` are (row, column, word, whether it is right), written on their tokens in green or red.
    """
    size = panel_size(image)
    painted = np.where(_cells(things, size)[..., None], _cells(paint, size), luminance(picture_at(image, size)))
    page = Image.fromarray(painted)
    across, down = size[1] / things.shape[1], size[0] / things.shape[0]
    for row, col, word, right in words:
        place, colour = ((col + 0.5) * across, (row + 0.5) * down), TRUTH if right else RED
        ImageDraw.Draw(page).text(place, word, colour, font(14), "mm", stroke_width=2, stroke_fill=PAPER)
    return np.asarray(page)


def judged(
    masks: Sequence[UInt8[Tensor, "3 side side"]], said: Sequence[float], true: Sequence[float]
) -> UInt8[np.ndarray, "height width 3"]:
    """Mask beside mask, and below each the IoU that it is said to have | the one that it has."""
    side = SIDE // 2
    page = Image.new("RGB", (max(len(masks), 1) * (side + 8) - 8, side + 26), PAPER)
    draw = ImageDraw.Draw(page)
    for place, (mask, guess, right) in enumerate(zip(masks, said, true, strict=True)):
        left = place * (side + 8)
        page.paste(Image.fromarray(picture_at(mask, (side, side))), (left, 0))
        draw.rectangle((left, 0, left + side - 1, side - 1), outline=FAINT)
        draw.text((left, side + 3), f"{guess:.2f} | {right:.2f}", _nearness(guess, right), font(18))
    return np.asarray(page)


def captioned(text: str, *panels: UInt8[np.ndarray, "_ _ 3"]) -> Image.Image:
    """Panels beside each other under a line or two of text, if there is any."""
    height, width = max(panel.shape[0] for panel in panels), sum(panel.shape[1] + 8 for panel in panels) - 8
    page, left = Image.new("RGB", (width, height), PAPER), 0
    for panel in panels:
        page.paste(Image.fromarray(panel), (left, 0))
        left += panel.shape[1] + 8
    return stacked([headline(text, width, 16), page] if text else [page])


def panel_size(image: UInt8[Tensor, "3 h w"]) -> tuple[int, int]:
    """Height and width of the panel that shows an image."""
    scale = SIDE / max(image.shape[1:])
    return max(1, round(image.shape[1] * scale)), max(1, round(image.shape[2] * scale))


def _cells(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """At every pixel the value of the cell that it lies in."""
    rows, cols = (np.arange(size[axis]) * values.shape[axis] // size[axis] for axis in (0, 1))
    looked_up: np.ndarray = values[rows][:, cols]
    return looked_up


def _nearness(said: float, true: float) -> Colour:
    """Red where a score is far off. A fifth is ours."""
    return RED if abs(said - true) > 0.2 else INK
