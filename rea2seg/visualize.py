"""Three pictures of a result: the best masks on the image, all candidates, and where the MLLM looked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from rea2seg.drawing import (
    FAINT,
    INK,
    ORANGE,
    PAPER,
    RANKS,
    SOURCES,
    Colour,
    font,
    headline,
    heat,
    label,
    label_places,
    luminance,
    mask_at,
    outlined,
    picture_at,
    stacked,
    tinted,
    view_size,
    write,
)
from rea2seg.geometry import CellMap
from rea2seg.ranking import NO_CANDIDATES
from rea2seg.structures import Candidate, Query, Ranking, Score

NARROWEST = 640
"""Width in pixels that a legend needs."""
TILE, COLUMNS = 240, 5
RADIUS = 13
SPAN = 1e6
"""The brightest attention over the darkest that still has a colour of its own, at most. Ours."""


def overlay(query: Query, ranking: Ranking, top_k: int = 3) -> Image.Image:
    """The top K masks over the image, numbered, the first one filled; a legend below."""
    size = view_size(query.size)
    best = ranking.top(top_k)
    masks = [mask_at(candidate.mask, size) for candidate in best]
    colours = [RANKS[place % len(RANKS)] for place in range(len(best))]
    pixels = picture_at(query.image, size)
    if masks:
        pixels = tinted(pixels, masks[0], colours[0], 0.35)
    # The first mask last and with the thinnest line: where masks coincide, the others' lines show around it.
    for place in reversed(range(len(best))):
        pixels = outlined(pixels, masks[place], colours[place], 3 + 2 * min(place, 3))
    page = Image.fromarray(pixels)
    draw = ImageDraw.Draw(page)
    for place, (point, beside) in enumerate(label_places(masks, RADIUS)):
        label(draw, point, beside, str(place + 1), colours[place], RADIUS)
    lines = [_line(place, *judged) for place, judged in enumerate(ranking, 1)][:top_k]
    width = max(size[1], NARROWEST)
    return stacked([headline(query.text, width), page, _legend(list(zip(colours, lines, strict=True)), width)])


def contact_sheet(query: Query, ranking: Ranking) -> Image.Image:
    """Every candidate, best first: what lies inside it, its rank, score, source and the segmenter's own estimate."""
    tiles = [_tile(query.image, place, *judged) for place, judged in enumerate(ranking, 1)]
    width = COLUMNS * (TILE + 12) - 12
    parts = [headline(query.text, width), _source_legend([c.source for c in ranking.candidates], width)]
    for start in range(0, len(tiles), COLUMNS):
        row = tiles[start : start + COLUMNS]
        strip = Image.new("RGB", (width, row[0].height), PAPER)
        for column, tile in enumerate(row):
            strip.paste(tile, (column * (TILE + 12), 0))
        parts.append(strip)
    return stacked(parts)


def attention_map(
    query: Query,
    attention: Float[Tensor, "rows cols"],
    cells: CellMap,
    points: Float[Tensor, "p 2"],
    chosen: Sequence[tuple[float, float]] = (),
) -> Image.Image:
    """The prompt token's attention over a grey image, seed points as dots, those behind candidates ringed.

    Colours are logarithmic, up to the most attended token: a few tokens draw nearly all attention, and a linear scale
    would hide the others.
    """
    size, values = view_size(query.size), attention.detach().float().cpu()
    finite = bool(values.isfinite().all())
    x, y = size[1] / query.size[1], size[0] / query.size[0]
    drawn = CellMap(cells.rows, cells.cols, cells.left * x, cells.top * y, cells.cell_width * x, cells.cell_height * y)
    seen = drawn.to_image(torch.full_like(values, float(finite)), size).numpy()
    on_image = drawn.to_image(values.nan_to_num(0, 0, 0), size).numpy()
    low, high = _ends(on_image[seen > 0])
    level = np.log(np.clip(on_image, low, high) / low) / np.log(high / low)
    strength = (seen * (0.2 + 0.6 * level))[..., None]
    grey = luminance(picture_at(query.image, size)).astype(np.float32)
    page = Image.fromarray((grey * 0.9 * (1 - strength) + heat(level) * strength).round().astype(np.uint8))
    draw = ImageDraw.Draw(page)
    for left, top in points.tolist():
        _dot(draw, left * x, top * y)
    for left, top in chosen:
        _ring(draw, left * x, top * y)
    width = max(size[1], NARROWEST)
    nothing = "no attention lies on the image" if finite else "the attention holds numbers that are not finite"
    note = "" if finite and on_image.any() else f"{nothing}: nothing to show"
    return stacked([headline(query.text, width), page, _heat_legend((low, high), bool((seen == 0).any()), note, width)])


