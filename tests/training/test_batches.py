"""A killed and resumed run sees what an uninterrupted one would have seen."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from training.batches import Batches, Movable, Stream
from training.batches import stream as named


def draw(rng):
    return int(rng.integers(1_000_000))


def stream(seed=0, workers=0, step=0, val_batches=3, device=0, accumulated=1):
    made = Stream(draw, draw, seed, workers, val_batches)

    class At:
        global_step, global_rank, accumulate_grad_batches = step, device, accumulated

    made.trainer = At()
    return made


def first(loader, count=6):
    return [batch for batch, _ in zip(loader, range(count), strict=False)]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # of two workers on one core
@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_order(workers):
    assert first(stream(workers=workers).train_dataloader()) == first(stream().train_dataloader())


def test_a_resumed_run_goes_on_with_the_next_batch():
    assert first(stream(step=2).train_dataloader(), 4) == first(stream().train_dataloader())[2:]


def test_a_step_may_take_several_batches():
    assert first(stream(step=1, accumulated=2).train_dataloader(), 4) == first(stream().train_dataloader())[2:]


def test_seeds_and_splits_have_batches_of_their_own():
    train, other, val = (first(Batches(draw, *of)) for of in ((0, "train"), (1, "train"), (0, "val")))
    assert not set(train) & set(other)
    assert not set(train) & set(val)


def test_no_seed_of_a_training_draws_what_a_sample_of_the_benchmark_draws():
    numbers = list(product(range(6), range(4), range(6)))
    of_training = {draw(named(seed, f"train/{step}/{device}")) for seed, device, step in numbers}
    of_samples = {draw(np.random.default_rng([seed, split, index])) for seed, split, index in numbers}
    assert len(of_training) == len(numbers)
    assert not of_training & of_samples


def test_devices_train_on_batches_of_their_own():
    alone, second = first(stream().train_dataloader()), first(stream(device=1).train_dataloader())
    assert not set(alone) & set(second)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # of two workers on one core
@pytest.mark.parametrize("workers", [0, 2])
def test_validation_is_a_fixed_set(workers):
    sets = [[*stream(seed=seed, workers=workers, step=step).val_dataloader()] for seed, step in ((0, 0), (4, 7))]
    assert len(sets[0]) == 3
    assert sets[0] == sets[1]


def test_a_batch_moves_as_a_whole():
    @dataclass(frozen=True, eq=False)
    class Inner(Movable):
        ids: Tensor

    @dataclass(frozen=True, eq=False)
    class Outer(Movable):
        inner: Inner
        kind: str

    moved = Outer(Inner(torch.zeros(2)), "point").to(torch.device("meta"))
    assert moved.inner.ids.device.type == "meta"
    assert moved.kind == "point"
