"""Geometric questions: relative size, relative position, ordinals and shared attributes."""

import numpy as np

from rea2seg.structures import Granularity
from rea2seg.synth.descriptions import NUMBERS, ORDINALS
from rea2seg.synth.programs import Attribute, Beside, Key, Ranked, Shared, Side
from rea2seg.synth.proposals import Proposal, anchor, article, be, crowd, have, noun
from rea2seg.synth.vocabulary import PLURALS
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


def several(end: int, count: int) -> tuple[int, ...]:
    """The first places of an order (end 0), or the last ones (end -1)."""
    return tuple(range(count)) if end == 0 else tuple(range(-count, 0))


def relative_size(rng: np.random.Generator, world: World, granularity: Granularity) -> Proposal | None:
    """`the largest star`, `the second smallest cup`, `the two largest boxes`."""
    chosen = crowd(rng, world, granularity)
    if chosen is None:
        return None
    kind, total = chosen
    end, words = pick(rng, ((0, ("largest", "biggest")), (-1, ("smallest",))))
    word = pick(rng, words)
    if granularity == "group":
        count = pick(rng, range(2, total - 1))
        program = Ranked(kind, "size", several(end, count), f"{NUMBERS[count]} {words[0]}")
        named = f"{NUMBERS[count]} {word}"
        return Proposal(program, (f"the {named} {PLURALS[kind]}",), (f"are the {named}",))
    rank = pick(rng, (0, 0, 1))
    before = "second " * rank
    program = Ranked(kind, "size", (end - rank if end else rank,), before + words[0])
    return Proposal(
        program, (f"the {before}{word} {kind}",), (f"is the {before}{word}", f"is the {before}{word} of all")
    )


def relative_position(rng: np.random.Generator, world: World, granularity: Granularity) -> Proposal | None:
    """`the star furthest to the left`, `the cup nearest to the centre of the image`, `all rings in the upper half`."""
    chosen = crowd(rng, world, granularity)
    if chosen is None:
        return None
    kind, total = chosen
    draw = rng.random()
    if draw < 0.15:
        return _central(kind, granularity)
    if draw < (0.55 if granularity == "group" else 0.25):
        return _half(rng, kind, granularity)
    key, end, side, extreme = pick(rng, _ENDS)
    far = f"furthest to the {side}" if key == "x" else f"closest to the {side} of the image"
    if granularity == "group":
        count = pick(rng, range(2, total - 1))
        program = Ranked(kind, key, several(end, count), f"{NUMBERS[count]} {extreme}")
        many = f"{NUMBERS[count]} {PLURALS[kind]}"
        phrases = (f"the {many} {far}", f"the {NUMBERS[count]} {extreme} {PLURALS[kind]}")
        return Proposal(program, phrases, (f"are the {NUMBERS[count]} {far}",))
    program = Ranked(kind, key, (end,), extreme)
    return Proposal(program, (f"the {kind} {far}", f"the {extreme} {kind}"), (f"is {far}", f"is the {extreme}"))


def _central(kind: str, granularity: Granularity) -> Proposal:
    middle = "the centre of the image"
    if granularity == "group":
        program = Ranked(kind, "distance", (0, 1), "two nearest to the centre")
        return Proposal(
            program, (f"the two {PLURALS[kind]} nearest to {middle}",), (f"are the two nearest to {middle}",)
        )
    program = Ranked(kind, "distance", (0,), "nearest to the centre")
    phrases = (f"the {kind} nearest to {middle}", f"the most central {kind}")
    return Proposal(program, phrases, (f"is nearest to {middle}",))


def _half(rng: np.random.Generator, kind: str, granularity: Granularity) -> Proposal:
    side = pick(rng, tuple(_HALVES))
    place = f"in the {_HALVES[side]} half of the image"
    only = "all" if granularity == "group" else "the only"
    phrase = f"{only} {noun(kind, granularity)} {place}"
    return Proposal(Beside(kind, side), (phrase,), (f"{be(granularity)} {place}",))


def ordinal(rng: np.random.Generator, world: World, granularity: Granularity) -> Proposal | None:
    """`the second star from the left`, `the second and third cup from the top`."""
    chosen = crowd(rng, world, granularity)
    if chosen is None:
        return None
    kind, total = chosen
    key, end, side, _ = pick(rng, _ENDS)
    origin = f"from the {side}"
    if granularity == "group":
        first = pick(rng, range(1, total - 2))
        named = f"{ORDINALS[first]} and {ORDINALS[first + 1]}"
        places = (first, first + 1) if end == 0 else (-2 - first, -1 - first)
        program = Ranked(kind, key, places, f"{named} from {side}")
        phrases = (f"the {named} {kind} {origin}", f"the {named} {kind} counted {origin}")
        return Proposal(program, phrases, (f"are the {named} {origin}",))
    if total % 2 and rng.random() < 0.2:
        return _middle(kind, total, key)
    rank = pick(rng, range(1, total - 1))
    program = Ranked(kind, key, (rank if end == 0 else -1 - rank,), f"{ORDINALS[rank]} from {side}")
    phrases = (f"the {ORDINALS[rank]} {kind} {origin}", f"the {ORDINALS[rank]} {kind} counted {origin}")
    return Proposal(program, phrases, (f"is the {ORDINALS[rank]} {origin}", f"comes {ORDINALS[rank]} {origin}"))


def _middle(kind: str, total: int, key: Key) -> Proposal:
    way = "from left to right" if key == "x" else "from top to bottom"
    program = Ranked(kind, key, (total // 2,), "middle")
    return Proposal(program, (f"the middle {kind} counted {way}",), (f"is the middle one {way}",))


def shared_attribute(rng: np.random.Generator, world: World, granularity: Granularity) -> Proposal | None:
    """`the cup that has the same colour as the fish`, `the two stars that have the same colour`."""
    chosen = crowd(rng, world, granularity)
    if chosen is None:
        return None
    kind, _ = chosen
    if granularity == "group" and rng.random() < 0.3:
        alike = "have the same colour as each other"
        return Proposal(Shared(kind, "colour"), (f"the {PLURALS[kind]} that {alike}",), (alike,))
    attribute = pick(rng, _SHAREABLE)
    other = anchor(rng, world, kind, hidden=attribute)
    # Nobody speaks of the pattern of a plain thing.
    if other is None or (attribute == "texture" and world.things[other.index].texture == "plain"):
        return None
    word = "pattern" if attribute == "texture" else attribute
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
