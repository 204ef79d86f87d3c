"""Contact sheets: pictures with the true answer outlined and the question below, for a person to judge."""

from collections.abc import Sequence
from textwrap import wrap

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont

from rea2seg.structures import Sample

COLUMNS = 4
_GAP = 8
_LINE = 15
_LINES = 7
_FONT_SIZE = 12


def outlined(image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"] | None) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with a line around the mask, white with a black border, drawn outside so that nothing is hidden."""
    if mask is None:
        return image
    drawn = image.copy()
    near, far = _grown(mask, 2), _grown(mask, 3)
    drawn[far & ~near] = 0
    drawn[near & ~mask] = 255
    return drawn


def _grown(mask: Bool[np.ndarray, "h w"], steps: int) -> Bool[np.ndarray, "h w"]:
    for _ in range(steps):
        padded = np.pad(mask, 1)
        mask = mask | padded[2:, 1:-1] | padded[:-2, 1:-1] | padded[1:-1, 2:] | padded[1:-1, :-2]
    return mask


def contact_sheet(samples: Sequence[Sample]) -> Image.Image:
    """All samples on one picture, four in a row."""
    side = max(max(sample.image.shape[1:]) for sample in samples)
    width, height = side + _GAP, side + _GAP + _LINE * _LINES
    rows = -(-len(samples) // COLUMNS)
    sheet = Image.new("RGB", (width * COLUMNS + _GAP, height * rows + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT_SIZE)
    for place, sample in enumerate(samples):
        left, top = _GAP + place % COLUMNS * width, _GAP + place // COLUMNS * height
        mask = None if sample.truth is None else sample.truth.numpy()
        picture = np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy())
        sheet.paste(Image.fromarray(outlined(picture, mask)), (left, top))
        draw.text((left, top + side + 2), _caption(sample, side), "black", font, spacing=2)
    return sheet


def _caption(sample: Sample, side: int) -> str:
    """Id, question and reasoning, cut to the space there is."""
    characters = side // 6
    lines = [f"{sample.id} {sample.granularity}", *wrap(sample.query, characters), *wrap(sample.reasoning, characters)]
    return "\n".join(lines[:_LINES])
