"""What is in a picture: things with attributes and places, drawn so that questions about them have answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from rea2seg.synth.vocabulary import COLOURS, HELD_OUT, KINDS, PARTS, SIZES, TEXTURES

T = TypeVar("T")


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

    def record(self) -> dict[str, Any]:
        """What the scene graph says of this thing."""
        return {
            "index": self.index,
            "kind": self.kind,
            "colour": self.colour,
            "size": self.size,
            "texture": self.texture,
            "centre": [round(self.x, 4), round(self.y, 4)],
            "radius": round(self.radius, 4),
            "depth": self.depth,
            "parts": list(PARTS.get(self.kind, ())),
        }


@dataclass(frozen=True)
class World:
    """A picture before it is drawn. The longer of `width` and `height` is 1; `seed` fixes background and noise."""

    width: float
    height: float
    things: tuple[Thing, ...]
    light: tuple[float, float]
    seed: int

    def graph(self) -> dict[str, Any]:
        """The scene graph as JSON-able data."""
        return {
            "width": round(self.width, 4),
            "height": round(self.height, 4),
            "objects": [thing.record() for thing in self.things],
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


def _plan_kinds(rng: np.random.Generator) -> list[str]:
    """The kind of every thing: a crowd of 3 to 5, a second kind of 1 to 3, and up to four that are alone."""
    kinds = shuffled(rng, KINDS)
    if rng.random() < 0.6:
        # Questions about parts need a crowd of things that have some.
        first = pick(rng, tuple(PARTS))
        kinds.remove(first)
        kinds.insert(0, first)
    crowd = pick(rng, (3, 4, 4, 5, 5))
    company = pick(rng, (1, 2, 2, 3))
    alone = pick(rng, (1, 2, 2, 3, 4))
    return [kinds[0]] * crowd + [kinds[1]] * company + kinds[2 : 2 + alone]


def _dress(rng: np.random.Generator, kinds: list[str], novel: bool) -> list[Thing]:
    """Things with attributes, not yet placed. Within a kind sizes take turns and colours come from a small palette."""
    things: list[Thing] = []
    for kind in dict.fromkeys(kinds):
        allowed = [colour for colour in COLOURS if novel or (kind, colour) not in HELD_OUT]
        palette = shuffled(rng, allowed)[: 2 + int(rng.integers(3))]
        sizes = shuffled(rng, tuple(SIZES)) + shuffled(rng, tuple(SIZES))
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
    return things


def _clear_of(thing: Thing, other: Thing) -> bool:
    """Whether two things may stand where they do: apart if of one kind, overlapping a little if not."""
    reach = thing.radius + other.radius
    apart = max(1.15 * reach, 0.145) if thing.kind == other.kind else 0.66 * reach
    dx, dy = thing.x - other.x, thing.y - other.y
    return dx * dx + dy * dy >= apart * apart


def _place(rng: np.random.Generator, things: list[Thing], width: float, height: float) -> list[Thing] | None:
    """The things at places inside the image, the largest placed first; None if one finds no room."""
    placed: list[Thing] = []
    for thing in sorted(things, key=lambda thing: -thing.radius):
        edge = 1.17 * thing.radius
        for _ in range(60):
            x, y = _uniform(rng, edge, width - edge), _uniform(rng, edge, height - edge)
            candidate = replace(thing, x=x, y=y)
            if all(_clear_of(candidate, other) for other in placed):
                placed.append(candidate)
                break
        else:
            return None
    return placed


def draw_world(rng: np.random.Generator, novel: bool) -> World | None:
    """One attempt at a world; `novel` allows the held-out combinations. None if the things find no room."""
    short = _uniform(rng, 0.75, 1.0)
    width, height = (1.0, short) if rng.random() < 0.5 else (short, 1.0)
    things = _place(rng, _dress(rng, _plan_kinds(rng), novel), width, height)
    if things is None:
        return None
    depths = shuffled(rng, range(len(things)))
    # Shuffled, so that a thing's index says nothing about its size.
    things = [replace(thing, index=index, depth=depths[index]) for index, thing in enumerate(shuffled(rng, things))]
    light = pick(rng, ((-0.6, -0.8), (0.6, -0.8), (0.0, -1.0), (-0.8, -0.6), (0.8, -0.6)))
    return World(width, height, tuple(things), light, int(rng.integers(2**31)))
