"""What questions promise: one clear answer, no shortcut, a reasoning that leads to the mask."""

import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from rea2seg.synth.descriptions import cell, describe_iou, describe_mask
from rea2seg.synth.filters import Described
from rea2seg.synth.queries import COMPONENTS, Question, propose, questions
from rea2seg.synth.render import Rendering, look, render, sample_world
from rea2seg.synth.vocabulary import CAMOUFLAGED, COLOURS, PARTS, PLURALS, RIDDLES, SIZES, TEXTURES, THIN
from rea2seg.synth.worlds import World

ATTRIBUTES = {*COLOURS, *SIZES, *TEXTURES}


@cache
def asked() -> list[tuple[World, Rendering, Question]]:
    """Questions with the world as it is seen."""
    rng = np.random.default_rng(11)
    found = []
    for _ in range(80):
        world = sample_world(rng, "train")
        rendering = render(world)
        found += [(look(world, rendering), rendering, question) for question in questions(rng, world, rendering, 8)]
    return found


def relational() -> list[tuple[World, Rendering, Question]]:
    return [entry for entry in asked() if entry[2].category != "attribute"]


def of_category(*names: str) -> list[tuple[World, Rendering, Question]]:
    return [entry for entry in asked() if entry[2].category in names]


def test_every_component_asks_in_every_granularity() -> None:
    assert {question.component for *_, question in asked()} == {component for _, component in COMPONENTS}
    assert {question.granularity for *_, question in asked()} == {"object", "group", "part"}


def test_every_answer_comes_from_execution_and_has_the_wanted_form() -> None:
    for world, rendering, question in asked():
        assert question.program.targets(world) == question.target
        assert (len(question.target) > 1) == (question.granularity == "group")
        assert (question.part is not None) == (question.granularity == "part")
        assert question.truth(rendering).any()


def test_two_distractors_of_the_same_kind_are_left_out() -> None:
    for world, _, question in relational():
        kinds = {world.things[index].kind for index in question.target}
        assert kinds == {question.program.kind}
        assert len(world.of_kind(kinds.pop())) - len(question.target) >= 2


def test_a_word_for_a_size_leaves_no_neighbouring_size_to_mistake_for_it() -> None:
    order, seen = [*SIZES], 0
    for world, _, question in of_category("attribute"):
        program = question.program
        if isinstance(program, Described) and program.size is not None:
            seen += 1
            rest = replace(program, size=None).targets(world)
            steps = {abs(order.index(world.things[index].size) - order.index(program.size)) for index in rest}
            assert 1 not in steps
    assert seen


def test_no_attribute_of_the_target_is_given_away() -> None:
    for world, _, question in of_category("geometric", "spatial"):
        anchor = getattr(question.program, "anchor", None)
        words = set(re.findall(r"\w+", question.text.replace(anchor.name, "") if anchor else question.text))
        assert not words & ATTRIBUTES
        if anchor:
            named = set(anchor.name.split())
            fitting = [t for t in world.things if named <= {t.colour, t.texture, t.kind}]
            assert [thing.index for thing in fitting] == [anchor.index]
            if question.component == "shared attributes":
                assert getattr(world.things[anchor.index], question.program.attribute) not in named  # type: ignore[union-attr]


def test_chains_lead_from_one_thing_to_another() -> None:
    chained = 0
    for world, _, question in of_category("multi-step"):
        among, anchor = getattr(question.program, "among", None), getattr(question.program, "anchor", None)
        if among is not None:
            assert {*question.target} < {*among.targets(world)}
            chained += 1
        if anchor is not None and anchor.by is not None:
            assert anchor.by.targets(world) == (anchor.index,)
            assert len(world.of_kind(world.things[anchor.index].kind)) > 1
            chained += 1
    assert chained > 10


def test_common_sense_does_not_name_the_kind() -> None:
    asked_by_riddle = [entry for entry in of_category("multi-step") if entry[2].component == "common sense"]
    assert len(asked_by_riddle) > 10
    for _, _, question in asked_by_riddle:
        kind = question.program.kind
        assert kind is not None
        assert not {kind, PLURALS[kind]} & set(re.findall(r"\w+", question.text))
        assert question.reasoning.startswith(f"{RIDDLES[kind]}: {PLURALS[kind]}. ")


def test_discriminative_targets_are_what_their_component_says() -> None:
    for world, _, question in of_category("discriminative"):
        targets = [world.things[index] for index in question.target]
        if question.component == "camouflage":
            assert {thing.colour for thing in targets} == {CAMOUFLAGED}
        elif question.component == "thin structures":
            assert {thing.kind for thing in targets} <= set(THIN)
        else:
            hidden = [sum(world.hidden[thing.index]) for thing in targets]
            hiding = [max(row[thing.index] for row in world.hidden) for thing in targets]
            assert min(map(max, hidden, hiding)) >= 0.12


