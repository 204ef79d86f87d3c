"""Programs that keep what fits: by side, by looks, by what hides what, by a count."""

from __future__ import annotations

from dataclasses import dataclass

from rea2seg.synth.descriptions import cell, cells
from rea2seg.synth.measures import Attribute, Order, Side, along, beside, hides
from rea2seg.synth.programs import Anchor, Program, centre, in_sight, introduction, landmark, reading
from rea2seg.synth.vocabulary import CAMOUFLAGED, PLURALS
from rea2seg.synth.worlds import Thing, World


@dataclass(frozen=True)
class Beside:
    """Keep the things of a kind on one side of an anchor, or of the middle of the image."""

    kind: str
    side: Side
    anchor: Anchor | None = None
    among: Program | None = None

    def nominal(self, world: World) -> tuple[int, ...]:
        things, point = in_sight(world, self.kind, self.among, self.side), centre(world, self.anchor)
        return tuple(thing.index for thing in things if beside(world, thing, self.side, point, margin=0.0))

    def targets(self, world: World) -> tuple[int, ...] | None:
        things = in_sight(world, self.kind, self.among, self.side)
        point = centre(world, self.anchor)
        verdicts = [beside(world, thing, self.side, point) for thing in things]
        if None in verdicts:
            return None
        return tuple(thing.index for thing, verdict in zip(things, verdicts, strict=True) if verdict)

    def reasoning(self, world: World) -> str:
        things = in_sight(world, self.kind, self.among, self.side)
        point = centre(world, self.anchor)
        kept = [thing for thing in things if beside(world, thing, self.side, point)]
        of = " of" if self.side in ("left", "right") else ""
        step = f"{self.side}{of} {landmark(world, self.anchor)}: {cells(world, kept)}."
        listing = f"{PLURALS[self.kind]} {reading(self.side)}: {cells(world, things)}. "
        return introduction(world, self.among, self.anchor) + listing + step


@dataclass(frozen=True)
class Shared:
    """Keep the things of a kind that look like the anchor in one respect; without anchor, like another of the kind."""

    kind: str
    attribute: Attribute
    anchor: Anchor | None = None
    among: Program | None = None

    def _kept(self, world: World) -> list[Thing]:
        things = in_sight(world, self.kind, self.among)
        looks = [getattr(thing, self.attribute) for thing in things]
        if self.anchor is None:
            return [thing for thing, look in zip(things, looks, strict=True) if looks.count(look) > 1]
        wanted = getattr(world.things[self.anchor.index], self.attribute)
        return [thing for thing, look in zip(things, looks, strict=True) if look == wanted]

    def nominal(self, world: World) -> tuple[int, ...]:
        return tuple(thing.index for thing in self._kept(world))

    def targets(self, world: World) -> tuple[int, ...] | None:
        kept = self._kept(world)
        looks = {getattr(thing, self.attribute) for thing in kept}
        # What has no mark, no letters and no colour of its own shares none.
        if looks & {"", CAMOUFLAGED} or (self.anchor is None and len(looks) > 1):
            return None
        return tuple(thing.index for thing in kept)

    def reasoning(self, world: World) -> str:
        things = in_sight(world, self.kind, self.among)
        looks = ", ".join(f"{cell(world, thing)} {getattr(thing, self.attribute) or 'none'}" for thing in things)
        step = f"same {self.attribute}: {cells(world, self._kept(world))}."
        first = introduction(world, self.among, self.anchor, self.attribute)
        return f"{first}{PLURALS[self.kind]}: {looks}. {step}"


@dataclass(frozen=True)
class Overlapping:
    """Keep the things of a kind that are hidden in part by an anchor, or that hide a part of it.

    Without anchor: that are hidden by anything, or hide anything.
    """

    kind: str
    order: Order
    anchor: Anchor | None = None
    among: Program | None = None

    def _verdict(self, world: World, thing: Thing) -> bool | None:
        others = list(world.things) if self.anchor is None else [world.things[self.anchor.index]]
        pairs = [(other, thing) if self.order == "behind" else (thing, other) for other in others if other != thing]
        verdicts = [hides(world, front, back) for front, back in pairs]
        return True if True in verdicts else (None if None in verdicts else False)

    def targets(self, world: World) -> tuple[int, ...] | None:
        things = in_sight(world, self.kind, self.among)
        verdicts = [self._verdict(world, thing) for thing in things]
        if None in verdicts:
            return None
        return tuple(thing.index for thing, verdict in zip(things, verdicts, strict=True) if verdict)

    def reasoning(self, world: World) -> str:
        things = in_sight(world, self.kind, self.among)
        kept = cells(world, [thing for thing in things if self._verdict(world, thing)])
        other = "another thing" if self.anchor is None else landmark(world, self.anchor)
        listing = f"{PLURALS[self.kind]} from left: {cells(world, things)}. "
        return f"{introduction(world, self.among, self.anchor)}{listing}{self.order} {other}: {kept}."


@dataclass(frozen=True)
class Counted:
    """Keep the things of a kind that have an exact number of another kind on one side."""

    kind: str
    other: str
    side: Side
    number: int

    def _count(self, world: World, thing: Thing) -> int | None:
        verdicts = [beside(world, other, self.side, (thing.x, thing.y)) for other in world.of_kind(self.other)]
        return None if None in verdicts else verdicts.count(True)

    def targets(self, world: World) -> tuple[int, ...] | None:
        things = along(world, world.of_kind(self.kind), self.side)
        counts = [self._count(world, thing) for thing in things]
        if None in counts:
            return None
        return tuple(thing.index for thing, count in zip(things, counts, strict=True) if count == self.number)

    def reasoning(self, world: World) -> str:
        others = along(world, world.of_kind(self.other), self.side)
        things = along(world, world.of_kind(self.kind), self.side)
        counts = [self._count(world, thing) for thing in things]
        kept = [thing for thing, count in zip(things, counts, strict=True) if count == self.number]
        counted = ", ".join(f"{cell(world, thing)} {count}" for thing, count in zip(things, counts, strict=True))
        where = {"left": "to the left", "right": "to the right"}.get(self.side, self.side)
        return (
            f"{PLURALS[self.other]} {reading(self.side)}: {cells(world, others)}. "
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
    mark: str | None = None
    letters: str | None = None

    def words(self) -> str:
        """The adjectives in the order in which they are said, and what is painted or written on the things."""
        return " ".join(word for word in (self.size, self.colour, self.texture, self.mark, self.letters) if word)

    def _kept(self, world: World) -> list[Thing]:
        given = [(name, getattr(self, name)) for name in ("kind", *_LOOKS) if getattr(self, name)]
        things = along(world, list(world.things), "left")
        return [thing for thing in things if all(getattr(thing, name) == value for name, value in given)]

    def targets(self, world: World) -> tuple[int, ...]:
        return tuple(thing.index for thing in self._kept(world))

    def reasoning(self, world: World) -> str:
        kept = cells(world, self._kept(world))
        if self.kind is None:
            return f"{self.words()} things: {kept}."
        if not self.words():
            return f"{PLURALS[self.kind]}: {kept}."
        listing = []
        for thing in along(world, world.of_kind(self.kind), "left"):
            shown = [getattr(thing, name) for name in _LOOKS if getattr(self, name)]
            listing.append(" ".join(word for word in (cell(world, thing), *shown) if word))
        return f"{PLURALS[self.kind]}: {', '.join(listing)}. {self.words()}: {kept}."


_LOOKS = ("size", "colour", "texture", "mark", "letters")
