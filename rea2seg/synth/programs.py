"""Questions as small programs over a scene graph.

`targets` runs a program: the indices it selects in the order in which the reasoning lists them, or None where the
picture is too close to call; `nominal`, of the programs that chains are made of, selects even there. `reasoning` writes
the same run down, step by step, without the answer. `kind` is the kind of thing a program selects from; `among`, itself
a program, leaves only some of that kind to select from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rea2seg.synth.descriptions import cell, cells
from rea2seg.synth.measures import (
    DISTANCE_MARGIN,
    GAP_MARGIN,
    PLACE_MARGIN,
    SIZE_MARGIN,
    Key,
    Side,
    along,
    distance,
    place,
)
from rea2seg.synth.vocabulary import PLURALS
from rea2seg.synth.worlds import Thing, World


@runtime_checkable
class Program(Protocol):
    """What all programs are."""

    @property
    def kind(self) -> str | None: ...

    def targets(self, world: World) -> tuple[int, ...] | None: ...

    def reasoning(self, world: World) -> str: ...


@dataclass(frozen=True)
class Anchor:
    """A thing that a question refers to, the words that single it out, and the program that finds it if they do not."""

    index: int
    name: str
    by: Program | None = None


def pool(world: World, kind: str, among: Program | None) -> list[Thing] | None:
    """The things that a program selects from; None if that is too close to call."""
    if among is None:
        return world.of_kind(kind)
    found = among.targets(world)
    return None if found is None else [world.things[index] for index in found]


def in_sight(world: World, kind: str, among: Program | None, side: Side = "left") -> list[Thing]:
    """The same in reading order, for a world where it is known."""
    return along(world, pool(world, kind, among) or [], side)


def reading(side: Side) -> str:
    """The direction of a list in reading order."""
    return "from left" if side in ("left", "right") else "from top"


def centre(world: World, anchor: Anchor | None) -> tuple[float, float]:
    """The place of an anchor; the middle of the image for none."""
    if anchor is None:
        return world.width / 2, world.height / 2
    return world.things[anchor.index].x, world.things[anchor.index].y


def introduction(world: World, among: Program | None, anchor: Anchor | None, attribute: str = "") -> str:
    """How one comes upon the things to select from, and where the anchor is: the first steps of a reasoning."""
    steps = f"{among.reasoning(world)} " if among else ""
    if anchor is None:
        return steps
    if anchor.by is not None:
        steps += f"{anchor.by.reasoning(world)} "
    thing = world.things[anchor.index]
    shown = f" {getattr(thing, attribute)}" if attribute else ""
    return f"{steps}{anchor.name}: {cell(world, thing)}{shown}. "


def landmark(world: World, anchor: Anchor | None) -> str:
    """The cell of an anchor, or `middle` for none."""
    return "middle" if anchor is None else cell(world, world.things[anchor.index])


@dataclass(frozen=True)
class Ranked:
    """Sort a kind and take some places of the order: largest, leftmost, topmost, nearest or most letters first."""

    kind: str
    key: Key
    places: tuple[int, ...]
    """Indices into the order; negative ones count from its end."""
    label: str
    """The places in words: `second from left`."""
    anchor: Anchor | None = None
    """What distances are measured from; the middle of the image if None."""
    among: Program | None = None

    def _value(self, world: World, thing: Thing) -> float:
        if self.key == "size":
            return -thing.radius
        if self.key == "letters":
            return float(-len(thing.letters))
        if self.key == "distance":
            return distance(thing, centre(world, self.anchor))
        return place(world, thing, self.key)

    def _clear(self, low: float, high: float) -> bool:
        """Whether two neighbours of the order are far enough apart."""
        if self.key == "size":
            return low / high >= SIZE_MARGIN
        if self.key == "letters":
            return high > low
        if self.key == "distance":
            return high >= DISTANCE_MARGIN * low
        return high - low >= PLACE_MARGIN

    def _decided(self, world: World, ahead: list[Thing], behind: list[Thing]) -> bool:
        """Whether the order may be cut between two things that follow each other."""
        if self.key in ("x", "y", "distance"):
            # From centre to edge the order must be the same: people look at edges and gaps as well.
            last, first = max(self._edge(world, one) for one in ahead), min(self._edge(world, one) for one in behind)
            if first - last <= (GAP_MARGIN if self.key == "distance" else 0):
                return False
        return self._clear(self._value(world, ahead[-1]), self._value(world, behind[0]))

    def _edge(self, world: World, thing: Thing) -> float:
        """Where a thing begins for whoever comes from the anchor, or from the side that one counts from."""
        if self.key == "distance":
            return self._value(world, thing) - thing.radius
        centre = thing.x if self.key == "x" else thing.y
        return centre - thing.radius if self.places[0] >= 0 else centre + thing.radius

    def _order(self, world: World) -> list[Thing]:
        return sorted(pool(world, self.kind, self.among) or [], key=lambda thing: self._value(world, thing))

    def passed(self, world: World) -> tuple[int, ...]:
        """What one passes when counting to the first place: `the third from the left` passes the first two."""
        order, ahead = self._order(world), min(self.places)
        counted = order[:ahead] if ahead >= 0 else order[len(order) + max(self.places) + 1 :]
        return tuple(thing.index for thing in counted)

    def nominal(self, world: World) -> tuple[int, ...]:
        order = self._order(world)
        reached = [place for place in self.places if -len(order) <= place < len(order)]
        return tuple(order[place].index for place in sorted(place % len(order) for place in reached))

    def targets(self, world: World) -> tuple[int, ...] | None:
        order, chosen = self._order(world), self.nominal(world)
        unread = self.key == "letters" and not all(thing.letters for thing in order)
        if unread or len(chosen) < len(self.places):
            return None
        for cut in range(1, len(order)):
            decides = (order[cut - 1].index in chosen) != (order[cut].index in chosen)
            if decides and not self._decided(world, order[:cut], order[cut:]):
                return None
        return chosen

    def reasoning(self, world: World) -> str:
        order = self._order(world)
        taken = sorted(place % len(order) for place in self.places)
        sorting = {"size": "by size", "x": "from left", "y": "from top", "distance": "from nearest"}
        listed = cells(world, order)
        if self.key == "letters":
            listed = ", ".join(f"{cell(world, thing)} {thing.letters}" for thing in order)
        chosen = cells(world, [order[place] for place in taken])
        step = f"{PLURALS[self.kind]} {sorting.get(self.key, 'by letters')}: {listed}. {self.label}: {chosen}."
        return introduction(world, self.among, self.anchor) + step