def test_the_reasoning_ends_at_the_true_mask() -> None:
    for world, rendering, question in asked():
        answer = re.fullmatch(r".*\. answer: (?:(\w+) of )?(.*)\.", question.reasoning)
        assert answer is not None
        assert answer[1] == question.part
        centres = []
        for index in question.target:
            rows, cols = rendering.mask(index).nonzero()
            height, width = rendering.instance_ids.shape
            column, row = int((cols.mean() + 0.5) / width * 10), int((rows.mean() + 0.5) / height * 10)
            centres.append("abcdefghij"[column] + str(row))
        assert sorted(answer[2].split(", ")) == sorted(centres)
        listed = cell(world, world.things[question.target[0]])
        assert question.reasoning.count(listed) >= 2


def test_a_part_is_a_true_part_of_its_thing() -> None:
    for world, rendering, question in asked():
        if question.part is None:
            continue
        thing = world.things[question.target[0]]
        truth, number = question.truth(rendering), PARTS[thing.kind].index(question.part) + 1
        assert np.array_equal(truth, rendering.mask(thing.index, number))
        assert truth.sum() >= max(24, 0.6 * rendering.areas[thing.index, number - 1])


def test_questions_read_like_english() -> None:
    for *_, question in asked():
        assert re.fullmatch(r"[A-Za-z -]+[.?]?", question.text.replace(", ", " ")), question.text
        assert "  " not in question.text
        assert question.text[0].isupper() == (question.text[-1] in ".?")


def test_questions_of_one_picture_differ_and_keep_to_their_categories() -> None:
    rng = np.random.default_rng(2)
    world = sample_world(rng, "train")
    found = questions(rng, world, render(world), 20, categories=("spatial",))
    assert {question.category for question in found} == {"spatial"}
    assert len({question.text for question in found}) == len(found) > 5


def test_the_same_generator_asks_the_same() -> None:
    world = sample_world(np.random.default_rng(3), "train")
    rendering = render(world)
    once, again = (questions(np.random.default_rng(4), world, rendering, 10) for _ in range(2))
    assert once == again


@pytest.mark.parametrize("entry", COMPONENTS, ids=lambda entry: entry[1])
def test_a_picture_of_one_kind_alone_needs_no_anchor(entry: tuple[str, str]) -> None:
    world = sample_world(np.random.default_rng(6), "train")
    crowd = max((world.of_kind(thing.kind) for thing in world.things), key=len)
    alone = replace(world, things=tuple(replace(thing, index=index) for index, thing in enumerate(crowd)))
    rendering = render(alone)
    question = propose(np.random.default_rng(0), look(alone, rendering), rendering, entry, "object")
    assert question is None or getattr(question.program, "anchor", None) is None
    assert propose(np.random.default_rng(0), replace(alone, things=alone.things[:1]), rendering, entry, "group") is None


def test_masks_are_described_by_what_they_cover() -> None:
    world, rendering, _ = next(
        entry for entry in asked() if any(thing.kind in PARTS for thing in entry[0].things) and len(entry[0].things) > 6
    )
    thing = next(thing for thing in world.things if thing.kind in PARTS)
    other = next(one for one in world.things if one.index != thing.index)
    place = f"{thing.kind} {cell(world, thing)}"
    assert describe_mask(rendering.mask(thing.index), rendering, world) == place
    handle = describe_mask(rendering.mask(thing.index, 1), rendering, world)
    assert handle == f"{PARTS[thing.kind][0]} of {place}"
    both = describe_mask(rendering.mask(thing.index) | rendering.mask(other.index), rendering, world)
    assert set(both.split(" and ")) == {place, f"{other.kind} {cell(world, other)}"}
    assert describe_mask(rendering.instance_ids == 0, rendering, world) == "background"
    assert describe_mask(rendering.instance_ids < 0, rendering, world) == "background"
    everything = describe_mask(rendering.instance_ids >= 0, rendering, world)
    assert everything.endswith(" and background")


def test_an_iou_is_described_in_a_word() -> None:
    assert [describe_iou(value) for value in (0.0, 0.09, 0.1, 0.59, 0.6, 1.0)] == ["no"] * 2 + ["part"] * 2 + [
        "exactly"
    ] * 2


def share_of_attribute(categories: tuple[str, ...]) -> float:
    rng = np.random.default_rng(0)
    found = [questions(rng, world, rendering, 6, categories) for world, rendering, _ in asked()[::8]]
    return float(np.mean([question.category == "attribute" for some in found for question in some]))


def test_a_category_that_is_named_often_is_asked_for_often() -> None:
    assert share_of_attribute(("attribute", "spatial")) < 0.4  # 1 of 4 entries.
    assert share_of_attribute(("attribute",) * 9 + ("spatial",)) > 0.6  # 9 of 12 entries.


def test_components_can_be_named_like_categories() -> None:
    rng = np.random.default_rng(2)
    world = sample_world(rng, "train")
    found = questions(rng, world, render(world), 12, categories=("ordinal", "relation"))
    assert {question.component for question in found} == {"ordinal", "relation"}
