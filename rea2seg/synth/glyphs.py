"""Marks and letters as bitmaps, looked up pixel by pixel: every processor draws the same."""

from functools import cache

import numpy as np
from jaxtyping import Bool, Float32

from rea2seg.synth.shapes import Field

ALPHABET = "AEHJLOPSTYZ"
"""Letters any two of which differ in at least three of their three by five squares."""

_BITS = {
    "A": "010 101 111 101 101",
    "E": "111 100 110 100 111",
    "H": "101 101 111 101 101",
    "J": "001 001 001 101 111",
    "L": "100 100 100 100 111",
    "O": "111 101 101 101 111",
    "P": "111 101 111 100 100",
    "S": "111 100 111 001 111",
    "T": "111 010 010 010 010",
    "Y": "101 101 111 010 010",
    "Z": "111 001 010 100 111",
    "cross": "0011100 0011100 1111111 1111111 1111111 0011100 0011100",
    "diamond": "0001000 0011100 0111110 1111111 0111110 0011100 0001000",
    "crescent": "0011110 0111000 1110000 1110000 1110000 0111000 0011110",
}
_TALLEST = 0.75
"""Of letters, in radii. Ours: they fit below the roof of a house."""
_MARK = 0.62
"""The side of a mark, in radii, where there is room for it. Ours: 13 pixels of 256 on a medium thing."""


@cache
def _bitmap(text: str) -> Bool[np.ndarray, "rows cols"]:
    """A mark, or letters side by side with a square between them."""
    drawn = [text] if text in _BITS else list(text)
    columns: list[np.ndarray] = []
    for name in drawn:
        rows = np.array([[bit == "1" for bit in row] for row in _BITS[name].split()])
        columns += [rows, np.zeros((len(rows), 1), bool)]
    return np.concatenate(columns[:-1], axis=1)


def inked(text: str, u: Field, v: Field, width: float) -> Bool[np.ndarray, "h w"]:
    """Where a mark or letters leave ink, centred at the origin and at most `width` wide; u is not mirrored."""
    bitmap = _bitmap(text)
    rows, cols = bitmap.shape
    square = min(width / cols, (_MARK if text in _BITS and len(text) > 1 else _TALLEST) / rows)
    col, row = _squares(u, square, cols), _squares(v, square, rows)
    inside = (col >= 0) & (col < cols) & (row >= 0) & (row < rows)
    found: Bool[np.ndarray, "h w"] = inside & bitmap[row.clip(0, rows - 1), col.clip(0, cols - 1)]
    return found


def _squares(place: Float32[np.ndarray, "h w"], square: float, count: int) -> np.ndarray:
    """The square of a bitmap that a place lies in, which may be outside of it."""
    return np.floor(place * (1 / square) + count / 2).astype(np.int64)
