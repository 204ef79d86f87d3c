"""What is in a picture: things with attributes and places, drawn so that questions about them have answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from rea2seg.synth.glyphs import ALPHABET
from rea2seg.synth.vocabulary import (
    CAMOUFLAGED,
    COLOURS,
    FACES,
    GREYISH,
    HELD_OUT,
    KINDS,
    MARKS,
    PARTS,
    SIZES,
    SPACIOUS,
    TEXTURES,
    THIN,
    WRITABLE,
)

T = TypeVar("T")

Theme = Literal["plain", "camouflage", "occlusion", "thin", "marks", "letters"]
"""What is special about a world; some questions can only be asked where it is."""
THEMES: tuple[Theme, ...] = get_args(Theme)


@dataclass(frozen=True)
class Thing:
    """One object. Lengths are in long sides of the image, x to the right and y down from the top-left corner."""

    index: int
    kind: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    radius: float
    depth: int
    """0 is the nearest; of two things that overlap, the one with the smaller depth is seen."""
    tilt: float = 0.0
    """Tangent of half the angle of rotation."""
    mirrored: bool = False
    mark: str = ""
    """What is painted on it, one of `MARKS`."""
    letters: str = ""
    """What is written on it."""

    def record(self) -> dict[str, Any]:
        """What the scene graph says of this thing."""
        return {
            "index": self.index,
            "kind": self.kind,
            "colour": self.colour,
            "size": self.size,
            "texture": self.texture,
            "mark": self.mark,
            "letters": self.letters,
            "centre": [round(self.x, 4), round(self.y, 4)],
            "radius": round(self.radius, 4),
            "depth": self.depth,
            "parts": list(PARTS.get(self.kind, ())),
        }


@dataclass(frozen=True)
class World:
    """A picture before it is drawn. The longer of `width` and `height` is 1; `seed` fixes background and noise.

    `hidden[i][j]` is the share of thing i that thing j hides. It is known of a world as it is seen, else empty.
    """

    width: float
    height: float
    things: tuple[Thing, ...]
    light: tuple[float, float]
    seed: int
    theme: Theme = "plain"
    hidden: tuple[tuple[float, ...], ...] = ()

    def graph(self) -> dict[str, Any]:
        """The scene graph as JSON-able data."""
        return {
            "width": round(self.width, 4),
            "height": round(self.height, 4),
            "objects": [thing.record() for thing in self.things],
            "hidden": [
                {"index": back, "by": front, "share": round(share, 4)}
                for back, shares in enumerate(self.hidden)
                for front, share in enumerate(shares)
                if share
            ],
        }

    def of_kind(self, kind: str) -> list[Thing]:
        """All things of a kind."""
        return [thing for thing in self.things if thing.kind == kind]


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def shuffled(rng: np.random.Generator, options: Sequence[T]) -> list[T]:
    """The options in random order."""
    rest = list(options)
    return [rest.pop(int(rng.integers(len(rest)))) for _ in range(len(rest))]


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())


def _plan_kinds(rng: np.random.Generator, theme: Theme) -> list[str]:
    """The kind of every thing: a crowd of 3 to 5, a second kind of 1 to 3, and up to four that are alone."""
    kinds = shuffled(rng, [kind for kind in KINDS if kind not in THIN])
    if theme in _CROWDS or rng.random() < 0.6:
        # Questions about parts need a crowd of things that have some.
        first = pick(rng, _CROWDS.get(theme, _SOLID_WITH_PARTS))
        kinds = [first, *(kind for kind in kinds if kind != first)]
    crowd = pick(rng, (3, 4, 4, 5, 5))
    company = pick(rng, (1, 2, 2, 3))
    alone = pick(rng, (1, 2, 2, 3, 4))
    return [kinds[0]] * crowd + [kinds[1]] * company + kinds[2 : 2 + alone]


_SOLID_WITH_PARTS = tuple(kind for kind in PARTS if kind not in THIN)
_CROWDS: dict[Theme, tuple[str, ...]] = {"thin": THIN, "marks": tuple(FACES), "letters": WRITABLE}
"""The kinds that a theme's crowd may be of."""


def _dress(rng: np.random.Generator, kinds: list[str], novel: bool, theme: Theme) -> list[Thing]:
    """Things with attributes, not yet placed. Within a kind sizes take turns and colours come from a small palette."""
    things: list[Thing] = []
    for kind in dict.fromkeys(kinds):
        allowed = [colour for colour in COLOURS if novel or (kind, colour) not in HELD_OUT]
        if theme == "camouflage":
            allowed = [colour for colour in allowed if colour != GREYISH]
        palette = shuffled(rng, allowed)[: 2 + int(rng.integers(3))]
        spacious = kind in THIN or (theme in ("marks", "letters") and kind in _CROWDS[theme])
        choice = SPACIOUS if spacious else tuple(SIZES)
        sizes = shuffled(rng, choice) + shuffled(rng, choice) + shuffled(rng, choice)
        for number in range(kinds.count(kind)):
            size = sizes[number]
            things.append(
                Thing(
                    index=len(things),
                    kind=kind,
                    colour=pick(rng, palette),
                    size=size,
                    texture=pick(rng, ("plain", *TEXTURES)),
                    x=0.0,
                    y=0.0,
                    radius=_uniform(rng, *SIZES[size]),
                    depth=0,
                    tilt=_uniform(rng, -0.12, 0.12),
                    mirrored=bool(rng.random() < 0.5),
                )
            )
    return _adorned(rng, things, theme)


