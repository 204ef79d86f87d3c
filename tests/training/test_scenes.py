import numpy as np
import torch

from rea2seg.synth.vocabulary import HELD_OUT, PARTS
from training.scenes import CODES, CODES_PER_OBJECT, Targets, code_lattice, code_set, codes_of, sample_scene, to_tensor


def test_a_set_of_codes_is_the_union_of_masks():
    for seed in range(4):
        world, rendering = sample_scene(np.random.default_rng(seed))
        codes = codes_of(rendering)
        assert codes.max() < CODES
        assert (code_set([0, 2])[codes] == (rendering.mask(0) | rendering.mask(2))).all()
        for thing in world.things:
            for part in (1, 2) if thing.kind in PARTS else (1,):
                assert (code_set([thing.index], part)[codes] == rendering.mask(thing.index, part)).all()
        assert (code_set([])[codes] == 0).all()


def test_no_pixel_has_a_code_that_does_not_exist():
    _, rendering = sample_scene(np.random.default_rng(0))
    codes = codes_of(rendering)
    assert ((codes == 0) == (rendering.instance_ids == 0)).all()
    assert (codes[codes > 0] % CODES_PER_OBJECT > 0).all()


def test_masks_are_looked_up_in_the_table_of_their_scene():
    generator = torch.Generator().manual_seed(0)
    lattice = torch.randint(0, CODES, (2, 4, 5), generator=generator, dtype=torch.uint8)
    table = torch.rand(2, 3, 2, CODES, generator=generator) > 0.5
    masks = Targets(lattice, torch.zeros(2, 2), table).masks()
    for place in np.ndindex(2, 3, 2, 4, 5):
        scene, prompt, kind, row, col = place
        assert masks[place] == table[scene, prompt, kind, int(lattice[scene, row, col])]


def test_a_lattice_over_the_whole_picture_is_the_picture():
    codes = np.arange(12, dtype=np.uint8).reshape(3, 4)[:3, :3]
    assert (code_lattice(codes, 3, np.zeros(2), (3.0, 3.0)) == codes).all()


def test_outside_the_picture_there_is_background():
    codes = np.full((2, 4), 9, np.uint8)
    lattice = code_lattice(codes, 4, np.array([1.0, 0.0]), (2.0, 4.0))
    assert lattice.tolist() == [[9, 9, 9, 0], [9, 9, 9, 0], [0] * 4, [0] * 4]


def test_training_never_shows_what_is_held_out_for_the_test():
    for split in ("train", "val"):
        for seed in range(10):
            world, _ = sample_scene(np.random.default_rng(seed), split)
            assert not {(thing.kind, thing.colour) for thing in world.things} & HELD_OUT


def test_tensors_have_channels_first():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert to_tensor(image)[:, 1, 2].tolist() == image[1, 2].tolist()
