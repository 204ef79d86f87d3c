"""What programs measure on a world as it is seen, and when a difference decides."""

from __future__ import annotations

import math
from typing import Literal

from rea2seg.synth.worlds import Thing, World

Key = Literal["size", "x", "y", "distance", "letters"]
Side = Literal["left", "right", "above", "below"]
Attribute = Literal["colour", "texture", "size", "mark", "letters"]
Order = Literal["behind", "in front of"]

PLACE_MARGIN = 0.04
"""The least difference of two places that decides a question, in widths (or heights) of the image. Ours: ten pixels of
256, which one sees without measuring."""
SIZE_MARGIN = 1.2
"""The least ratio of two radii that decides a question. Ours: below 1.22, the least between two words for size."""
DISTANCE_MARGIN = 1.25
"""The least ratio of two distances that decides a question. Ours: higher than for radii, which outlines show."""
GAP_MARGIN = 0.03
"""The least difference of two gaps that decides, in long sides of the image. Ours: eight pixels of 256, since a gap is
reckoned from a circle round the thing, which few outlines fill."""
HIDDEN_SHARES = (0.02, 0.12)
"""A thing is hidden by another from the second share of its pixels on, and not up to the first. Ours: less than an
eighth may be taken for touching."""


def place(world: World, thing: Thing, key: Key) -> float:
    """Position along an axis as a share of the image."""
    return thing.x / world.width if key == "x" else thing.y / world.height


def distance(thing: Thing, point: tuple[float, float]) -> float:
    """From the centre of a thing to a point, in long sides of the image."""
    dx, dy = thing.x - point[0], thing.y - point[1]
    return math.sqrt(dx * dx + dy * dy)


def beside(
    world: World, thing: Thing, side: Side, centre: tuple[float, float], margin: float = PLACE_MARGIN
) -> bool | None:
    """Whether a thing lies on a side of a place; None if too close to call."""
    horizontal = side in ("left", "right")
    offset = (thing.x - centre[0]) / world.width if horizontal else (thing.y - centre[1]) / world.height
    if abs(offset) < margin:
        return None
    return offset < 0 if side in ("left", "above") else offset > 0


def hides(world: World, front: Thing, back: Thing) -> bool | None:
    """Whether one thing hides a part of another; None if it is hardly seen to."""
    share, (none, some) = world.hidden[back.index][front.index], HIDDEN_SHARES
    return None if none < share < some else share >= some


def along(world: World, things: list[Thing], side: Side) -> list[Thing]:
    """Things in reading order along the axis of a side: from the left, or from the top."""
    return sorted(things, key=lambda thing: place(world, thing, "x" if side in ("left", "right") else "y"))
