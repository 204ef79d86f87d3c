"""Questions about a world: proposed by components, checked by execution, worded and explained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from rea2seg.errors import InputError
from rea2seg.structures import Granularity
from rea2seg.synth.attribute import absent, described
from rea2seg.synth.descriptions import cell, cells
from rea2seg.synth.discriminative import camouflage, occlusion, thin_structures
from rea2seg.synth.geometric import ordinal, relative_position, relative_size, shared_attribute
from rea2seg.synth.multi_step import (
    all_needed,
    common_sense,
    comparison,
    part_instance,
    spatial_relation,
    visual_detail,
    written_letters,
)
from rea2seg.synth.programs import Anchor, Program
from rea2seg.synth.proposals import MIN_DISTRACTORS, Component, Proposal, noun
from rea2seg.synth.render import MIN_VISIBLE, Rendering, look
from rea2seg.synth.spatial import counting, relation, relative_distance
from rea2seg.synth.vocabulary import PARTS
from rea2seg.synth.worlds import Theme, World, pick

Entry = tuple[str, str]
"""A category and a component of it."""

COMPONENTS: dict[Entry, Component] = {
    ("discriminative", "camouflage"): camouflage,
    ("discriminative", "occlusion"): occlusion,
    ("discriminative", "thin structures"): thin_structures,
    ("geometric", "relative size"): relative_size,
    ("geometric", "relative position"): relative_position,
    ("geometric", "ordinal"): ordinal,
    ("geometric", "shared attributes"): shared_attribute,
    ("spatial", "relation"): relation,
    ("spatial", "relative distance"): relative_distance,
    ("spatial", "counting"): counting,
    ("multi-step", "part-instance"): part_instance,
    ("multi-step", "visual detail"): visual_detail,
    ("multi-step", "written letters"): written_letters,
    ("multi-step", "spatial relation"): spatial_relation,
    ("multi-step", "comparison"): comparison,
    ("multi-step", "common sense"): common_sense,
    ("attribute", "attribute"): described,
}
"""The function that proposes questions of each (category, component)."""
NO_TARGET: dict[Entry, Component] = {
    ("spatial", "relation"): relation,
    ("geometric", "shared attributes"): shared_attribute,
    ("discriminative", "camouflage"): camouflage,
    ("spatial", "counting"): counting,
    ("attribute", "attribute"): absent,
}
"""The same for questions that nothing in the picture answers, in the order in which a dataset takes turns."""
THEME_OF: dict[Entry, Theme] = {
    ("discriminative", "camouflage"): "camouflage",
    ("discriminative", "occlusion"): "occlusion",
    ("discriminative", "thin structures"): "thin",
    ("multi-step", "visual detail"): "marks",
    ("multi-step", "written letters"): "letters",
}
"""The worlds that some components need. The others are asked in plain worlds by the dataset, in any by training."""
CATEGORIES = tuple(dict.fromkeys(category for category, _ in COMPONENTS))
GRANULARITIES: tuple[Granularity, ...] = ("object", "group", "object", "part", "object")
"""One turn of granularities: 60% objects, 20% groups, 20% parts."""

_MIN_PART_PIXELS = 24 / (256 * 256)
"""The least share of the picture that a part shows to be asked for. Ours: five by five pixels of 256."""
_TRIES = 12
"""Draws before another world is taken. Ours: a world costs as much as some dozen of them."""


@dataclass(frozen=True)
class Question:
    """A question about a rendered world, its answer as indices of things (and a part of them), and how to get there.

    `target` is empty where nothing in the picture answers the question. `selected_from` are the words for what it
    selects from, where they do not just name a kind.
    """

    text: str
    category: str
    component: str
    granularity: Granularity
    target: tuple[int, ...]
    part: str | None
    reasoning: str
    program: Program
    selected_from: str = ""

    def truth(self, rendering: Rendering) -> Bool[np.ndarray, "h w"]:
        """Where the answer is seen."""
        mask: Bool[np.ndarray, "h w"] = np.isin(rendering.instance_ids, [index + 1 for index in self.target])
        if self.part is not None:
            mask &= rendering.part_ids == part_id(self.part)
        return mask

    def record(self) -> dict[str, Any]:
        """The program as JSON-able data."""
        return {**_record(self.program), "part": self.part}


def _record(step: Any) -> dict[str, Any]:
    """A program, or what it refers to, with the programs inside it."""
    values = {field.name: getattr(step, field.name) for field in fields(step)}
    nested = {name: _record(value) for name, value in values.items() if is_dataclass(value)}
    operation = {} if isinstance(step, Anchor) else {"operation": type(step).__name__}
    return {**operation, **values, **nested}


def part_id(part: str) -> int:
    """1 for the first part of a kind, 2 for the second."""
    return 1 if any(part == first for first, _ in PARTS.values()) else 2


def _acceptable(proposal: Proposal, category: str, granularity: Granularity, world: World) -> tuple[int, ...] | None:
    """The answer of a proposal if it is clear, of the wanted form and not too easy."""
    target = proposal.program.targets(world)
    if target is None or (len(target) < 2 if granularity == "group" else len(target) != 1):
        return None
    kind = proposal.program.kind
    pool = list(world.things) if kind is None else world.of_kind(kind)
    if category != "attribute" and len(pool) - len(target) < MIN_DISTRACTORS:
        return None
    # The reasoning names things by their cells, so no two of those it lists may share one.
    listed = [world.things[index] for index in target] if kind is None else pool
    if len({cell(world, thing) for thing in listed}) < len(listed):
        return None
    return target if all_needed(proposal.program, target, world) else None


def _visible_part(rng: np.random.Generator, world: World, rendering: Rendering, index: int) -> str | None:
    """A part of a thing that can be seen well enough to be asked for."""
    visible, whole = rendering.visible_areas()[index], rendering.areas[index]
    least = _MIN_PART_PIXELS * max(rendering.instance_ids.shape) ** 2
    parts = [
        part
        for part, seen, all_of_it in zip(PARTS[world.things[index].kind], visible, whole, strict=True)
        if seen >= least and seen >= MIN_VISIBLE * all_of_it
    ]
    return pick(rng, parts) if parts else None


def _worded(rng: np.random.Generator, proposal: Proposal, granularity: Granularity, part: str | None) -> str:
    """One of several natural ways to ask."""
    phrase = pick(rng, proposal.phrases)
    if part is not None:
        phrase = f"the {part} of {phrase}"
    elif proposal.clauses and rng.random() < 0.35:
        kind = noun(proposal.program.kind, granularity) if proposal.program.kind else "thing"
        kind = "things" if kind == "thing" and granularity == "group" else kind
        things = f"of the {proposal.selected_from}" if proposal.selected_from else kind
        return f"Which {things} {pick(rng, proposal.clauses)}?"
    are = "are" if granularity == "group" else "is"
    forms = ("{}", "{}", "{}", "Please segment {}.", "Segment {}.", "Find {}.", f"Where {are} {{}}?", "Show me {}.")
    return pick(rng, forms).format(phrase)


def propose(
    rng: np.random.Generator,
    seen: World,
    rendering: Rendering,
    entry: Entry,
    granularity: Granularity,
) -> Question | None:
    """A question of one component and granularity about a world as it is seen; None if some draws led nowhere."""
    for _ in range(_TRIES):
        proposal = COMPONENTS[entry](rng, seen, granularity)
        target = None if proposal is None else _acceptable(proposal, entry[0], granularity, seen)
        if proposal is None or target is None:
            continue
        part = _visible_part(rng, seen, rendering, target[0]) if granularity == "part" else None
        if granularity == "part" and part is None:
            continue
        answer = cells(seen, [seen.things[index] for index in target])
        answer = f"{part} of {answer}" if part else answer
        reasoning = f"{proposal.hint}{proposal.program.reasoning(seen)} answer: {answer}."
        text = _worded(rng, proposal, granularity, part)
        return Question(text, *entry, granularity, target, part, reasoning, proposal.program, proposal.selected_from)
    return None


def propose_without_target(rng: np.random.Generator, seen: World, entry: Entry) -> Question | None:
    """A question that nothing in the picture answers; None if some draws led nowhere."""
    for _ in range(_TRIES):
        proposal = NO_TARGET[entry](rng, seen, "object")
        if proposal is not None and proposal.program.targets(seen) == ():
            reasoning = f"{proposal.program.reasoning(seen)} answer: none."
            text = _worded(rng, proposal, "object", None)
            return Question(text, *entry, "object", (), None, reasoning, proposal.program)
    return None


def questions(
    rng: np.random.Generator,
    world: World,
    rendering: Rendering,
    count: int,
    categories: Sequence[str] = CATEGORIES,
) -> list[Question]:
    """Up to `count` different questions about one picture, spread over components and granularities.

    `categories` may hold names of components too; what is named twice is asked for twice as often. Raises InputError
    for other names.
    """
    entries = [entry for entry in entries_of(categories) if THEME_OF.get(entry, world.theme) == world.theme]
    # What can be asked only here is asked more often here.
    entries += [entry for entry in entries if entry in THEME_OF] * 4
    seen = look(world, rendering)
    found: dict[str, Question] = {}
    for _ in range(4 * count):
        if len(found) == count or not entries:
            break
        question = propose(rng, seen, rendering, pick(rng, entries), pick(rng, GRANULARITIES))
        if question is not None:
            found[question.text] = question
    return list(found.values())


def entries_of(categories: Sequence[str]) -> list[Entry]:
    """The components of these categories; names of components count too, and what is named twice comes twice.

    Raises InputError for other names.
    """
    known = {name for entry in COMPONENTS for name in entry}
    if unknown := [name for name in categories if name not in known]:
        raise InputError(f"{unknown[0]!r} is no category or component of SGDR-Synth, only {', '.join(sorted(known))}")
    return [entry for entry in COMPONENTS for name in categories if name in entry]