def _adorned(rng: np.random.Generator, things: list[Thing], theme: Theme) -> list[Thing]:
    """The things with what the theme adds to their looks. The first thing is of the crowd."""
    crowd = things[0].kind
    if theme == "camouflage":
        count = pick(rng, (1, 2))
        return [
            replace(thing, colour=CAMOUFLAGED, texture="plain") if number < count or rng.random() < 0.15 else thing
            for number, thing in enumerate(things)
        ]
    if theme == "marks":
        marks = shuffled(rng, MARKS)[: pick(rng, (2, 3))]
        return [
            replace(thing, mark=pick(rng, marks), texture="plain")
            if thing.kind == crowd or (thing.kind in FACES and rng.random() < 0.6)
            else thing
            for thing in things
        ]
    if theme == "letters":
        words = _words(rng)
        return [
            replace(thing, letters=pick(rng, words), texture="plain")
            if thing.kind == crowd or (thing.kind in WRITABLE and rng.random() < 0.7)
            else thing
            for thing in things
        ]
    return things


def _words(rng: np.random.Generator) -> list[str]:
    """What may be written on the things of a world: a few single letters, or words of one to three letters.

    No two words have the same letters, so that "the same letters" means one thing.
    """
    alphabet = shuffled(rng, ALPHABET)
    if rng.random() < 0.35:
        return alphabet[:3]
    words = ["".join(shuffled(rng, alphabet)[:length]) for length in (1, 1, 2, 2, 3, 3)]
    return [*{"".join(sorted(word)): word for word in words}.values()]


def _clear_of(thing: Thing, other: Thing) -> bool:
    """Whether two things may stand where they do: apart if of one kind, overlapping a little if not.

    The distances are ours: 0.145 keeps two of a kind in cells of their own, which the reasoning names them by.
    """
    reach = thing.radius + other.radius
    if thing.kind == other.kind:
        apart = max(1.15 * reach, 0.145)
    else:
        # What is painted or written on a thing stays in sight.
        apart = (0.95 if any(one.mark or one.letters for one in (thing, other)) else 0.66) * reach
    dx, dy = thing.x - other.x, thing.y - other.y
    return dx * dx + dy * dy >= apart * apart


def _covering(rng: np.random.Generator, things: list[Thing]) -> dict[int, int]:
    """Which things are to overlap another, and which one: others that come upon things of the crowd."""
    crowd = [thing for thing in things if thing.kind == things[0].kind]
    others = shuffled(rng, [thing for thing in things if thing.kind != things[0].kind])
    backs = shuffled(rng, crowd)[: pick(rng, (1, 2, 2, 3))]
    return {front.index: back.index for front, back in zip(others, backs, strict=False)}


def _spot(
    rng: np.random.Generator, thing: Thing, onto: Thing | None, width: float, height: float
) -> tuple[float, float]:
    """A place inside the image for a thing, anywhere or half upon another.

    Ours: at 0.45 to 0.62 of the sum of the radii the one behind keeps three quarters in the middle, half at the least.
    """
    edge = 1.17 * thing.radius
    if onto is None:
        return _uniform(rng, edge, width - edge), _uniform(rng, edge, height - edge)
    away = _uniform(rng, 0.45, 0.62) * (thing.radius + onto.radius)
    x, y = _uniform(rng, -1.0, 1.0), _uniform(rng, -1.0, 1.0)
    scale = away / max(math.sqrt(x * x + y * y), 0.1)
    return (
        min(max(onto.x + x * scale, edge), width - edge),
        min(max(onto.y + y * scale, edge), height - edge),
    )


def _place(
    rng: np.random.Generator, things: list[Thing], covering: dict[int, int], width: float, height: float
) -> list[Thing] | None:
    """The things at places inside the image, the largest first, then those that cover another; None without room."""
    placed: dict[int, Thing] = {}
    for thing in sorted(things, key=lambda thing: (thing.index in covering, -thing.radius)):
        onto = placed.get(covering.get(thing.index, -1))
        for _ in range(60):
            x, y = _spot(rng, thing, onto, width, height)
            candidate = replace(thing, x=x, y=y)
            if all(other is onto or _clear_of(candidate, other) for other in placed.values()):
                placed[thing.index] = candidate
                break
        else:
            return None
    return [*placed.values()]


def draw_world(rng: np.random.Generator, novel: bool, theme: Theme = "plain") -> World | None:
    """One attempt at a world; `novel` allows the held-out combinations. None if the things find no room."""
    short = _uniform(rng, 0.75, 1.0)
    width, height = (1.0, short) if rng.random() < 0.5 else (short, 1.0)
    dressed = _dress(rng, _plan_kinds(rng, theme), novel, theme)
    covering = _covering(rng, dressed) if theme == "occlusion" else {}
    placed = _place(rng, dressed, covering, width, height)
    if placed is None:
        return None
    # What looks like the ground lies on it, behind everything else.
    behind = sorted(shuffled(rng, placed), key=lambda thing: thing.colour == CAMOUFLAGED)
    things = [replace(thing, depth=depth) for depth, thing in enumerate(behind)]
    # Shuffled, so that a thing's index says nothing about its size.
    things = [replace(thing, index=index) for index, thing in enumerate(shuffled(rng, things))]
    light = pick(rng, ((-0.6, -0.8), (0.6, -0.8), (0.0, -1.0), (-0.8, -0.6), (0.8, -0.6)))
    return World(width, height, tuple(things), light, int(rng.integers(2**31)), theme)
