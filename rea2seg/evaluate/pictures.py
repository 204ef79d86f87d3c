"""Samples to look at: which ones, and the masks over their images."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from rea2seg.drawing import INK, ORANGE, PAPER, SKY, luminance, mask_at, outlined, picture_at, rim, tinted
from rea2seg.evaluate.rows import Found, Row
from rea2seg.masks import decode_rle
from rea2seg.metrics import Convention, iou
from rea2seg.structures import Sample

SIDE = 320
"""Long side of a picture in pixels. Ours: four stand side by side, and an outline of two pixels is clear."""
SHOWN = 6
"""Samples of each kind. Ours: what a reader looks through."""
CLEARLY = 0.1
"""By how much an IoU is called far better than another. Ours."""


@dataclass(frozen=True)
class Cases:
    """Places of samples in the benchmark's order, the most telling first, and what they have in common."""

    title: str
    note: str
    places: list[int]


@dataclass(frozen=True)
class Picture:
    """An image as a data URI, with a title and a line below it."""

    title: str
    note: str
    uri: str


def telling_cases(rows: Sequence[Row], convention: Convention) -> list[Cases]:
    """The best and the worst samples; kinds of which there are none are left out."""

    def worth(place: int, key: str) -> float:
        overlaps = rows[place].overlaps
        return iou(overlaps[key], convention) if key in overlaps else 0.0

    found = [place for place, row in enumerate(rows) if row.has_target]
    begun = [place for place in found if "initial" in rows[place].overlaps]
    gained = {place: worth(place, "top1") - worth(place, "initial") for place in begun}
    missed = {place: worth(place, "oracle") - worth(place, "top1") for place in found}
    reach = {place: -worth(place, "oracle") for place in found}
    false = {place: float(row.overlaps["top1"].union) for place, row in enumerate(rows) if not row.has_target}
    kinds = [
        ("Gained most", "The first choice is far better than the initial mask.", _highest(gained, above=CLEARLY)),
        (
            "Lost most in the ranking",
            "A far better candidate was there and not chosen.",
            _highest(missed, above=CLEARLY),
        ),
        ("Found worst", "No candidate comes near the target.", _highest(reach, above=-0.5)),
        ("Answered where nothing fits", "Nothing in the image answers the question.", _highest(false)),
    ]
    return [Cases(*kind) for kind in kinds if kind[-1]]


def _highest(values: dict[int, float], above: float = 0.0) -> list[int]:
    """The places of the highest values above a level; of equals the earlier first."""
    return sorted((place for place in values if values[place] > above), key=lambda place: -values[place])[:SHOWN]


def pictures_of(sample: Sample, row: Row, convention: Convention) -> list[Picture]:
    """The image with its target, then the initial mask, the first choice and the best candidate over it."""
    height, width = sample.image.shape[1:]
    scale = SIDE / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    pixels = picture_at(sample.image, size)
    truth = np.zeros(size, dtype=bool) if sample.truth is None else mask_at(sample.truth, size)
    about = f"{row.target_area} pixels" if row.has_target else "none"
    pictures = [Picture("target", about, _jpeg(outlined(pixels, truth, SKY, 2)))]
    for name, title in (("initial", "initial mask"), ("top1", "first choice"), ("oracle", "best candidate")):
        if name in row.masks:
            note = f"IoU {iou(row.overlaps[name], convention):.3f}{_judgement(row, name)}"
            pictures.append(Picture(title, note, _jpeg(_laid_over(pixels, decode_rle(row.masks[name]), truth))))
    return pictures


def _judgement(row: Row, name: str) -> str:
    """Of a candidate: the evaluator's estimate, the rank that it led to, and which search found it."""
    if name == "initial":
        return ""
    if name == "top1" and row.no_target:
        return ", answered with no target"
    rank, found = next(
        (rank, found) for rank, found in enumerate(row.ranking, 1) if found.overlap == row.overlaps[name]
    )
    return f", {_score(found)}, rank {rank} of {len(row.ranking)}, {found.source} search"


def _score(found: Found) -> str:
    return "not scored" if found.score is None else f"scored {found.score:.3f}"


def _laid_over(
    pixels: UInt8[np.ndarray, "h w 3"], mask: Bool[Tensor, "_ _"], truth: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """In colour what lies inside the mask, its edge orange; the target's edge is blue."""
    inside = mask_at(mask, pixels.shape[:2])
    faded = tinted(luminance(pixels), ~inside, PAPER, 0.45)
    drawn = outlined(np.where(inside[..., None], pixels, faded), inside, ORANGE, 2)
    return tinted(tinted(drawn, rim(truth, 2), INK, 0.5), rim(truth, 1), SKY, 1.0)


def _jpeg(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    data = BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
