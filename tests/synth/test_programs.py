"""Programs on a world made by hand, whose answers a person can read off the plan."""

from dataclasses import replace

import pytest

from rea2seg.synth.filters import Beside, Counted, Described, Overlapping, Shared
from rea2seg.synth.multi_step import all_needed
from rea2seg.synth.programs import Anchor, Program, Ranked
from rea2seg.synth.worlds import Thing, World


def thing(index: int, kind: str, colour: str, x: float, y: float, radius: float, texture: str = "plain") -> Thing:
    size = "small" if radius < 0.07 else "medium" if radius < 0.1 else "large"
    return Thing(index, kind, colour, size, texture, x, y, radius, depth=index)


# A plan of the picture, 1 wide and 0.8 high:
#
#   star 0            star 1                      cup 4
#            house 3
#   cup 5             star 2       ball 6         star 7
STARS_AND_CUPS = World(
    1.0,
    0.8,
    (
        thing(0, "star", "red", 0.12, 0.1, 0.05),
        thing(1, "star", "blue", 0.45, 0.16, 0.08, "striped"),
        thing(2, "star", "red", 0.52, 0.62, 0.12),
        thing(3, "house", "blue", 0.32, 0.35, 0.08),
        thing(4, "cup", "green", 0.88, 0.12, 0.05),
        thing(5, "cup", "white", 0.07, 0.7, 0.05),
        thing(6, "ball", "yellow", 0.7, 0.65, 0.05, "striped"),
        thing(7, "star", "green", 0.92, 0.56, 0.055),
    ),
    light=(0.0, -1.0),
    seed=0,
)
HOUSE, BALL = Anchor(3, "house"), Anchor(6, "yellow ball")

ANSWERS: list[tuple[Program, tuple[int, ...], str]] = [
    (Ranked("star", "size", (0,), "largest"), (2,), "stars by size: f7, e2, j7, b1. largest: f7."),
    (
        Ranked("star", "size", (0, 1), "two largest"),
        (2, 1),
        "stars by size: f7, e2, j7, b1. two largest: f7, e2.",
    ),
    (Ranked("star", "x", (-1,), "rightmost"), (7,), "stars from left: b1, e2, f7, j7. rightmost: j7."),
    (Ranked("star", "y", (0,), "topmost"), (0,), "stars from top: b1, e2, j7, f7. topmost: b1."),
    (
        Ranked("star", "distance", (0, 1), "two nearest to the centre"),
        (2, 1),
        "stars from nearest: f7, e2, j7, b1. two nearest to the centre: f7, e2.",
    ),
    (
        Ranked("star", "x", (1, 2), "second and third from left"),
        (1, 2),
        "stars from left: b1, e2, f7, j7. second and third from left: e2, f7.",
    ),
    (Ranked("star", "x", (-2,), "second from right"), (2,), "stars from left: b1, e2, f7, j7. second from right: f7."),
    (
        Shared("star", "colour", HOUSE),
        (1,),
        "house: d4 blue. stars: b1 red, e2 blue, f7 red, j7 green. same colour: e2.",
    ),
    (
        Shared("star", "texture", BALL),
        (1,),
        "yellow ball: h8 striped. stars: b1 plain, e2 striped, f7 plain, j7 plain. same texture: e2.",
    ),
    (Shared("star", "colour"), (0, 2), "stars: b1 red, e2 blue, f7 red, j7 green. same colour: b1, f7."),
    (Beside("star", "left", HOUSE), (0,), "house: d4. stars from left: b1, e2, f7, j7. left of d4: b1."),
    (Beside("star", "below", HOUSE), (7, 2), "house: d4. stars from top: b1, e2, j7, f7. below d4: j7, f7."),
    (Beside("star", "above"), (0, 1), "stars from top: b1, e2, j7, f7. above middle: b1, e2."),
    (
        Ranked("star", "distance", (-1,), "farthest", HOUSE),
        (7,),
        "house: d4. stars from nearest: e2, b1, f7, j7. farthest: j7.",
    ),
    (
        Counted("star", "cup", "above", 1),
        (7, 2),
        "cups from top: i1, a8. stars with cups above: b1 0, e2 0, j7 1, f7 1. exactly 1: j7, f7.",
    ),
    (Described("star", "blue"), (1,), "stars: b1 red, e2 blue, f7 red, j7 green. blue: e2."),
    (Described(texture="striped"), (1, 6), "striped things: e2, h8."),
    (Described("cup"), (5, 4), "cups: a8, i1."),
    (Described("cup", "red"), (), "cups: a8 white, i1 green. red: none."),
]


