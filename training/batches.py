"""Endless, stateless batches: batch t of a device depends on (seed, t, device) alone.

A run that was killed and resumed at step t therefore sees what an uninterrupted run would have seen, with any number of
workers, and no state of a data loader has to be saved. Several devices see batches of their own.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from rea2seg.seeding import seed_of

Moved = TypeVar("Moved", bound="Movable")
MakeBatch = Callable[[np.random.Generator], Any]


def stream(seed: int, name: str) -> np.random.Generator:
    """Random numbers for one thing that training draws. Named, so that no seed can give those of a benchmark sample."""
    return np.random.default_rng(seed_of(seed, f"training/{name}"))


class Movable:
    """For frozen dataclasses of tensors: `to` moves them all, which is what Lightning asks of a batch."""

    def to(self: Moved, device: torch.device, non_blocking: bool = False) -> Moved:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        moved = {n: v.to(device, non_blocking=non_blocking) for n, v in values.items() if hasattr(v, "to")}
        return replace(self, **moved)  # type: ignore[type-var]


class Batches(IterableDataset[Any]):
    """`make(rng)` for the steps first, first + 1, …; worker w of n takes every n-th step."""

    def __init__(
        self, make: MakeBatch, seed: int, split: str, first: int = 0, count: int | None = None, device: int = 0
    ) -> None:
        self.make, self.seed, self.split, self.device = make, seed, split, device
        self.first, self.count = first, count

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        step, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        if worker is not None:
            torch.set_num_threads(1)
        while self.count is None or step < self.count:
            yield self.make(stream(self.seed, f"{self.split}/{self.first + step}/{self.device}"))
            step += stride


class Stream(LightningDataModule):
    """Training batches from those on that `trainer.global_step` steps took, and a fixed set of validation batches.

    `make_train` and `make_val` draw a batch from a random generator.
    """

    def __init__(self, make_train: MakeBatch, make_val: MakeBatch, seed: int, workers: int, val_batches: int) -> None:
        super().__init__()
        self.make_train, self.make_val = make_train, make_val
        self.seed, self.workers, self.val_batches = seed, workers, val_batches

    def train_dataloader(self) -> DataLoader[Any]:
        first = device = 0
        if self.trainer is not None:
            first, device = self.trainer.global_step * self.trainer.accumulate_grad_batches, self.trainer.global_rank
        return self._load(Batches(self.make_train, self.seed, "train", first, device=device))

    def val_dataloader(self) -> DataLoader[Any]:
        return self._load(Batches(self.make_val, 0, "val", count=self.val_batches))

    def _load(self, batches: Batches) -> DataLoader[Any]:
        ahead = 4 if self.workers else None
        return DataLoader(batches, batch_size=None, num_workers=self.workers, prefetch_factor=ahead)
