"""Several questions about one picture in one sequence: a shared prefix, then one block for each question.

A question sees the prefix and itself, and its positions go on from the prefix as if it were alone; so a packed pass
equals one pass for each question, at the price of one image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from training.batches import Movable

PREFIX, PADDING = -1, -2


@dataclass(frozen=True, eq=False)
class Packed(Movable):
    """Packed sequences, padded on the right. `owner` is the block of a token, `PREFIX` or `PADDING`."""

    ids: Int[Tensor, "b length"]
    owner: Int[Tensor, "b length"]
    positions: Int[Tensor, "b length"]

    def mask(self) -> Bool[Tensor, "b 1 length length"]:
        """Who may attend to whom: causal, into the prefix and one's own block."""
        causal = torch.ones(self.ids.shape[1], self.ids.shape[1], dtype=torch.bool, device=self.ids.device).tril()
        shared = (self.owner == PREFIX)[:, None] | (self.owner[:, :, None] == self.owner[:, None])
        return (shared & causal)[:, None]


def pack(prefix: Sequence[int], rows: Sequence[Sequence[Sequence[int]]], pad: int) -> Packed:
    """One sequence for each row of blocks, all after the same prefix."""
    length = len(prefix) + max(sum(map(len, blocks)) for blocks in rows)
    ids = torch.full((len(rows), length), pad)
    owner, positions = torch.full_like(ids, PADDING), torch.zeros_like(ids)
    for row, blocks in enumerate(rows):
        ids[row, : len(prefix)], owner[row, : len(prefix)] = torch.tensor(prefix), PREFIX
        positions[row, : len(prefix)] = torch.arange(len(prefix))
        start = len(prefix)
        for number, block in enumerate(blocks):
            here = slice(start, start + len(block))
            ids[row, here], owner[row, here] = torch.tensor(block), number
            positions[row, here] = len(prefix) + torch.arange(len(block))
            start = here.stop
    return Packed(ids, owner, positions)