def _line(rank: int, candidate: Candidate, score: Score) -> str:
    share = 100 * float(candidate.mask.float().mean())
    return f"{rank}   score {score}   {_origin(candidate)}   {share:.1f}% of the image"


def _origin(candidate: Candidate) -> str:
    """Which search found a candidate, and the segmenter's estimate where there is one."""
    known = not math.isnan(candidate.quality)
    return f"{candidate.source}   quality {candidate.quality:.2f}" if known else candidate.source


def _legend(rows: Sequence[tuple[Colour, str]], width: int) -> Image.Image:
    strip = Image.new("RGB", (width, max(1, len(rows)) * 28), PAPER)
    draw = ImageDraw.Draw(strip)
    if not rows:
        draw.text((0, 2), NO_CANDIDATES, INK, font(18))
    for row, (colour, text) in enumerate(rows):
        draw.rectangle((0, row * 28 + 2, 22, row * 28 + 22), colour, INK)
        draw.text((34, row * 28 + 1), text, INK, font(18))
    return strip


def _source_legend(sources: Sequence[str], width: int) -> Image.Image:
    strip = Image.new("RGB", (width, 26), PAPER)
    draw, left = ImageDraw.Draw(strip), 0.0
    for source in dict.fromkeys(sources):
        draw.rectangle((left, 2, left + 22, 22), SOURCES[source], INK)
        draw.text((left + 30, 1), source, INK, font(18))
        left += 60 + font(18).getlength(source)
    caption = "+ seed point" if "attention" in sources else ""
    draw.text((left, 1), caption if sources else NO_CANDIDATES, INK, font(18))
    return strip


def _tile(image: UInt8[Tensor, "3 h w"], rank: int, candidate: Candidate, score: Score) -> Image.Image:
    scale = TILE / max(image.shape[1:])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[2] * scale))
    mask, colour = mask_at(candidate.mask, size), SOURCES[candidate.source]
    faded = tinted(luminance(picture_at(image, size)), ~mask, PAPER, 0.45)
    pixels = np.where(mask[..., None], picture_at(image, size), faded)
    shown = Image.fromarray(outlined(pixels, mask, colour, 2))
    tile = Image.new("RGB", (TILE, size[0] + 50), PAPER)
    tile.paste(shown, ((TILE - size[1]) // 2, 0))
    draw = ImageDraw.Draw(tile)
    if candidate.seed_xy is not None:
        x, y = (TILE - size[1]) // 2 + candidate.seed_xy[0] * scale, candidate.seed_xy[1] * scale
        write(draw, (x, y), "+", 22, "mm")
    draw.rectangle((0, size[0] + 4, TILE - 1, size[0] + 9), colour)
    draw.text((0, size[0] + 11), f"{rank}   score {score}", INK, font(17))
    draw.text((0, size[0] + 31), _origin(candidate), FAINT, font(14))
    return tile


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float) -> None:
    draw.circle((x, y), 4, PAPER, INK, 2)


def _ring(draw: ImageDraw.ImageDraw, x: float, y: float) -> None:
    draw.circle((x, y), 10, outline=INK, width=5)
    draw.circle((x, y), 9, outline=ORANGE, width=3)


def _ends(attention: Float[np.ndarray, " pixels"]) -> tuple[float, float]:
    """What the darkest and the brightest colour stand for: two positive numbers, the first smaller, even of nothing.

    From the 2nd percentile (ours) on, so that a few tokens with next to none do not take up half of the scale.
    """
    high = max(float(attention.max(initial=0)), 1e-30)
    low = float(np.percentile(attention, 2)) if len(attention) else 0.0
    return float(np.clip(low, high / SPAN, high / 2)), high


def _heat_legend(ends: tuple[float, float], hides: bool, note: str, width: int) -> Image.Image:
    strip = Image.new("RGB", (width, 60), PAPER)
    draw = ImageDraw.Draw(strip)
    if note:
        draw.text((0, 2), note, INK, font(18))
        return strip
    low, high = (f"{end:.2g}" for end in ends)
    left = 110 + round(font(18).getlength(low))
    draw.text((0, 1), f"attention  {low}", INK, font(18))
    strip.paste(Image.fromarray(np.tile(heat(np.linspace(0, 1, 200)), (20, 1, 1))), (left, 2))
    draw.text((left + 208, 1), f"{high}  (logarithmic)", INK, font(18))
    _dot(draw, 8.0, 45.0)
    draw.text((24, 33), "seed point", INK, font(18))
    _dot(draw, 160.0, 45.0)
    _ring(draw, 160.0, 45.0)
    draw.text((178, 33), "seed of a candidate", INK, font(18))
    if hides:
        draw.text((380, 33), "grey: outside the MLLM's view", INK, font(18))
    return strip
