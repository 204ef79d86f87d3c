"""Plain attribute questions: what a description fits, without any comparison."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from rea2seg.structures import Granularity
from rea2seg.synth.descriptions import enumerated
from rea2seg.synth.filters import Described
from rea2seg.synth.proposals import Proposal, article, be
from rea2seg.synth.vocabulary import COLOURS, HELD_OUT, PARTS, PLURALS, SIZES
from rea2seg.synth.worlds import Thing, World, pick


def _descriptions(thing: Thing) -> Iterator[Described]:
    """All the ways to describe a thing by what it looks like."""
    for kind in (None, thing.kind):
        for colour in (None, thing.colour):
            for texture in (None, thing.texture):
                for size in (None, thing.size):
                    # Nobody says plain, and four attributes at once are too many.
                    if texture != "plain" and 0 < sum(map(bool, (kind, colour, texture, size))) < 4:
                        yield Described(kind, colour, texture, size)


def described(rng: np.random.Generator, world: World, granularity: Granularity) -> Proposal | None:
    """`the small red star`, `all striped things`, and the description of a thing whose part is meant."""
    thing = pick(rng, world.things)
    if granularity == "part" and thing.kind not in PARTS:
        return None
    ways = []
    for way in _descriptions(thing):
        fitting = len(way.targets(world))
        fits = fitting >= 2 if granularity == "group" else fitting == 1
        if fits and _tells(way, world) and (granularity != "part" or way.kind):
            ways.append(way)
    return _worded(pick(rng, ways), granularity) if ways else None


def _tells(way: Described, world: World) -> bool:
    """Whether its word for a size, if any, fits nothing else: by eye the next size looks like it."""
    if way.size is None:
        return True
    order = [*SIZES]
    others = (world.things[index].size for index in replace(way, size=None).targets(world))
    return all(abs(order.index(other) - order.index(way.size)) != 1 for other in others)


def absent(rng: np.random.Generator, world: World, granularity: Granularity) -> Proposal | None:
    """`the purple key` where there are keys, but none is purple."""
    kind = pick(rng, world.things).kind
    colour = pick(rng, tuple(COLOURS))
    if (kind, colour) in HELD_OUT:
        return None
    return _worded(Described(kind, colour), granularity)


def _worded(program: Described, granularity: Granularity) -> Proposal:
    group = granularity == "group"
    if program.kind is None:
        kind = "things" if group else "thing"
    else:
        kind = PLURALS[program.kind] if group else program.kind
    # "The medium blue thing" would be a shade of blue.
    words = program.words().replace("medium", "medium-sized")
    phrase = " ".join(word for word in (article(granularity), words, kind) if word)
    clauses = (f"{be(granularity)} {enumerated(words.split())}",) if words else ()
    return Proposal(program, (phrase,), clauses)