@pytest.mark.parametrize(("program", "answer", "reasoning"), ANSWERS, ids=lambda value: type(value).__name__)
def test_programs_answer_and_explain(program: Program, answer: tuple[int, ...], reasoning: str) -> None:
    if isinstance(program, Counted):
        # On the plan the upper cup and the upper stars are too close to compare.
        world = moved(4, y=0.36)
        reasoning = reasoning.replace("i1", "i4")
    else:
        world = STARS_AND_CUPS
    assert program.targets(world) == answer
    assert program.reasoning(world) == reasoning


def moved(index: int, **changes: float) -> World:
    things = tuple(
        replace(thing, **changes) if thing.index == index else thing  # type: ignore[arg-type]
        for thing in STARS_AND_CUPS.things
    )
    return replace(STARS_AND_CUPS, things=things)


@pytest.mark.parametrize(
    ("program", "world"),
    [
        (Ranked("star", "size", (0,), "largest"), moved(1, radius=0.105)),
        (Ranked("star", "x", (0,), "leftmost"), moved(1, x=0.155)),
        (Ranked("star", "x", (1,), "second from left"), moved(2, x=0.48)),
        (Ranked("star", "distance", (0,), "closest", HOUSE), moved(0, x=0.2, y=0.2)),
        (Beside("star", "left", HOUSE), moved(1, x=0.35)),
        (Beside("star", "right"), moved(2, x=0.51)),
        (Counted("star", "cup", "above", 1), STARS_AND_CUPS),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_too_close_to_call_has_no_answer(program: Program, world: World) -> None:
    assert program.targets(world) is None


@pytest.mark.parametrize(
    ("key", "places", "passed"),
    [
        ("x", (0,), ()),
        ("x", (2,), (0, 1)),
        ("x", (1, 2), (0,)),
        ("x", (-2,), (7,)),
        ("y", (-1,), ()),
        ("y", (-3, -2), (2,)),
    ],
)
def test_what_one_passes_lies_between_the_end_and_the_first_place(key, places, passed):
    assert Ranked("star", key, places, "").passed(STARS_AND_CUPS) == passed


def test_only_differences_that_decide_need_a_margin() -> None:
    close_behind = moved(2, x=0.46)
    assert Ranked("star", "x", (0,), "leftmost").targets(close_behind) == (0,)


def test_distances_must_agree_between_centres_and_edges() -> None:
    world = moved(2, x=0.32, y=0.61)
    assert Ranked("star", "distance", (0,), "closest", HOUSE).targets(world) is None
    smaller = replace(world, things=tuple(replace(thing, radius=0.05) for thing in world.things))
    near = replace(smaller, things=tuple(replace(t, y=0.2) if t.index == 1 else t for t in smaller.things))
    assert Ranked("star", "distance", (0,), "closest", HOUSE).targets(near) is not None


LETTERS = replace(
    STARS_AND_CUPS,
    things=tuple(
        replace(thing, letters=letters, mark=mark)
        for thing, letters, mark in zip(
            STARS_AND_CUPS.things,
            ("KO", "A", "TEX", "A", "", "", "", "ZIPS"),
            ("cross", "cross", "", "cross", "", "", "", "diamond"),
            strict=True,
        )
    ),
)
LARGEST_STAR = Ranked("star", "size", (0,), "largest")
CHAINS: list[tuple[Program, tuple[int, ...], str]] = [
    (
        Ranked("star", "size", (0,), "largest", among=Described("star", mark="cross")),
        (1,),
        "stars: b1 cross, e2 cross, f7, j7 diamond. cross: b1, e2. stars by size: e2, b1. largest: e2.",
    ),
    (
        Ranked("star", "x", (-1,), "rightmost", among=Beside("star", "left", BALL)),
        (2,),
        "yellow ball: h8. stars from left: b1, e2, f7, j7. left of h8: b1, e2, f7. "
        "stars from left: b1, e2, f7. rightmost: f7.",
    ),
    (
        Ranked("cup", "distance", (0,), "closest", Anchor(2, "largest star", LARGEST_STAR)),
        (5,),
        "stars by size: f7, e2, j7, b1. largest: f7. largest star: f7. cups from nearest: a8, i1. closest: a8.",
    ),
    (
        Ranked("star", "letters", (0,), "most"),
        (7,),
        "stars by letters: j7 ZIPS, f7 TEX, b1 KO, e2 A. most: j7.",
    ),
    (
        Shared("star", "mark", Anchor(3, "house")),
        (0, 1),
        "house: d4 cross. stars: b1 cross, e2 cross, f7 none, j7 diamond. same mark: b1, e2.",
    ),
    (Described("star", letters="A"), (1,), "stars: b1 KO, e2 A, f7 TEX, j7 ZIPS. A: e2."),
]


@pytest.mark.parametrize(("program", "answer", "reasoning"), CHAINS)
def test_steps_follow_each_other(program: Program, answer: tuple[int, ...], reasoning: str) -> None:
    assert program.targets(LETTERS) == answer
    assert program.reasoning(LETTERS) == reasoning


def hidden_by(*shares: tuple[int, int, float]) -> World:
    """The plan with some shares of things hidden: (back, front, share)."""
    count = len(STARS_AND_CUPS.things)
    table = [[0.0] * count for _ in range(count)]
    for back, front, share in shares:
        table[back][front] = share
    return replace(STARS_AND_CUPS, hidden=tuple(map(tuple, table)))


def test_what_is_hidden_lies_behind_what_hides_it() -> None:
    world = hidden_by((1, 3, 0.3), (6, 2, 0.4))
    assert Overlapping("star", "behind", HOUSE).targets(world) == (1,)
    assert Overlapping("star", "in front of", BALL).targets(world) == (2,)
    assert Overlapping("star", "behind").targets(world) == (1,)
    assert Overlapping("star", "behind", BALL).targets(world) == ()
    assert Overlapping("star", "behind", HOUSE).reasoning(world) == (
        "house: d4. stars from left: b1, e2, f7, j7. behind d4: e2."
    )


def test_a_touch_hides_neither_clearly_nor_nothing() -> None:
    assert Overlapping("star", "behind").targets(hidden_by((1, 3, 0.01))) == ()
    assert Overlapping("star", "behind").targets(hidden_by((1, 3, 0.06))) is None
    assert Overlapping("star", "behind").targets(hidden_by((1, 3, 0.06), (1, 2, 0.2))) == (1,)


def test_things_without_letters_cannot_be_compared_by_them() -> None:
    assert Ranked("cup", "letters", (0,), "most").targets(LETTERS) is None


def test_what_has_no_mark_shares_none() -> None:
    assert Shared("star", "mark", BALL).targets(LETTERS) is None


def test_a_place_beyond_the_end_selects_nothing() -> None:
    few = Ranked("star", "x", (2,), "third from left", among=Described("star", mark="cross"))
    assert few.targets(LETTERS) is None


@pytest.mark.parametrize(
    ("program", "target", "needed"),
    [
        # Of those with a cross the largest is not the largest of all; of those to the left of the ball it is.
        (Ranked("star", "size", (0,), "largest", among=Described("star", mark="cross")), (1,), True),
        (Ranked("star", "size", (0,), "largest", among=Beside("star", "left", BALL)), (2,), False),
        # The cup that is nearest to the largest star is nearest to the star on the left too, but not to the others.
        (Ranked("cup", "distance", (0,), "closest", Anchor(2, "largest star", LARGEST_STAR)), (5,), False),
        # To the left of the topmost cup are three stars, to the left of the other cup none.
        (
            Beside("star", "left", Anchor(4, "topmost cup", Ranked("cup", "y", (0,), "topmost"))),
            (0, 1, 2),
            True,
        ),
        (Ranked("star", "letters", (0,), "most"), (7,), True),
    ],
)
def test_a_step_is_needed_if_the_answer_changes_without_it(
    program: Program, target: tuple[int, ...], needed: bool
) -> None:
    assert program.nominal(LETTERS) == target
    assert all_needed(program, target, LETTERS) is needed


def test_a_step_that_is_only_too_close_to_call_is_not_needed() -> None:
    """Without the filter two stars are nearly as large as each other: nobody needs it to name the larger one."""
    things = list(LETTERS.things)
    things[1] = replace(things[1], radius=0.115)
    world = replace(LETTERS, things=tuple(things))
    program = Ranked("star", "size", (0,), "largest", among=Beside("star", "below", HOUSE))
    assert program.targets(world) == (2,)
    assert replace(program, among=None).targets(world) is None
    assert not all_needed(program, (2,), world)


def test_the_order_of_places_is_that_of_the_edges_too() -> None:
    """Star 1 begins farther left than star 0 ends up: large things reach beyond the centres of small ones."""
    assert Ranked("star", "x", (0,), "leftmost").targets(STARS_AND_CUPS) == (0,)
    things = list(STARS_AND_CUPS.things)
    things[1] = replace(things[1], x=0.18, radius=0.12)
    world = replace(STARS_AND_CUPS, things=tuple(things))
    assert Ranked("star", "x", (0,), "leftmost").nominal(world) == (0,)
    assert Ranked("star", "x", (0,), "leftmost").targets(world) is None
    assert Ranked("star", "x", (-4,), "fourth from right").targets(world) == (0,)
