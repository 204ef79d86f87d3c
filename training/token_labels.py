"""What lies under every image token, as the names that a tower learns to give it."""

import numpy as np
from jaxtyping import Float, Int, UInt8

from rea2seg.synth.glyphs import ALPHABET
from rea2seg.synth.measures import hides
from rea2seg.synth.vocabulary import CAMOUFLAGED, COLOURS, KINDS, MARKS, SIZES, TEXTURES
from rea2seg.synth.worlds import Thing, World
from training.scenes import CODES_PER_OBJECT

BINS = 16
LOOKS: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "colour": (*COLOURS, CAMOUFLAGED),
    "size": tuple(SIZES),
    "texture": TEXTURES,
    "mark": ("", *MARKS),
}
MOST_LETTERS = 3
LETTERS = tuple(f"letter_{place}" for place in range(1, MOST_LETTERS + 1))
RARE = ("mark", "letters", *LETTERS, "in_front", "behind")
"""Names whose first answer, none, is right for most things. Things with another answer, things without and background
count the same in the loss, and the two kinds of things in the accuracy: a tower that never saw a mark once had 0.94."""
NAMES = {
    **{name: len(values) for name, values in LOOKS.items()},
    "letters": MOST_LETTERS + 1,
    **dict.fromkeys(LETTERS, len(ALPHABET) + 1),
    "in_front": 2,
    "behind": 2,
    "column": BINS,
    "row": BINS,
    "part": 2,
    "middle": 1,
}
"""What the heads name, and how many answers each has besides 0 = background.

One token of each object is its middle. Column and row of its centre are named besides being measured, because what has
to be told apart by name takes up room in a token: with measures alone, the language model hardly saw the places.
"""


def labels_of(world: World, cells: UInt8[np.ndarray, "grid grid fine"], padded: bool) -> dict[str, np.ndarray]:
    """For every cell the names of what fills most of it, and where that object's centre lies and how large it is.

    An object counts from 3 of 16 samples on; names are 0 on the background. `world` is the world as it is seen; places
    are in sides of the square that the tower sees.
    """
    counts = np.stack([(cells == code).sum(-1) for code in range(CODES_PER_OBJECT * (len(world.things) + 1))], axis=-1)
    counts[..., 0] = 0
    code = np.where(counts.max(-1) >= 3, counts.argmax(-1), 0)
    owner = code // CODES_PER_OBJECT
    answers = [names_of(world, thing) for thing in world.things]
    names = {name: np.array([0, *(answer[name] for answer in answers)])[owner] for name in answers[0]}
    rows = [(0.0, 0.0, 0.0)]
    for thing in world.things:
        x, y = thing.x / world.width, thing.y / world.height
        if padded:
            x, y = thing.x + (1 - world.width) / 2, thing.y + (1 - world.height) / 2
        rows.append((x, y, thing.radius))
    place = np.array(rows, np.float32)[owner]
    bins = np.where(code > 0, (place[..., :2] * BINS).astype(int).clip(0, BINS - 1).transpose(2, 0, 1) + 1, 0)
    names |= {"column": bins[0], "row": bins[1], "part": code % CODES_PER_OBJECT}
    return {**names, "middle": middles(owner, place[..., :2]), "place": place}


def names_of(world: World, thing: Thing) -> dict[str, int]:
    """The answers of `NAMES` for a thing, from 1 on: those that do not depend on a cell."""
    looks = {name: values.index(getattr(thing, name)) for name, values in LOOKS.items()}
    spelt = dict(zip(LETTERS, (ALPHABET.index(letter) + 1 for letter in thing.letters), strict=False))
    others = [other for other in world.things if other != thing]
    hiding = {
        "in_front": any(hides(world, thing, other) for other in others),
        "behind": any(hides(world, other, thing) for other in others),
    }
    answers = {**looks, "letters": len(thing.letters), **dict.fromkeys(LETTERS, 0), **spelt, **hiding}
    return {name: answer + 1 for name, answer in answers.items()}


def middles(
    owner: Int[np.ndarray, "grid grid"], centre: Float[np.ndarray, "grid grid 2"]
) -> Int[np.ndarray, "grid grid"]:
    """1 at the one cell of each object that lies nearest to its centre: how a set of cells becomes a set of objects."""
    grid = len(owner)
    here = (np.stack(np.meshgrid(np.arange(grid), np.arange(grid)), axis=-1) + 0.5) / grid
    away = np.abs(here - centre).sum(-1)
    found = np.zeros_like(owner)
    for index in np.unique(owner[owner > 0]):
        found.flat[np.where(owner == index, away, np.inf).argmin()] = 1
    return found
