"""Geometric questions: relative size, relative position, ordinals and shared attributes."""

import numpy as np

from rea2seg.structures import Granularity
from rea2seg.synth.descriptions import NUMBERS, ORDINALS
from rea2seg.synth.filters import Beside, Shared
from rea2seg.synth.measures import Attribute, Key, Side
from rea2seg.synth.programs import Anchor, Ranked
from rea2seg.synth.proposals import (
    MIN_DISTRACTORS,
    Few,
    FindAnchor,
    Proposal,
    anchor,
    article,
    be,
    crowd,
    have,
    noun,
    ranking,
)
from rea2seg.synth.worlds import World, pick

# The axis, the end from which one counts, and the words for that end.
_ENDS: tuple[tuple[Key, int, str, str], ...] = (
    ("x", 0, "left", "leftmost"),
    ("x", -1, "right", "rightmost"),
    ("y", 0, "top", "topmost"),
    ("y", -1, "bottom", "lowest"),
)
_SHAREABLE: tuple[Attribute, ...] = ("colour", "colour", "texture")
_HALVES: dict[Side, str] = {"left": "left", "right": "right", "above": "upper", "below": "lower"}


def nth(end: int, rank: int) -> int:
    """The place `rank` steps into an order, from its first (end 0) or from its last place (end -1)."""
    return rank if end == 0 else end - rank


def several(end: int, count: int) -> tuple[int, ...]:
    """The first places of an order (end 0), or the last ones (end -1)."""
    return tuple(range(count)) if end == 0 else tuple(range(-count, 0))


def relative_size(rng: np.random.Generator, world: World, granularity: Granularity) -> Proposal | None:
    """`the largest star`, `the second smallest cup`, `the two largest boxes`."""
    return ranking(rng, world, granularity, by_size)


_BY_SIZE = {0: ("largest", "biggest"), -1: ("smallest",)}


def by_size(rng: np.random.Generator, few: Few, granularity: Granularity) -> Proposal | None:
    """Some place in the order of sizes."""
    end = pick(rng, (0, -1))
    # Every place is asked for alike, or the looks would tell: a huge thing is more often the largest than the second.
    rank = 0 if granularity == "group" else pick(rng, range(few.total))
    if 2 * rank >= few.total:
        end, rank = -1 - end, few.total - 1 - rank
    words = _BY_SIZE[end]
    word = pick(rng, words)
    if granularity == "group":
        count = pick(rng, few.counts())
        program = Ranked(few.kind, "size", several(end, count), f"{NUMBERS[count]} {words[0]}")
        named = f"{NUMBERS[count]} {word}"
        return Proposal(program, (f"the {named} {few.plural}",), (f"are the {named}",))
    before = f"{ORDINALS[rank]} " if rank else ""
    program = Ranked(few.kind, "size", (nth(end, rank),), before + words[0])
    clauses = (f"is the {before}{word}", f"is the {before}{word} of all")
    return Proposal(program, (f"the {before}{word} {few.kind}",), clauses[: 1 if few.filtered else 2])


def relative_position(rng: np.random.Generator, world: World, granularity: Granularity) -> Proposal | None:
    """`the star furthest to the left`, `the cup nearest to the centre of the image`, `all rings in the upper half`."""
    return ranking(rng, world, granularity, by_position)


def by_position(rng: np.random.Generator, few: Few, granularity: Granularity) -> Proposal | None:
    """What lies at an end, in the middle or in a half of the image."""
    draw = rng.random()
    if draw < 0.15 and few.total > 2:
        return _central(few, granularity)
    if draw < (0.55 if granularity == "group" else 0.25) and not few.filtered:
        return _half(rng, few.kind, granularity)
    key, end, side, extreme = pick(rng, _ENDS)
    far = f"furthest to the {side}" if key == "x" else f"closest to the {side} of the image"
    if granularity == "group":
        count = pick(rng, few.counts())
        program = Ranked(few.kind, key, several(end, count), f"{NUMBERS[count]} {extreme}")
        many = f"{NUMBERS[count]} {few.plural}"
        phrases = (f"the {many} {far}", f"the {NUMBERS[count]} {extreme} {few.plural}")
        return Proposal(program, phrases, (f"are the {NUMBERS[count]} {far}",))
    program = Ranked(few.kind, key, (end,), extreme)
    return Proposal(program, (f"the {few.kind} {far}", f"the {extreme} {few.kind}"), (f"is {far}", f"is the {extreme}"))


