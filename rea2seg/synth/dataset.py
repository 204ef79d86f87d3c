"""SGDR-Synth as a dataset without end: sample i of a split and seed is always the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from rea2seg.errors import InputError
from rea2seg.structures import Granularity, Region, Sample
from rea2seg.synth.descriptions import name
from rea2seg.synth.queries import (
    COMPONENTS,
    GRANULARITIES,
    NO_TARGET,
    THEME_OF,
    Entry,
    Question,
    propose,
    propose_without_target,
)
from rea2seg.synth.render import SIDE, Rendering, look, render, sample_world
from rea2seg.synth.vocabulary import PARTS, SPLITS
from rea2seg.synth.worlds import World

SHARES = {"discriminative": 279, "geometric": 396, "spatial": 270, "multi-step": 245, "attribute": 110}
"""Questions of each category among 1,300: as many as ReasonSeg-SGDR has, and plain attribute questions beside them."""


@cache
def _turns() -> tuple[tuple[str, int], ...]:
    """The category of each of the 1,300, spread evenly, and how many of that category come before it."""
    asked: dict[str, int] = dict.fromkeys(SHARES, 0)
    total, turns = sum(SHARES.values()), []
    for index in range(total):
        # The one that is furthest behind its share comes next.
        category = max(SHARES, key=lambda name: SHARES[name] * (index + 1) / total - asked[name])
        turns.append((category, asked[category]))
        asked[category] += 1
    return tuple(turns)


@dataclass(frozen=True)
class SgdrSynth:
    """One picture and one question per sample, made when asked for. `split`: `train`, `val`, `test` or `no_target`.

    Categories come in fixed shares; in each of them components take turns, and in those the granularities: every prefix
    is as balanced as its length allows.
    """

    split: str
    seed: int = 0
    side: int = SIDE
    """Long side of the pictures in pixels."""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise InputError(f"SGDR-Synth has no split {self.split!r}, only {', '.join(SPLITS)}")
        if self.seed < 0:
            raise InputError(f"the data seed must be 0 or more, not {self.seed}")

    def sample(self, index: int) -> Sample:
        """Sample `index` with all its masks."""
        world, rendering, question = self.draw(index)
        return to_sample(f"{self.split}-{index:05d}", self.split, world, rendering, question)

    def samples(self, count: int) -> Iterator[Sample]:
        """The first `count` samples."""
        return (self.sample(index) for index in range(count))

    def entry(self, index: int) -> tuple[Entry, Granularity]:
        """What sample `index` asks for: (category, component) and granularity."""
        if self.split == "no_target":
            return [*NO_TARGET][index % len(NO_TARGET)], "object"
        rounds, place = divmod(index, len(_turns()))
        category, before = _turns()[place]
        components = [entry for entry in COMPONENTS if entry[0] == category]
        turn, number = divmod(rounds * SHARES[category] + before, len(components))
        if components[number] == ("multi-step", "part-instance"):
            return components[number], "part"
        # Shifted by the component, so that one turn of all components mixes granularities.
        return components[number], GRANULARITIES[(turn + 2 * number) % len(GRANULARITIES)]

    def draw(self, index: int) -> tuple[World, Rendering, Question]:
        """World, picture and question of sample `index`: worlds are drawn until one can be asked about as wanted."""
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        entry, granularity = self.entry(index)
        while True:
            world = sample_world(rng, self.split, THEME_OF.get(entry, "plain"))
            rendering = render(world, self.side)
            seen = look(world, rendering)
            if self.split == "no_target":
                question = propose_without_target(rng, seen, entry)
            else:
                question = propose(rng, seen, rendering, entry, granularity)
            if question is not None:
                return world, rendering, question


def to_sample(id: str, split: str, world: World, rendering: Rendering, question: Question) -> Sample:
    """A question about a rendered world in the form all datasets share. The graph gives centres as they are seen."""
    things = world.things
    instances = tuple(Region(name(thing), torch.from_numpy(rendering.mask(thing.index))) for thing in things)
    visible = rendering.visible_areas()
    parts = tuple(
        Region(f"{part} of {name(thing)}", torch.from_numpy(rendering.mask(thing.index, number + 1)))
        for thing in things
        for number, part in enumerate(PARTS.get(thing.kind, ()))
        if visible[thing.index, number]
    )
    return Sample(
        id=id,
        image=torch.from_numpy(rendering.image).permute(2, 0, 1).contiguous(),
        query=question.text,
        truth=torch.from_numpy(question.truth(rendering)) if question.target else None,
        category=question.category,
        component=question.component,
        granularity=question.granularity,
        split=split,
        instances=instances,
        parts=parts,
        graph={**look(world, rendering).graph(), "program": question.record(), "target": list(question.target)},
        reasoning=question.reasoning,
    )
