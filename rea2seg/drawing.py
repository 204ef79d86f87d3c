"""What pictures are drawn with: sizes, a palette, contours, text that can be read on anything."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from torch import Tensor

from rea2seg.images import to_picture

Colour = tuple[int, int, int]

BLUE, ORANGE, GREEN, PURPLE = (0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167)
RED, SKY, YELLOW = (213, 94, 0), (86, 180, 233), (240, 228, 66)
RANKS: tuple[Colour, ...] = (ORANGE, SKY, GREEN, PURPLE, YELLOW, BLUE, RED)
"""Okabe and Ito's palette, told apart by people of every colour vision; its black is left for the ink."""

SOURCES: dict[str, Colour] = {"prompt": SKY, "core": ORANGE, "attention": GREEN, "given": PURPLE}
INK, PAPER, FAINT = (20, 20, 20), (255, 255, 255), (110, 110, 110)

HEAT: tuple[Colour, ...] = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Five stops of viridis: even steps in lightness, for print and for every colour vision."""

MARGIN = 12
SMALLEST, LARGEST = 640, 1600
"""Long side of a picture: below it labels cover too much, above it they are too small to read."""


def view_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width to draw an image at: whole multiples where it grows, so that its pixels stay square."""
    height, width = size
    scale = max(1, -(-SMALLEST // max(size)))
    if max(size) > LARGEST:
        return max(1, round(height * LARGEST / max(size))), max(1, round(width * LARGEST / max(size)))
    return height * scale, width * scale


def picture_at(image: UInt8[Tensor, "3 h w"], size: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    """The image at (height, width); where it grows a lot, its pixels are shown as squares."""
    picture = to_picture(image)
    way = Image.Resampling.NEAREST if size[0] > 8 * picture.height else Image.Resampling.BICUBIC
    return np.asarray(picture.resize(size[::-1], way))


def mask_at(mask: Bool[Tensor, "h w"], size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """The mask at (height, width); a pixel is inside if a third of it is, so that thin parts survive reduction."""
    picture = Image.fromarray(mask.cpu().numpy().astype(np.uint8) * 255)
    return np.asarray(picture.resize(size[::-1], Image.Resampling.BOX)) > 85


def rim(mask: Bool[np.ndarray, "h w"], thickness: int) -> Bool[np.ndarray, "h w"]:
    """The pixels around a mask, so that the smallest one stays visible; at the picture's border, just inside."""
    square = np.ones((3, 3), dtype=bool)
    around = ndimage.binary_dilation(mask, square, thickness) & ~mask
    inner = ndimage.binary_erosion(np.ones_like(mask), square, thickness)
    return np.asarray(around | (mask & ~inner))


def tinted(
    pixels: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], colour: Colour, strength: float
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with a colour laid over a mask, 0 = not at all, 1 = opaque."""
    laid = pixels.astype(np.float32)
    laid[mask] += (np.array(colour) - laid[mask]) * strength
    return laid.round().astype(np.uint8)


def outlined(
    pixels: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], colour: Colour, thickness: int = 3
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with a line of a colour around a mask, inside a thin dark line."""
    return tinted(tinted(pixels, rim(mask, thickness + 1), INK, 0.85), rim(mask, thickness), colour, 1.0)


def heat(values: Float[np.ndarray, "*n"]) -> UInt8[np.ndarray, "*n 3"]:
    """Values in [0, 1] as colours from dark to light."""
    stops = np.linspace(0, 1, len(HEAT))
    channels = [np.interp(values, stops, [colour[channel] for colour in HEAT]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def innermost(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int]:
    """The point (x, y) of a mask farthest from its edge."""
    inside = np.pad(mask, 1)
    y, x = np.unravel_index(int(ndimage.distance_transform_edt(inside).argmax()), inside.shape)
    return int(x) - 1, int(y) - 1


def label_places(
    masks: Sequence[Bool[np.ndarray, "h w"]], radius: int
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """For each mask a point (x, y) in it and a place for its label: near it, off every mask and earlier label."""
    if not masks:
        return []
    height, width = masks[0].shape
    rows, cols = np.mgrid[:height, :width]
    clear = ndimage.distance_transform_edt(~np.logical_or.reduce(masks)) > radius + 8
    edge = min(radius + 2, (height - 1) // 2, (width - 1) // 2)
    clear &= (rows >= edge) & (rows < height - edge) & (cols >= edge) & (cols < width - edge)
    places = []
    for mask in masks:
        x, y = innermost(mask)
        far = (rows - y) ** 2 + (cols - x) ** 2
        # Masks that fill the picture leave no room beside them.
        far = np.where(clear, far, far + 4 * (height + width) ** 2)
        top, left = np.unravel_index(int(far.argmin()), far.shape)
        places.append(((x, y), (int(left), int(top))))
        clear &= (rows - top) ** 2 + (cols - left) ** 2 > (2 * radius + 4) ** 2
    return places


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font."""
    return ImageFont.load_default(size)


def write(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, anchor: str = "la") -> None:
    """White letters with a dark rim, readable on any background."""
    draw.text(place, text, PAPER, font(size), anchor, stroke_width=max(2, size // 8), stroke_fill=INK)


def ink_on(colour: Colour) -> Colour:
    """Dark or white letters, whichever stand out more (WCAG's relative luminance)."""
    linear = [(value / 255 / 12.92) if value < 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in colour]
    return INK if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.18 else PAPER


def label(
    draw: ImageDraw.ImageDraw, point: tuple[int, int], place: tuple[int, int], text: str, colour: Colour, radius: int
) -> None:
    """A number in a disc of a colour, with a line to the point that it names."""
    draw.line((point, place), INK, 4)
    draw.line((point, place), colour, 2)
    x, y = place
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour, INK, 2)
    draw.text(place, text, ink_on(colour), font(round(radius * 1.3)), "mm")


def wrapped(text: str, size: int, width: int) -> list[str]:
    """The text in at most two lines of a width in pixels, cut with dots."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font(size).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    kept = [_cut(line, size, width) for line in lines[:2]]
    if len(lines) > 2:
        kept[-1] = _cut(kept[-1] + " ...", size, width)
    return kept


def _cut(line: str, size: int, width: int) -> str:
    if font(size).getlength(line) <= width:
        return line
    end = line.removesuffix("...").rstrip()
    while end and font(size).getlength(f"{end}...") > width:
        end = end[:-1]
    return f"{end}..."


def stacked(parts: Sequence[Image.Image]) -> Image.Image:
    """Pictures under each other on white, aligned on the left."""
    width = max(part.width for part in parts) + 2 * MARGIN
    page = Image.new("RGB", (width, sum(part.height + MARGIN for part in parts) + MARGIN), PAPER)
    top = MARGIN
    for part in parts:
        page.paste(part, (MARGIN, top))
        top += part.height + MARGIN
    return page


def headline(text: str, width: int, size: int = 20) -> Image.Image:
    """A line or two of text, dark on white."""
    lines = wrapped(text, size, width)
    strip = Image.new("RGB", (width, max(1, len(lines)) * (size + 8)), PAPER)
    draw = ImageDraw.Draw(strip)
    for row, line in enumerate(lines):
        draw.text((0, row * (size + 8)), line, INK, font(size))
    return strip


def luminance(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The picture in grey."""
    return np.asarray(Image.fromarray(image).convert("L").convert("RGB"))
