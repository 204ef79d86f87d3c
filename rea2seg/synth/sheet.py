"""Contact sheets: pictures with the true answer outlined and the question below, for a person to judge."""

from collections.abc import Sequence
from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw

from rea2seg.drawing import INK, PAPER, font, outlined
from rea2seg.images import to_picture
from rea2seg.structures import Sample

COLUMNS = 4
_GAP = 8
_LINE = 15
_LINES = 7
_FONT_SIZE = 12


def contact_sheet(samples: Sequence[Sample]) -> Image.Image:
    """All samples on one picture, four in a row."""
    side = max(max(sample.image.shape[1:]) for sample in samples)
    width, height = side + _GAP, side + _GAP + _LINE * _LINES
    rows = -(-len(samples) // COLUMNS)
    sheet = Image.new("RGB", (width * COLUMNS + _GAP, height * rows + _GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, sample in enumerate(samples):
        left, top = _GAP + place % COLUMNS * width, _GAP + place // COLUMNS * height
        picture = to_picture(sample.image)
        if sample.truth is not None:
            picture = Image.fromarray(outlined(np.asarray(picture), sample.truth.numpy(), PAPER, 2))
        sheet.paste(picture, (left, top))
        draw.text((left, top + side + 2), _caption(sample, side), INK, font(_FONT_SIZE), spacing=2)
    return sheet


def _caption(sample: Sample, side: int) -> str:
    """Id, question and reasoning, cut to the space there is."""
    characters = side // 6
    lines = [
        f"{sample.id} {sample.component}, {sample.granularity}",
        *wrap(sample.query, characters),
        *wrap(sample.reasoning, characters),
    ]
    return "\n".join(lines[:_LINES])
