"""The labels of an image token say what is where that token looks."""

import numpy as np
import pytest
from torch.testing import assert_close

from rea2seg.synth.render import look, render
from rea2seg.synth.vocabulary import KINDS, SIZES
from rea2seg.synth.worlds import Thing, World
from training.regions import token_cells
from training.scenes import codes_of
from training.token_labels import NAMES, RARE, labels_of, middles

WORLD = World(
    1.0,
    0.75,
    (
        Thing(0, "cup", "blue", "large", "striped", x=0.3, y=0.3, radius=0.12, depth=0),
        Thing(1, "ball", "red", "small", "plain", x=0.8, y=0.6, radius=0.055, depth=1),
    ),
    (0.0, -1.0),
    seed=0,
)


@pytest.mark.parametrize("padded", [True, False])
def test_labels_name_what_fills_a_cell_and_place_its_object(padded):
    rendering = render(WORLD)
    seen = look(WORLD, rendering)
    labels = labels_of(seen, token_cells(codes_of(rendering), 12, padded), padded)
    down = 0.125 if padded else 0.0
    scale = 1.0 if padded else 1 / 0.75
    cup, ball = seen.things
    row, col = int(12 * (ball.y * scale + down)), int(12 * ball.x)
    assert labels["kind"][row, col] == 1 + KINDS.index("ball")
    assert {name: int(labels[name][row, col]) for name in ("size", "texture", "part")} == {
        "size": 1 + [*SIZES].index("small"),
        "texture": 1,
        "part": 1,
    }
    assert_close(labels["place"][row, col], np.array([ball.x, ball.y * scale + down, ball.radius], np.float32))
    assert labels["column"][row, col] == 1 + int(16 * ball.x)
    assert labels["row"][row, col] == 1 + int(16 * (ball.y * scale + down))
    row, col = int(12 * (cup.y * scale + down)), int(12 * cup.x)
    assert {name: int(labels[name][row, col]) for name in ("size", "texture", "part")} == {
        "size": 1 + [*SIZES].index("large"),
        "texture": 2,
        "part": 2,
    }
    assert_close(labels["place"][row, col, :2], np.array([cup.x, cup.y * scale + down], np.float32))
    assert labels["middle"].sum() == 2
    assert labels["middle"][row, col] == 1
    nothing = labels["kind"] == 0
    assert nothing[0, 0]
    assert all((labels[name][nothing] == 0).all() for name in NAMES)


def test_labels_tell_what_is_written_and_who_hides_whom():
    back = Thing(0, "box", "blue", "large", "plain", x=0.4, y=0.4, radius=0.12, depth=1, letters="HO")
    front = Thing(1, "ball", "red", "small", "plain", x=0.5, y=0.4, radius=0.07, depth=0, mark="cross")
    apart = Thing(2, "star", "red", "small", "plain", x=0.85, y=0.5, radius=0.07, depth=2)
    world = World(1.0, 0.75, (back, front, apart), (0.0, -1.0), seed=0)
    rendering = render(world)
    seen = look(world, rendering)
    labels = labels_of(seen, token_cells(codes_of(rendering), 12, False), False)

    def rare(x, y):
        return {name: int(labels[name][int(12 * y / 0.75), int(12 * x)]) - 1 for name in RARE}

    box = {"mark": 0, "letters": 2, "letter_1": 3, "letter_2": 6, "letter_3": 0, "in_front": 0, "behind": 1}
    nothing = dict.fromkeys(RARE, 0)
    assert rare(0.3, 0.4) == box
    assert rare(0.5, 0.4) == {**nothing, "mark": 1, "in_front": 1}
    assert rare(0.85, 0.5) == nothing


def test_the_middle_of_an_object_is_its_cell_nearest_to_the_centre():
    owner = np.array([[0, 1, 1], [0, 1, 1], [2, 0, 0]])
    centre = np.where((owner == 1)[..., None], [0.9, 0.4], [0.2, 0.9])
    assert middles(owner, centre).tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0]]
