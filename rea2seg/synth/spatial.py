"""Spatial questions: relations, relative distance and counting."""

import numpy as np

from rea2seg.structures import Granularity
from rea2seg.synth.descriptions import NUMBERS, plural
from rea2seg.synth.filters import Beside, Counted
from rea2seg.synth.geometric import nth, several
from rea2seg.synth.measures import Side
from rea2seg.synth.programs import Ranked
from rea2seg.synth.proposals import Few, FindAnchor, Proposal, anchor, article, be, crowd, have, noun
from rea2seg.synth.worlds import World, pick

_RELATIONS: dict[Side, tuple[str, ...]] = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "higher up than"),
    "below": ("below", "lower down than"),
}


def relation(
    rng: np.random.Generator, world: World, granularity: Granularity, find: FindAnchor = anchor
) -> Proposal | None:
    """`the star to the left of the blue house`, `all stars above the ring`."""
    chosen = crowd(rng, world, granularity)
    other = None if chosen is None else find(rng, world, chosen.kind, None)
    if chosen is None or other is None:
        return None
    side = pick(rng, tuple(_RELATIONS))
    place = f"{pick(rng, _RELATIONS[side])} the {other.name}"
    things, is_or_are = noun(chosen.kind, granularity), be(granularity)
    phrases = (
        f"{article(granularity)} {things} {place}",
        f"{article(granularity)} {things} that {is_or_are} {place}",
    )
    return Proposal(Beside(chosen.kind, side, other), phrases, (f"{is_or_are} {place}",))


def relative_distance(
    rng: np.random.Generator, world: World, granularity: Granularity, find: FindAnchor = anchor
) -> Proposal | None:
    """`the cup closest to the ring`, `the second closest`, `the two stars farthest from the blue house`."""
    chosen = crowd(rng, world, granularity)
    return None if chosen is None else by_distance(rng, world, chosen, granularity, find)


def by_distance(
    rng: np.random.Generator, world: World, few: Few, granularity: Granularity, find: FindAnchor = anchor
) -> Proposal | None:
    """Some place in the order of distances from another thing."""
    other = find(rng, world, few.kind, None)
    if other is None:
        return None
    end, label, words = pick(rng, ((0, "closest", ("closest to", "nearest to")), (-1, "farthest", ("farthest from",))))
    word = f"{pick(rng, words)} the {other.name}"
    if granularity == "group":
        count = pick(rng, few.counts())
        program = Ranked(few.kind, "distance", several(end, count), f"{NUMBERS[count]} {label}", other)
        phrase = f"the {NUMBERS[count]} {few.plural} {word}"
        return Proposal(program, (phrase,), (f"are the {NUMBERS[count]} {word}",))
    rank = pick(rng, (0, 0, 0, 1)) if few.total > 2 else 0
    before, kind = "second " * rank, few.kind
    program = Ranked(kind, "distance", (nth(end, rank),), before + label, other)
    phrases = (f"the {kind} that is {before}{word}",) if rank else (f"the {kind} {word}", f"the {kind} that is {word}")
    return Proposal(program, phrases, (f"is {before}{word}",))


def counting(rng: np.random.Generator, world: World, granularity: Granularity) -> Proposal | None:
    """`the star with exactly two cups to its left`, `all stars with exactly one cup above them`."""
    chosen = crowd(rng, world, granularity)
    if chosen is None:
        return None
    kind = chosen.kind
    others = sorted({thing.kind for thing in world.things} - {kind})
    crowded = [other for other in others if len(world.of_kind(other)) >= 2]
    if not crowded:
        return None
    other = pick(rng, crowded)
    # "No cups above it" is often just the topmost one: rare, so that most questions need the count.
    number = 0 if rng.random() < 0.15 else pick(rng, range(1, len(world.of_kind(other)) + 1))
    side = pick(rng, tuple(_RELATIONS))
    its, it = ("their", "them") if granularity == "group" else ("its", "it")
    where = {"left": f"to {its} left", "right": f"to {its} right"}.get(side, f"{side} {it}")
    counted = ("exactly " if number else "") + plural(other, number)
    phrases = (
        f"{article(granularity)} {noun(kind, granularity)} with {counted} {where}",
        f"{article(granularity)} {noun(kind, granularity)} that {have(granularity)} {counted} {where}",
    )
    return Proposal(Counted(kind, other, side, number), phrases, (f"{have(granularity)} {counted} {where}",))
