"""Multi-step questions: find something first and ask about it, read and compare, or tell a kind by what it is for."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from rea2seg.structures import Granularity
from rea2seg.synth.descriptions import NUMBERS
from rea2seg.synth.filters import Beside, Described, Shared
from rea2seg.synth.geometric import (
    alike_in,
    by_order,
    by_position,
    by_size,
    nth,
    ordinal,
    relative_position,
    relative_size,
    several,
    shared_attribute,
)
from rea2seg.synth.measures import Attribute
from rea2seg.synth.programs import Anchor, Program, Ranked
from rea2seg.synth.proposals import Few, FindAnchor, Proposal, anchor, crowd
from rea2seg.synth.spatial import by_distance, counting, relation, relative_distance
from rea2seg.synth.vocabulary import MARKS, PLURALS, RIDDLES
from rea2seg.synth.worlds import World, pick


def spatial_relation(rng: np.random.Generator, world: World, granularity: Granularity) -> Proposal | None:
    """`the cup closest to the largest star`: what the question refers to must be found first."""
    ask = pick(rng, (relation, relative_distance, relative_distance, shared_attribute))
    return ask(rng, world, granularity, _singled_out)


def comparison(rng: np.random.Generator, world: World, granularity: Granularity) -> Proposal | None:
    """`the largest of the stars to the left of the ring`: compares what an earlier step leaves."""
    chosen = crowd(rng, world, granularity)
    if chosen is None:
        return None
    left = relation(rng, world, "group") if rng.random() < 0.5 else _of_a_look(rng, world, chosen.kind)
    if left is None or left.program.kind != chosen.kind:
        return None
    return _compared(rng, world, left, granularity)


def part_instance(rng: np.random.Generator, world: World, granularity: Granularity) -> Proposal | None:
    """`the handle of the cup that is closest to the largest star`: a part of what takes two steps to find."""
    ask = pick(rng, (spatial_relation, comparison, common_sense))
    return ask(rng, world, granularity)


def visual_detail(rng: np.random.Generator, world: World, granularity: Granularity) -> Proposal | None:
    """`the cup with the same sign as the largest star`, `the largest of the boxes with a cross`."""
    chosen = crowd(rng, world, granularity)
    if chosen is None:
        return None
    if rng.random() < 0.5:
        mark = pick(rng, MARKS)
        left = Proposal(Described(chosen.kind, mark=mark), (f"all {chosen.plural} with a {mark}",), ())
        return _compared(rng, world, left, granularity)
    if rng.random() < 0.5:
        other = _singled_out(rng, world, chosen.kind, None)
        return None if other is None else alike_in("mark", chosen.kind, other, granularity)
    ask = pick(rng, (relation, relative_distance))
    return ask(rng, world, granularity, _bearing("mark", "with a"))


def written_letters(rng: np.random.Generator, world: World, granularity: Granularity) -> Proposal | None:
    """`the box with the fewest letters`, `the ball closest to the cup that says KO`."""
    chosen = crowd(rng, world, granularity)
    if chosen is None:
        return None
    draw = rng.random()
    if draw < 0.5:
        return _by_letters(rng, chosen, granularity)
    if draw < 0.7:
        other = anchor(rng, world, chosen.kind)
        return None if other is None else alike_in("letters", chosen.kind, other, granularity)
    ask = pick(rng, (relation, relative_distance))
    return ask(rng, world, granularity, _bearing("letters", "that says"))


def common_sense(rng: np.random.Generator, world: World, granularity: Granularity) -> Proposal | None:
    """`the one of the things one drinks from that is the largest`: the kind is described, not named."""
    ask = pick(rng, (relative_size, relative_position, ordinal, relation, relative_distance, counting))
    proposal = ask(rng, world, granularity)
    if proposal is None or proposal.program.kind not in RIDDLES:
        return None
    kind = str(proposal.program.kind)
    riddle = RIDDLES[kind]
    return _of_the(riddle, replace(proposal, hint=f"{riddle}: {PLURALS[kind]}. "), granularity)


def _of_the(described: str, proposal: Proposal, granularity: Granularity) -> Proposal:
    """The proposal about things that are described: its clauses say what is wanted of it."""
    one = "those" if granularity == "group" else "the one"
    clauses = tuple(clause for clause in proposal.clauses if not clause.endswith("of all"))
    phrases = tuple(f"{one} of the {described} that {clause}" for clause in clauses)
    return replace(proposal, phrases=phrases, clauses=clauses, selected_from=described)


def _compared(rng: np.random.Generator, world: World, left: Proposal, granularity: Granularity) -> Proposal | None:
    """A comparison of what a proposal for a group leaves; None if that is too little."""
    found = left.program.targets(world)
    if found is None or len(found) < (3 if granularity == "group" else 2):
        return None
    few = Few(str(left.program.kind), len(found), filtered=True)
    if rng.random() < 0.3:
        then = by_distance(rng, world, few, granularity)
    else:
        then = pick(rng, (by_size, by_position, by_order))(rng, few, granularity)
    if then is None or not isinstance(then.program, Ranked):
        return None
    program = replace(then.program, among=left.program)
    return _of_the(left.phrases[0].removeprefix("all "), replace(then, program=program), granularity)


def _of_a_look(rng: np.random.Generator, world: World, kind: str) -> Proposal | None:
    """All things of a kind with one colour, or with a pattern."""
    thing = pick(rng, world.of_kind(kind))
    if thing.texture != "plain" and rng.random() < 0.25:
        return Proposal(Described(kind, texture=thing.texture), (f"all {thing.texture} {PLURALS[kind]}",), ())
    return Proposal(Described(kind, colour=thing.colour), (f"all {thing.colour} {PLURALS[kind]}",), ())


def _by_letters(rng: np.random.Generator, few: Few, granularity: Granularity) -> Proposal:
    """The things with most or fewest letters."""
    end, word = pick(rng, ((0, "most"), (-1, "fewest")))
    if granularity == "group":
        count = pick(rng, few.counts())
        program = Ranked(few.kind, "letters", several(end, count), f"{NUMBERS[count]} with the {word}")
        phrase = f"the {NUMBERS[count]} {few.plural} with the {word} letters"
        return Proposal(program, (phrase,), (f"are the {NUMBERS[count]} with the {word} letters",))
    rank = pick(rng, (0, 0, 1))
    label = "second " * rank + word
    program = Ranked(few.kind, "letters", (nth(end, rank),), label)
    phrases = (f"the {few.kind} with the {label} letters", f"the {few.kind} on which the {label} letters are written")
    return Proposal(program, phrases, (f"has the {label} letters",))


def _singled_out(rng: np.random.Generator, world: World, kind: str, hidden: Attribute | None) -> Anchor | None:
    """A thing of another kind, with others of its own beside it, that a step of its own finds: `the largest star`."""
    kinds = sorted({thing.kind for thing in world.things if len(world.of_kind(thing.kind)) > 1} - {kind})
    if not kinds or hidden == "size":
        return None
    few = Few(pick(rng, kinds), 2, filtered=True)
    found = pick(rng, (by_size, by_size, by_position))(rng, few, "object")
    return None if found is None else _found(rng, world, found)


def _bearing(attribute: Literal["mark", "letters"], words: str) -> FindAnchor:
    """Finds a thing of another kind that its mark or its letters tell from others of its own."""

    def find(rng: np.random.Generator, world: World, kind: str, hidden: Attribute | None) -> Anchor | None:  # noqa: ARG001
        bearing = [thing for thing in world.things if getattr(thing, attribute) and thing.kind != kind]
        if not bearing:
            return None
        thing = pick(rng, bearing)
        text = getattr(thing, attribute)
        found = Described(thing.kind, **{attribute: text})
        return _found(rng, world, Proposal(found, (f"the {thing.kind} {words} {text}",), ()))

    return find


def _found(rng: np.random.Generator, world: World, proposal: Proposal) -> Anchor | None:
    """What a proposal finds, as an anchor; None unless it is one thing among others of its kind."""
    found = proposal.program.targets(world)
    if found is None or len(found) != 1 or len(world.of_kind(str(proposal.program.kind))) < 2:
        return None
    return Anchor(found[0], pick(rng, proposal.phrases).removeprefix("the "), proposal.program)


def all_needed(program: Program, target: tuple[int, ...], world: World) -> bool:
    """Whether no step of a chain can be left out.

    Without its filter, or with any other thing in place of the one that an earlier step finds, the answer is another
    one, however close to call.
    """
    if isinstance(program, Ranked) and program.among is not None:
        return set(replace(program, among=None).nominal(world)) != {*target}
    other = getattr(program, "anchor", None)
    if isinstance(program, Ranked | Beside | Shared) and other is not None and other.by is not None:
        mates = [thing.index for thing in world.of_kind(world.things[other.index].kind) if thing.index != other.index]
        answers = [replace(program, anchor=replace(other, index=mate)).nominal(world) for mate in mates]
        return all({*answer} != {*target} for answer in answers)
    return True
