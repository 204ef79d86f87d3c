"""What pictures and worlds promise: same bytes, exact masks, everything visible, splits kept apart."""

import hashlib
import itertools
from functools import cache

import numpy as np
import pytest

from rea2seg.synth.render import MIN_PIXELS, MIN_VISIBLE, Rendering, look, render, sample_world
from rea2seg.synth.vocabulary import COLOURS, HELD_OUT, KINDS, PARTS, SIZES
from rea2seg.synth.worlds import World


@cache
def pictures() -> list[tuple[World, Rendering]]:
    rng = np.random.default_rng(5)
    worlds = [sample_world(rng, "test") for _ in range(60)]
    return [(world, render(world)) for world in worlds]


def test_the_same_seed_gives_the_same_pixels_everywhere() -> None:
    digest = hashlib.sha256()
    for seed in range(6):
        rendering = render(sample_world(np.random.default_rng(seed), "test"))
        for array in (rendering.image, rendering.instance_ids, rendering.part_ids):
            digest.update(np.ascontiguousarray(array).tobytes())
    assert digest.hexdigest() == "9ddc69f7b9377f2ee2e4c6fe224934fb6f447a42d04eecd9e4976c3733ac2b9a", (
        "other pixels: raise VERSION and write the new digest here"
    )


def test_pictures_have_the_promised_shapes() -> None:
    for world, rendering in pictures():
        height, width, _ = rendering.image.shape
        assert max(height, width) == 256
        assert 3 / 4 - 0.01 <= min(height, width) / max(height, width) <= 1
        assert 5 <= len(world.things) <= 12


def test_every_thing_shows_enough_of_itself() -> None:
    for world, rendering in pictures():
        visible = rendering.visible_areas().sum(1)
        assert (visible >= MIN_VISIBLE * rendering.areas.sum(1)).all()
        assert (visible >= MIN_PIXELS).all()
        assert len(visible) == len(world.things)


def test_parts_partition_their_things() -> None:
    for world, rendering in pictures():
        for thing in world.things:
            whole = rendering.mask(thing.index)
            first, second = rendering.mask(thing.index, 1), rendering.mask(thing.index, 2)
            assert not (first & second).any()
            assert np.array_equal(first | second, whole)
            assert bool(second.any()) <= (thing.kind in PARTS)
        assert np.array_equal(rendering.part_ids > 0, rendering.instance_ids > 0)


def test_nearer_things_hide_farther_ones() -> None:
    hidden = [
        (rendering.areas.sum(1) - rendering.visible_areas().sum(1))[thing.index]
        for world, rendering in pictures()
        for thing in world.things
        if thing.depth == 0
    ]
    assert not any(hidden)
    assert any((rendering.visible_areas() < rendering.areas).any() for _, rendering in pictures())


def test_a_larger_picture_shows_the_same_world() -> None:
    world, small = pictures()[0]
    large = render(world, 512)
    assert max(large.image.shape) == 512
    shares = [rendering.visible_areas().sum(1) / rendering.instance_ids.size for rendering in (small, large)]
    np.testing.assert_allclose(shares[0], shares[1], rtol=0.08)


def test_every_world_has_a_crowd() -> None:
    for world, _ in pictures():
        assert 3 <= max(len(world.of_kind(kind)) for kind in KINDS) <= 5


def test_sizes_of_different_words_are_clearly_different() -> None:
    ranges = list(SIZES.values())
    assert all(above[0] / below[1] >= 1.27 for below, above in itertools.pairwise(ranges))
    for world, _ in pictures():
        assert all(SIZES[thing.size][0] <= thing.radius <= SIZES[thing.size][1] for thing in world.things)


def combinations(split: str) -> set[tuple[str, str]]:
    rng = np.random.default_rng(0)
    return {(thing.kind, thing.colour) for _ in range(100) for thing in sample_world(rng, split).things}


def test_held_out_combinations_are_seen_in_test_only() -> None:
    assert len(HELD_OUT) == 8
    for split in ("train", "val", "no_target"):
        assert not combinations(split) & HELD_OUT
    assert combinations("test") >= HELD_OUT


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown split"):
        sample_world(np.random.default_rng(0), "dev")


def test_the_seen_centre_is_the_centre_of_the_visible_mask() -> None:
    world, rendering = pictures()[3]
    for thing in look(world, rendering).things:
        rows, cols = rendering.mask(thing.index).nonzero()
        assert thing.x == pytest.approx((cols.mean() + 0.5) / 256)
        assert thing.y == pytest.approx((rows.mean() + 0.5) / 256)


def test_plain_things_have_the_colour_they_are_named_after() -> None:
    base = np.array(list(COLOURS.values()), float)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    for world, rendering in pictures():
        for thing in world.things:
            if thing.texture == "plain":
                mean = rendering.image[rendering.mask(thing.index)].astype(float).mean(0)
                assert list(COLOURS)[int((base @ mean).argmax())] == thing.colour
