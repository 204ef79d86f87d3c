"""Things in words: where they are, what they are called, what a mask covers and how well it fits."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from rea2seg.synth.render import Rendering
from rea2seg.synth.vocabulary import PARTS, PLURALS
from rea2seg.synth.worlds import Thing, World

COLUMNS = "abcdefghij"
NUMBERS = ("no", "one", "two", "three", "four", "five")
ORDINALS = ("first", "second", "third", "fourth", "fifth")
IOU_WORDS = {"exactly": 0.6, "part": 0.1, "no": 0.0}
"""The least IoU of each word; `part` is part of it, or more than it. Ours."""


def cell(world: World, thing: Thing) -> str:
    """The cell of a 10 x 10 grid in which a thing's centre lies: column a to j, row 0 to 9 from the top."""
    column, row = int(10 * thing.x / world.width), int(10 * thing.y / world.height)
    return COLUMNS[min(max(column, 0), 9)] + str(min(max(row, 0), 9))


def cells(world: World, things: Sequence[Thing]) -> str:
    """The cells of several things, in their order; `none` if there are none."""
    return ", ".join(cell(world, thing) for thing in things) or "none"


def plural(kind: str, count: int) -> str:
    """`two cups`, `one cup`, `no cups`."""
    return f"{NUMBERS[count]} {kind if count == 1 else PLURALS[kind]}"


def name(thing: Thing) -> str:
    """`red striped star`; a plain surface is not mentioned."""
    return " ".join(word for word in (thing.colour, thing.texture, thing.kind) if word != "plain")


def enumerated(words: Sequence[str]) -> str:
    """`small`, `small and red`, `small, red and striped`."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def describe_mask(mask: Bool[np.ndarray, "h w"], rendering: Rendering, world: World) -> str:
    """What a mask mainly covers: `star b3`, `handle of cup b3`, `cup b3 and star e7` or `background`.

    A thing or part counts where more than half of its visible pixels are covered. Cells come in order, so that there is
    one right way to say it. `world` is the world as it is seen.
    """
    codes = (rendering.instance_ids.astype(np.int64) * 3 + rendering.part_ids)[mask]
    covered = np.bincount(codes, minlength=3 * (len(world.things) + 1)).reshape(-1, 3)
    halves = 2 * covered[1:, 1:] > rendering.visible_areas()
    found = []
    for thing in world.things:
        first, second = (bool(half) for half in halves[thing.index])
        place = f"{thing.kind} {cell(world, thing)}"
        if thing.kind not in PARTS or first == second:
            found += [place] * first
        else:
            found.append(f"{PARTS[thing.kind][int(second)]} of {place}")
    found.sort(key=lambda words: words.split()[::-1])
    if not found or 2 * covered[0, 0] > len(codes):
        found.append("background")
    return enumerated(found)


def describe_iou(value: float) -> str:
    """How well a mask of this IoU fits, as one of `IOU_WORDS`."""
    return next(word for word, least in IOU_WORDS.items() if value >= least)
