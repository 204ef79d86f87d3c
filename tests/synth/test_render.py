"""What pictures and worlds promise: same bytes, exact masks, everything visible, splits kept apart."""

import hashlib
import itertools
from functools import cache

import numpy as np
import pytest

from rea2seg.synth.glyphs import ALPHABET, inked
from rea2seg.synth.measures import SIZE_MARGIN
from rea2seg.synth.render import MIN_PIXELS, MIN_VISIBLE, MIN_VISIBLE_OCCLUDED, Rendering, look, render, sample_world
from rea2seg.synth.vocabulary import (
    CAMOUFLAGED,
    COLOURS,
    FACES,
    HELD_OUT,
    KINDS,
    MARKS,
    PARTS,
    SIZES,
    THIN,
    WRITABLE,
)
from rea2seg.synth.worlds import THEMES, Theme, World


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
    assert digest.hexdigest() == "cdb9b88315b015bca73bce6f5ef23281bf80d5f7bc2af8e28b0af92c5e1b07fe", (
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
        least = MIN_VISIBLE_OCCLUDED if world.theme == "occlusion" else MIN_VISIBLE
        assert (visible >= least * rendering.areas.sum(1)).all()
        assert np.array_equal(rendering.hidden.sum(1), rendering.areas.sum(1) - visible)
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


@cache
def themed(theme: Theme) -> list[tuple[World, Rendering]]:
    rng = np.random.default_rng(8)
    worlds = [sample_world(rng, "train", theme) for _ in range(12)]
    return [(world, render(world)) for world in worlds]


def test_camouflaged_things_are_nearer_to_their_ground_than_others() -> None:
    steps: dict[bool, list[float]] = {True: [], False: []}
    for world, rendering in themed("camouflage"):
        ground = rendering.image[rendering.instance_ids == 0].astype(float).mean(0)
        for thing in world.things:
            surface = rendering.image[rendering.mask(thing.index)].astype(float).mean(0)
            steps[thing.colour == CAMOUFLAGED].append(float(np.abs(surface - ground).mean()))
    # Some difference is left to be seen.
    assert 4 < np.median(steps[True]) < 0.4 * np.median(steps[False])
    assert min(steps[False]) > np.median(steps[True])


def test_some_things_are_hidden_where_that_is_the_theme() -> None:
    shares = [np.array(look(world, rendering).hidden).max() for world, rendering in themed("occlusion")]
    assert np.mean(np.array(shares) > 0.12) > 0.8


def test_thin_things_are_thin() -> None:
    for world, rendering in themed("thin"):
        crowd = [thing for thing in world.things if thing.kind in THIN]
        assert len(crowd) >= 3
        for thing in crowd:
            assert rendering.areas[thing.index].sum() < 0.35 * np.pi * (thing.radius * 256) ** 2


@pytest.mark.parametrize("theme", ["marks", "letters"])
def test_what_is_painted_or_written_can_be_seen(theme: Theme) -> None:
    for world, rendering in themed(theme):
        bearing = [thing for thing in world.things if thing.mark or thing.letters]
        assert len(bearing) >= 3
        for thing in bearing:
            assert thing.kind in (FACES if thing.mark else WRITABLE)
            values = rendering.image[rendering.mask(thing.index)].astype(float).mean(1)
            assert np.percentile(values, 97) - np.percentile(values, 3) > 60


def test_letters_and_marks_cannot_be_mistaken_for_each_other() -> None:
    places = (np.arange(64, dtype=np.float32) - 31.5) / 64
    u, v = (np.ascontiguousarray(grid) for grid in np.meshgrid(places, places))
    for names in (ALPHABET, MARKS):
        drawn = [inked(name, u, v, 1.0) for name in names]
        for one, other in itertools.combinations(drawn, 2):
            # Three of the fifteen squares of a letter, of which at most ten have ink.
            assert (one ^ other).sum() >= 0.2 * (one | other).sum()


def test_a_world_without_a_theme_is_of_any() -> None:
    assert {world.theme for world, _ in pictures()} == {*THEMES}


def test_every_world_has_a_crowd() -> None:
    for world, _ in pictures():
        assert 3 <= max(len(world.of_kind(kind)) for kind in KINDS) <= 5


def test_sizes_of_different_words_are_clearly_different() -> None:
    ranges = list(SIZES.values())
    assert all(above[0] / below[1] >= SIZE_MARGIN for below, above in itertools.pairwise(ranges))
    for world, _ in pictures():
        assert all(SIZES[thing.size][0] <= thing.radius <= SIZES[thing.size][1] for thing in world.things)


def combinations(split: str) -> set[tuple[str, str]]:
    rng = np.random.default_rng(0)
    themes: list[Theme] = ["plain"] * 60 + ["thin"] * 40
    return {(thing.kind, thing.colour) for theme in themes for thing in sample_world(rng, split, theme).things}


def test_held_out_combinations_are_seen_in_test_only() -> None:
    assert len(HELD_OUT) == 11
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
            if thing.texture == "plain" and thing.colour in COLOURS and not (thing.mark or thing.letters):
                mean = rendering.image[rendering.mask(thing.index)].astype(float).mean(0)
                assert list(COLOURS)[int((base @ mean).argmax())] == thing.colour
