"""The outlines of the kinds, as functions of local coordinates.

A thing fills about the unit disc: u runs to the right, v downwards, one unit is its radius. Each function returns two
fields that are negative inside and grow about as fast as the distance: the whole thing, and its first part (which
reaches as far as it likes outside the whole). Only additions, products, comparisons and square roots: these give the
same bits on every processor.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

Field = Float32[np.ndarray, "h w"]
Outline = tuple[Field, Field]

EXTENT = 1.2
"""No outline reaches farther from the centre than this, along u or v."""


def _disc(u: Field, v: Field, radius: float) -> Field:
    field: Field = np.sqrt(u * u + v * v) - radius
    return field


def _hoop(u: Field, v: Field, radius: float, thickness: float) -> Field:
    field: Field = np.abs(_disc(u, v, radius)) - thickness / 2
    return field


def _block(u: Field, v: Field, half_width: float, half_height: float) -> Field:
    field: Field = np.maximum(np.abs(u) - half_width, np.abs(v) - half_height)
    return field


def _gable(u: Field, v: Field, top: float, bottom: float, half_width: float) -> Field:
    """An upright isosceles triangle."""
    height = bottom - top
    slope = math.sqrt(height * height + half_width * half_width)
    side = (np.abs(u) * height - (v - top) * half_width) * (1 / slope)
    field: Field = np.maximum(side, v - bottom)
    return field


def ball(u: Field, v: Field) -> Outline:
    whole = _disc(u, v, 0.92)
    return whole, whole


def box(u: Field, v: Field) -> Outline:
    whole = _block(u, v, 0.8, 0.8)
    return whole, whole


def triangle(u: Field, v: Field) -> Outline:
    whole = _gable(u, v, -1.05, 0.75, 1.05)
    return whole, whole


# Unit vectors towards the five tips of a star, the first one up.
_TIPS = ((0.0, -1.0), (0.95106, -0.30902), (0.58779, 0.80902), (-0.58779, 0.80902), (-0.95106, -0.30902))


def star(u: Field, v: Field) -> Outline:
    """Inside at least four of five lines: the second largest of their distances is negative."""
    first = second = np.full_like(u, -9)
    for x, y in _TIPS:
        line = u * x + v * y - 0.36
        first, second = np.maximum(first, line), np.maximum(second, np.minimum(first, line))
    return second, second


def ring(u: Field, v: Field) -> Outline:
    whole = _hoop(u, v, 0.76, 0.44)
    return whole, whole


def cup(u: Field, v: Field) -> Outline:
    """First part: the handle, all that is not the body."""
    x = u + 0.25
    body = np.maximum(np.abs(v) - 0.75, np.abs(x) - 0.62 + v * 0.12)
    handle = _hoop(u - 0.5, v + 0.05, 0.4, 0.26)
    return np.minimum(body, handle), -body


def mushroom(u: Field, v: Field) -> Outline:
    """First part: the cap."""
    rim = v - 0.1
    cap = np.maximum(_disc(u * 0.95, rim, 0.97), rim)
    stem = np.maximum(_block(u, v - 0.5, 0.34, 0.46), -rim)
    return np.minimum(cap, stem), rim


def house(u: Field, v: Field) -> Outline:
    """First part: the roof."""
    eaves = v + 0.1
    roof = _gable(u, v, -0.95, -0.1, 1.02)
    wall = np.maximum(_block(u, v - 0.35, 0.72, 0.46), -eaves)
    return np.minimum(roof, wall), eaves


def fish(u: Field, v: Field) -> Outline:
    """First part: the tail, all that is not the body."""
    x = u - 0.25
    body = _disc(x * 0.62, v, 0.5)
    fin = np.maximum(-u - 1.1, (np.abs(v) + (u + 0.4) * 0.85) * 0.76)
    return np.minimum(body, fin), -body


def key(u: Field, v: Field) -> Outline:
    """First part: the head with its hole."""
    head = _hoop(u + 0.62, v, 0.35, 0.26)
    shaft = _block(u - 0.4, v, 0.76, 0.12)
    teeth = np.minimum(
        _block(u - 0.72, v - 0.2, 0.1, 0.26),
        _block(u - 1.06, v - 0.2, 0.1, 0.26),
    )
    # The shaft starts outside the hole.
    shaft = np.maximum(np.minimum(shaft, teeth), -(u + 0.3))
    return np.minimum(head, shaft), u + 0.16


_STROKE = 0.15
"""The width of a stroke of the thin kinds. Ours: three to five pixels of 256."""


def hook(u: Field, v: Field) -> Outline:
    eye = _hoop(u - 0.25, v + 0.88, 0.16, _STROKE)
    shaft = _block(u - 0.25, v + 0.14, _STROKE / 2, 0.6)
    bend = np.maximum(_hoop(u + 0.15, v - 0.45, 0.4, _STROKE), 0.45 - v)
    barb = _block(u + 0.55, v - 0.3, _STROKE / 2, 0.16)
    whole = np.minimum(np.minimum(eye, shaft), np.minimum(bend, barb))
    return whole, whole


def ladder(u: Field, v: Field) -> Outline:
    rails = _block(np.abs(u) - 0.4, v, _STROKE / 2, 1.05)
    # Rungs half a unit apart: the distance to the nearest of four.
    rung = np.abs(np.abs(v) - 0.5) - 0.25
    rungs = _block(u, np.abs(rung), 0.4, _STROKE / 2)
    whole = np.minimum(rails, rungs)
    return whole, whole


def fork(u: Field, v: Field) -> Outline:
    """First part: the prongs."""
    shank = _block(u, v - 0.45, _STROKE / 2, 0.6)
    bar = _block(u, v + 0.22, 0.45, _STROKE / 2)
    outer = _block(np.abs(u) - 0.375, v + 0.6, _STROKE / 2, 0.45)
    middle = _block(u, v + 0.6, _STROKE / 2, 0.45)
    prongs = np.minimum(np.minimum(outer, middle), bar)
    return np.minimum(prongs, shank), v + 0.145


OUTLINES: dict[str, Callable[[Field, Field], Outline]] = {
    outline.__name__: outline
    for outline in (ball, box, triangle, star, ring, cup, mushroom, house, fish, key, hook, ladder, fork)
}
