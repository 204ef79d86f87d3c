"""Nobody finds a target without looking at relations: two baselines that may not look are fitted, and fail.

The question alone knows its words and in which order the graph lists things; the looks alone know kind, colour,
texture, size and mark of every thing. Each chooses among the things of the target's kind.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from rea2seg.synth.queries import COMPONENTS, THEME_OF, Question, propose
from rea2seg.synth.render import look, render, sample_world
from rea2seg.synth.vocabulary import CAMOUFLAGED, COLOURS, KINDS, MARKS, SIZES, TEXTURES
from rea2seg.synth.worlds import Thing, World

RELATIONAL = ("geometric", "spatial", "multi-step")
"""The categories whose targets cannot be named by what they look like themselves."""
WORLDS = 120
MANY_WORLDS = 500
WORDS = 400
Choice = tuple[Float[Tensor, "n features"], int]


Asked = list[tuple[World, Question]]


@cache
def asked(split: str, count: int) -> dict[tuple[str, str], Asked]:
    """Questions with one target from every relational component: each once about each of `count` worlds of a theme."""
    rng, found = np.random.default_rng(3), defaultdict(list)
    entries = [entry for entry in COMPONENTS if entry[0] in RELATIONAL]
    for theme in sorted({THEME_OF.get(entry, "plain") for entry in entries}):
        for _ in range(count):
            world = sample_world(rng, split, theme)
            rendering = render(world, side=160)
            seen = look(world, rendering)
            for entry in entries:
                if THEME_OF.get(entry, "plain") == theme:
                    question = propose(rng, seen, rendering, entry, "object")
                    found[entry] += [] if question is None else [(seen, question)]
    return found


def one_hot(index: int, count: int) -> list[float]:
    return [float(place == index) for place in range(count)]


def looks_of(thing: Thing) -> list[float]:
    return [
        *one_hot(KINDS.index(thing.kind), len(KINDS)),
        *one_hot([*COLOURS, CAMOUFLAGED].index(thing.colour), len(COLOURS) + 1),
        *one_hot(TEXTURES.index(thing.texture), len(TEXTURES)),
        *one_hot([*SIZES].index(thing.size), len(SIZES)),
        *one_hot(["", *MARKS].index(thing.mark), len(MARKS) + 1),
    ]


def by_looks(world: World, question: Question) -> Choice:
    things = world.of_kind(world.things[question.target[0]].kind)
    return torch.tensor([looks_of(thing) for thing in things]), [t.index for t in things].index(question.target[0])


def by_question(world: World, question: Question) -> Choice:
    """The words, each once for every place in the list."""
    things = world.of_kind(world.things[question.target[0]].kind)
    words = torch.zeros(WORDS)
    for word in question.text.lower().strip("?.").split():
        words[sum(map(ord, word)) * 31 % WORDS] = 1
    rows = torch.zeros(len(things), 5, WORDS)
    for place in range(len(things)):
        rows[place, place] = words
    return rows.flatten(1), [thing.index for thing in things].index(question.target[0])


def fitted(choices: list[Choice]) -> Float[Tensor, " features"]:
    """Weights of the features that make the targets likely, held small."""
    weights = torch.zeros(choices[0][0].shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=40)

    def loss() -> Tensor:
        optimiser.zero_grad()
        chances = [torch.log_softmax(features @ weights, 0)[target] for features, target in choices]
        total = -torch.stack(chances).mean() + 3e-3 * weights.square().sum()
        total.backward()
        return total

    optimiser.step(loss)
    return weights.detach()


def gain(weights: Float[Tensor, " features"], choices: list[Choice]) -> list[float]:
    """For every choice whether it is right, less the chance of guessing it among the things of its kind."""
    return [float((features @ weights).argmax() == target) - 1 / len(features) for features, target in choices]


def gains(baseline: Callable[[World, Question], Choice], count: int) -> dict[tuple[str, str], list[float]]:
    """Of a baseline that is fitted to all components at once: for every component, one number a tested question."""
    training = [row for own in asked("train", count).values() for row in own]
    weights = fitted([baseline(*row) for row in training])
    return {entry: gain(weights, [baseline(*row) for row in own]) for entry, own in asked("test", count).items()}


@pytest.mark.parametrize("baseline", [by_looks, by_question])
def test_no_category_has_a_shortcut(baseline: Callable[[World, Question], Choice]) -> None:
    by_category = defaultdict(list)
    for (category, _), own in gains(baseline, WORLDS).items():
        by_category[category] += own
    assert {*by_category} == {*RELATIONAL}
    assert max(float(np.mean(own)) for own in by_category.values()) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("baseline", [by_looks, by_question])
def test_no_component_has_a_shortcut(baseline: Callable[[World, Question], Choice]) -> None:
    found = {component: float(np.mean(own)) for (_, component), own in gains(baseline, MANY_WORLDS).items()}
    assert len(found) == 13
    assert max(found.values()) <= 0.05, found


def test_the_baselines_find_what_can_be_named() -> None:
    """Else the tests above could not fail: targets that are always red are found by their looks, the first in the list
    by the question."""
    red, first = [], []
    for world, question in (row for own in asked("train", WORLDS).values() for row in own):
        things = world.of_kind(world.things[question.target[0]].kind)
        of_red = [place for place, thing in enumerate(things) if thing.colour == "red"]
        red += [(by_looks(world, question)[0], of_red[0])] if len(of_red) == 1 else []
        first.append((by_question(world, question)[0], 0))
    assert float(np.mean(gain(fitted(red), red))) > 0.5
    assert float(np.mean(gain(fitted(first), first))) > 0.5
