"""Questions as small programs over a scene graph.

`targets` runs a program: the indices it selects in the order in which the reasoning lists them, or None where the
picture is too close to call. `reasoning` writes the same run down, step by step, without the answer. `kind` is the kind
of thing a program selects from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rea2seg.synth.descriptions import cell, cells
from rea2seg.synth.vocabulary import PLURALS
from rea2seg.synth.worlds import Thing, World

Key = Literal["size", "x", "y", "distance"]
Side = Literal["left", "right", "above", "below"]
Attribute = Literal["colour", "texture", "size"]

PLACE_MARGIN = 0.04
"""The least difference of two places that decides a question, in widths (or heights) of the image. Ours: ten pixels of
256, which one sees without measuring."""
SIZE_MARGIN = 1.2
"""The least ratio of two radii that decides a question. Ours: just below the least between two words for size."""
DISTANCE_MARGIN = 1.25
"""The least ratio of two distances that decides a question. Ours: higher than for radii, which outlines show."""


@dataclass(frozen=True)
class Anchor:
    """A thing that a question refers to, and the words that single it out."""

    index: int
    name: str


def _place(world: World, thing: Thing, key: Key) -> float:
    """Position along an axis as a share of the image."""
    return thing.x / world.width if key == "x" else thing.y / world.height


def _beside(world: World, thing: Thing, side: Side, centre: tuple[float, float]) -> bool | None:
    """Whether a thing lies on a side of a place; None if too close to call."""
    horizontal = side in ("left", "right")
    offset = (thing.x - centre[0]) / world.width if horizontal else (thing.y - centre[1]) / world.height
    if abs(offset) < PLACE_MARGIN:
        return None
    return offset < 0 if side in ("left", "above") else offset > 0


def _along(world: World, things: list[Thing], side: Side) -> list[Thing]:
    """Things in reading order along the axis of a side: from the left, or from the top."""
    return sorted(things, key=lambda thing: _place(world, thing, "x" if side in ("left", "right") else "y"))


def _listed(side: Side) -> str:
    return "from left" if side in ("left", "right") else "from top"


def _centre(world: World, anchor: Anchor | None) -> tuple[float, float]:
    """The place of an anchor; the middle of the image for none."""
    if anchor is None:
        return world.width / 2, world.height / 2
    return world.things[anchor.index].x, world.things[anchor.index].y


def _introduction(world: World, anchor: Anchor | None, attribute: str = "") -> str:
    """Where the anchor is, as the first step of a reasoning."""
    if anchor is None:
        return ""
    thing = world.things[anchor.index]
    shown = f" {getattr(thing, attribute)}" if attribute else ""
    return f"{anchor.name}: {cell(world, thing)}{shown}. "


def _landmark(world: World, anchor: Anchor | None) -> str:
    return "middle" if anchor is None else cell(world, world.things[anchor.index])


@dataclass(frozen=True)
class Ranked:
    """Sort a kind (largest, leftmost, topmost or nearest first) and take the things at some places of the order."""

    kind: str
    key: Key
    places: tuple[int, ...]
    """Indices into the order; negative ones count from its end."""
    label: str
    """The places in words: `second from left`."""
    anchor: Anchor | None = None
    """What distances are measured from; the middle of the image if None."""

    def _value(self, world: World, thing: Thing) -> float:
        if self.key == "size":
            return -thing.radius
        if self.key == "distance":
            x, y = _centre(world, self.anchor)
            return math.sqrt((thing.x - x) * (thing.x - x) + (thing.y - y) * (thing.y - y))
        return _place(world, thing, self.key)

    def _clear(self, low: float, high: float) -> bool:
        """Whether two neighbours of the order are far enough apart."""
        if self.key == "size":
            return low / high >= SIZE_MARGIN
        if self.key == "distance":
            return high >= DISTANCE_MARGIN * low
        return high - low >= PLACE_MARGIN

    def _decided(self, world: World, ahead: list[Thing], behind: list[Thing]) -> bool:
        """Whether the order may be cut between two things that follow each other."""
        if self.key == "distance":
            # From centre to edge the order must be the same: people look at gaps as well.
            gaps = [[self._value(world, thing) - thing.radius for thing in things] for things in (ahead, behind)]
            if max(gaps[0]) >= min(gaps[1]):
                return False
        return self._clear(self._value(world, ahead[-1]), self._value(world, behind[0]))

    def _order(self, world: World) -> list[Thing]:
        return sorted(world.of_kind(self.kind), key=lambda thing: self._value(world, thing))

    def passed(self, world: World) -> tuple[int, ...]:
        """What one passes when counting to the first place: `the third from the left` passes the first two."""
        order, ahead = self._order(world), min(self.places)
        counted = order[:ahead] if ahead >= 0 else order[len(order) + max(self.places) + 1 :]
        return tuple(thing.index for thing in counted)

    def targets(self, world: World) -> tuple[int, ...] | None:
        order = self._order(world)
        taken = {place % len(order) for place in self.places}
        for cut in range(1, len(order)):
            decides = (cut - 1 in taken) != (cut in taken)
            if decides and not self._decided(world, order[:cut], order[cut:]):
                return None
        return tuple(order[place].index for place in sorted(taken))

    def reasoning(self, world: World) -> str:
        order = self._order(world)
        taken = sorted(place % len(order) for place in self.places)
        sorting = {"size": "by size", "x": "from left", "y": "from top", "distance": "from nearest"}[self.key]
        chosen = cells(world, [order[place] for place in taken])
        listing = f"{PLURALS[self.kind]} {sorting}: {cells(world, order)}. {self.label}: {chosen}."
        return _introduction(world, self.anchor) + listing


@dataclass(frozen=True)
class Beside:
    """Keep the things of a kind on one side of an anchor, or of the middle of the image."""

    kind: str
    side: Side
    anchor: Anchor | None = None

    def targets(self, world: World) -> tuple[int, ...] | None:
        things = _along(world, world.of_kind(self.kind), self.side)
        centre = _centre(world, self.anchor)
        verdicts = [_beside(world, thing, self.side, centre) for thing in things]
        if None in verdicts:
            return None
        return tuple(thing.index for thing, verdict in zip(things, verdicts, strict=True) if verdict)

    def reasoning(self, world: World) -> str:
        things = _along(world, world.of_kind(self.kind), self.side)
        centre = _centre(world, self.anchor)
        kept = [thing for thing in things if _beside(world, thing, self.side, centre)]
        of = " of" if self.side in ("left", "right") else ""
        step = f"{self.side}{of} {_landmark(world, self.anchor)}: {cells(world, kept)}."
        listing = f"{PLURALS[self.kind]} {_listed(self.side)}: {cells(world, things)}. "
        return _introduction(world, self.anchor) + listing + step


@dataclass(frozen=True)
class Shared:
    """Keep the things of a kind that look like the anchor in one respect; without anchor, like another of the kind."""

    kind: str
    attribute: Attribute
    anchor: Anchor | None = None

    def _kept(self, world: World) -> list[Thing]:
        things = _along(world, world.of_kind(self.kind), "left")
        looks = [getattr(thing, self.attribute) for thing in things]
        if self.anchor is None:
            return [thing for thing, look in zip(things, looks, strict=True) if looks.count(look) > 1]
        wanted = getattr(world.things[self.anchor.index], self.attribute)
        return [thing for thing, look in zip(things, looks, strict=True) if look == wanted]

    def targets(self, world: World) -> tuple[int, ...] | None:
        kept = self._kept(world)
        if self.anchor is None and len({getattr(thing, self.attribute) for thing in kept}) > 1:
            return None
        return tuple(thing.index for thing in kept)

    def reasoning(self, world: World) -> str:
        things = _along(world, world.of_kind(self.kind), "left")
        looks = ", ".join(f"{cell(world, thing)} {getattr(thing, self.attribute)}" for thing in things)
        step = f"same {self.attribute}: {cells(world, self._kept(world))}."
        return f"{_introduction(world, self.anchor, self.attribute)}{PLURALS[self.kind]}: {looks}. {step}"


@dataclass(frozen=True)
class Counted:
    """Keep the things of a kind that have an exact number of another kind on one side."""

    kind: str
    other: str
    side: Side
    number: int

    def _count(self, world: World, thing: Thing) -> int | None:
        verdicts = [_beside(world, other, self.side, (thing.x, thing.y)) for other in world.of_kind(self.other)]
        return None if None in verdicts else verdicts.count(True)

    def targets(self, world: World) -> tuple[int, ...] | None:
        things = _along(world, world.of_kind(self.kind), self.side)
        counts = [self._count(world, thing) for thing in things]
        if None in counts:
            return None
        return tuple(thing.index for thing, count in zip(things, counts, strict=True) if count == self.number)

    def reasoning(self, world: World) -> str:
        others = _along(world, world.of_kind(self.other), self.side)
        things = _along(world, world.of_kind(self.kind), self.side)
        counts = [self._count(world, thing) for thing in things]
        kept = [thing for thing, count in zip(things, counts, strict=True) if count == self.number]
        counted = ", ".join(f"{cell(world, thing)} {count}" for thing, count in zip(things, counts, strict=True))
        where = {"left": "to the left", "right": "to the right"}.get(self.side, self.side)
        return (
            f"{PLURALS[self.other]} {_listed(self.side)}: {cells(world, others)}. "
            f"{PLURALS[self.kind]} with {PLURALS[self.other]} {where}: {counted}. "
            f"exactly {self.number}: {cells(world, kept)}."
        )


@dataclass(frozen=True)
class Described:
    """Keep the things that have all the given attributes."""

    kind: str | None = None
    colour: str | None = None
    texture: str | None = None
    size: str | None = None

    def words(self) -> str:
        """The adjectives in the order in which they are said."""
        return " ".join(word for word in (self.size, self.colour, self.texture) if word)

    def _kept(self, world: World) -> list[Thing]:
        things = _along(world, list(world.things), "left")
        wanted = {"kind": self.kind, "colour": self.colour, "texture": self.texture, "size": self.size}
        given = [(attribute, value) for attribute, value in wanted.items() if value]
        return [thing for thing in things if all(getattr(thing, attribute) == value for attribute, value in given)]

    def targets(self, world: World) -> tuple[int, ...]:
        return tuple(thing.index for thing in self._kept(world))

    def reasoning(self, world: World) -> str:
        kept = cells(world, self._kept(world))
        if self.kind is None:
            return f"{self.words()} things: {kept}."
        if not self.words():
            return f"{PLURALS[self.kind]}: {kept}."
        listing = []
        for thing in _along(world, world.of_kind(self.kind), "left"):
            shown = (self.size and thing.size, self.colour and thing.colour, self.texture and thing.texture)
            listing.append(" ".join(word for word in (cell(world, thing), *shown) if word))
        return f"{PLURALS[self.kind]}: {', '.join(listing)}. {self.words()}: {kept}."


Program = Ranked | Beside | Shared | Counted | Described
