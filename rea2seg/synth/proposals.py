"""What the components share: a question before it is checked, and the choice of what it may be about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rea2seg.structures import Granularity
from rea2seg.synth.measures import Attribute
from rea2seg.synth.programs import Anchor, Program
from rea2seg.synth.vocabulary import PARTS, PLURALS
from rea2seg.synth.worlds import World, pick

MIN_DISTRACTORS = 2
"""How many things of the target's kind a relational question leaves out, at the least."""


@dataclass(frozen=True)
class Proposal:
    """A program and ways to say it: noun phrases (`the largest star`), and clauses after `Which star` (`is ...`).

    `selected_from` stands for the kind where a question describes what it selects from (`stars to the left of the
    ring`), and `hint` is what the reasoning says of that first.
    """

    program: Program
    phrases: tuple[str, ...]
    clauses: tuple[str, ...]
    selected_from: str = ""
    hint: str = ""


Component = Callable[[np.random.Generator, World, Granularity], Proposal | None]
"""Proposes a question about a world, or None where this draw led nowhere. Its margins are checked afterwards."""
FindAnchor = Callable[[np.random.Generator, World, str, Attribute | None], Anchor | None]
"""Finds a thing of another kind than the given one to refer to, without naming the given attribute."""


@dataclass(frozen=True)
class Few:
    """Things of one kind to select from: all in the picture, or, `filtered`, those that an earlier step left."""

    kind: str
    total: int
    filtered: bool = False

    @property
    def plural(self) -> str:
        return PLURALS[self.kind]

    def counts(self) -> range:
        """How many a group may be of; of a whole crowd it leaves `MIN_DISTRACTORS`."""
        return range(2, self.total - (0 if self.filtered else MIN_DISTRACTORS - 1))


def crowd(rng: np.random.Generator, world: World, granularity: Granularity) -> Few | None:
    """A kind with enough instances to ask about."""
    least = MIN_DISTRACTORS + (2 if granularity == "group" else 1)
    counts = Counter(thing.kind for thing in world.things)
    kinds = [kind for kind, count in counts.items() if count >= least and (granularity != "part" or kind in PARTS)]
    if not kinds:
        return None
    kind = pick(rng, kinds)
    return Few(kind, counts[kind])


def ranking(
    rng: np.random.Generator,
    world: World,
    granularity: Granularity,
    order: Callable[[np.random.Generator, Few, Granularity], Proposal | None],
) -> Proposal | None:
    """A question about the order of some crowd."""
    chosen = crowd(rng, world, granularity)
    return None if chosen is None else order(rng, chosen, granularity)


def anchor(rng: np.random.Generator, world: World, kind: str, hidden: Attribute | None = None) -> Anchor | None:
    """A thing of another kind, named by its kind or by colour or texture and kind, never by the hidden attribute."""
    others = [thing for thing in world.things if thing.kind != kind]
    if not others:
        return None
    thing = pick(rng, others)
    names = [thing.kind]
    if hidden != "colour":
        names.append(f"{thing.colour} {thing.kind}")
    if hidden != "texture" and thing.texture != "plain":
        names.append(f"{thing.texture} {thing.kind}")
    alone = [
        name for name in names if sum(_fits(name, other.colour, other.texture, other.kind) for other in others) == 1
    ]
    return Anchor(thing.index, pick(rng, alone)) if alone else None


def _fits(name: str, colour: str, texture: str, kind: str) -> bool:
    return set(name.split()) <= {colour, texture, kind}


def noun(kind: str, granularity: Granularity) -> str:
    """Singular for one thing, plural for a group."""
    return PLURALS[kind] if granularity == "group" else kind


def article(granularity: Granularity) -> str:
    """`the` for one thing, `all` for a group."""
    return "all" if granularity == "group" else "the"


def be(granularity: Granularity) -> str:
    """`is` for one thing, `are` for a group."""
    return "are" if granularity == "group" else "is"


def have(granularity: Granularity) -> str:
    """`has` for one thing, `have` for a group."""
    return "have" if granularity == "group" else "has"