def _central(few: Few, granularity: Granularity) -> Proposal:
    middle = "the centre of the image"
    if granularity == "group":
        program = Ranked(few.kind, "distance", (0, 1), "two nearest to the centre")
        return Proposal(program, (f"the two {few.plural} nearest to {middle}",), (f"are the two nearest to {middle}",))
    program = Ranked(few.kind, "distance", (0,), "nearest to the centre")
    phrases = (f"the {few.kind} nearest to {middle}", f"the most central {few.kind}")
    return Proposal(program, phrases, (f"is nearest to {middle}",))


def _half(rng: np.random.Generator, kind: str, granularity: Granularity) -> Proposal:
    side = pick(rng, tuple(_HALVES))
    place = f"in the {_HALVES[side]} half of the image"
    only = "all" if granularity == "group" else "the only"
    phrase = f"{only} {noun(kind, granularity)} {place}"
    return Proposal(Beside(kind, side), (phrase,), (f"{be(granularity)} {place}",))


def ordinal(rng: np.random.Generator, world: World, granularity: Granularity) -> Proposal | None:
    """`the second star from the left`, `the second and third cup from the top`."""
    return ranking(rng, world, granularity, by_order)


def by_order(rng: np.random.Generator, few: Few, granularity: Granularity) -> Proposal | None:
    """A place that one must count to."""
    if few.total < (4 if granularity == "group" else 3):
        return None
    key, end, side, _ = pick(rng, _ENDS)
    origin = f"from the {side}"
    if granularity == "group":
        first = pick(rng, range(1, few.total - 2))
        named = f"{ORDINALS[first]} and {ORDINALS[first + 1]}"
        places = (first, first + 1) if end == 0 else (-2 - first, -1 - first)
        program = Ranked(few.kind, key, places, f"{named} from {side}")
        phrases = (f"the {named} {few.kind} {origin}", f"the {named} {few.kind} counted {origin}")
        return Proposal(program, phrases, (f"are the {named} {origin}",))
    if few.total % 2 and rng.random() < 0.2:
        return _middle(few, key)
    rank = pick(rng, range(1, few.total - 1))
    program = Ranked(few.kind, key, (nth(end, rank),), f"{ORDINALS[rank]} from {side}")
    phrases = (f"the {ORDINALS[rank]} {few.kind} {origin}", f"the {ORDINALS[rank]} {few.kind} counted {origin}")
    return Proposal(program, phrases, (f"is the {ORDINALS[rank]} {origin}", f"comes {ORDINALS[rank]} {origin}"))


def _middle(few: Few, key: Key) -> Proposal:
    way = "from left to right" if key == "x" else "from top to bottom"
    program = Ranked(few.kind, key, (few.total // 2,), "middle")
    return Proposal(program, (f"the middle {few.kind} counted {way}",), (f"is the middle one {way}",))


def shared_attribute(
    rng: np.random.Generator, world: World, granularity: Granularity, find: FindAnchor = anchor
) -> Proposal | None:
    """`the cup that has the same colour as the fish`, `the two stars that have the same colour`."""
    chosen = crowd(rng, world, granularity)
    if chosen is None:
        return None
    if granularity == "group" and find is anchor and rng.random() < 0.3:
        alike = "have the same colour as each other"
        program = Shared(chosen.kind, "colour")
        return Proposal(program, (f"the {chosen.plural} that {alike}",), (alike,))
    attribute = pick(rng, _SHAREABLE)
    other = find(rng, world, chosen.kind, attribute)
    if other is None or (attribute == "texture" and not _patterned(world, chosen.kind, other)):
        return None
    return alike_in(attribute, chosen.kind, other, granularity)


def _patterned(world: World, kind: str, other: Anchor) -> bool:
    """Whether a pattern can be asked for: not that of a plain thing, nor one that is told from all others at once."""
    patterns = [thing.texture for thing in world.of_kind(kind) if thing.texture != "plain"]
    return world.things[other.index].texture != "plain" and len(patterns) > MIN_DISTRACTORS


_CALLED: dict[Attribute, str] = {"texture": "pattern", "mark": "sign", "letters": "letters"}
"""What people call an attribute, where that is another word."""


def alike_in(attribute: Attribute, kind: str, other: Anchor, granularity: Granularity) -> Proposal:
    """What looks like another thing in one respect."""
    word = _CALLED.get(attribute, attribute)
    things, own = noun(kind, granularity), "their" if granularity == "group" else "its"
    phrases = (
        f"{article(granularity)} {things} that {have(granularity)} the same {word} as the {other.name}",
        f"{article(granularity)} {things} with the same {word} as the {other.name}",
    )
    share = "share" if granularity == "group" else "shares"
    clauses = (
        f"{have(granularity)} the same {word} as the {other.name}",
        f"{share} {own} {word} with the {other.name}",
    )
    return Proposal(Shared(kind, attribute, other), phrases, clauses)
