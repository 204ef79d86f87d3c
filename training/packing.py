"""Several questions about one picture in one sequence: a shared prefix, then one block for each question.

A question sees the prefix and itself, and its positions go on from the prefix as if it were alone; so a packed pass
equals one pass for each question, at the price of one image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as attention
from torch.overrides import TorchFunctionMode

from training.batches import Movable

PREFIX, PADDING = -1, -2
HIDDEN = -1e4
"""What is added to the score of a key that a query may not see."""


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

    def lengths(self) -> list[list[int]]:
        """For each row the lengths of its prefix, of its blocks, and of its padding if it has any."""
        return [torch.unique_consecutive(row, return_counts=True)[1].tolist() for row in self.owner]


class BlockAttention(TorchFunctionMode):
    """Inside this context, fused attention under `packed.mask()` never computes what the mask hides.

    The same numbers in a third of the time: a question of 50 tokens meets 200 keys, not the 750 of the whole pack. In a
    step of mixed precision on a CPU they are computed by `products`.
    """

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.size, self.lengths = packed.ids.shape[1], packed.lengths()
        longest = max(length for row in self.lengths for length in row)
        # Of which every block's own mask is a part.
        self.seen = causal(longest, self.lengths[0][0], packed.ids.device)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        mask = given.get("attn_mask")
        if func is not attention or mask is None or mask.shape[-1] != self.size:
            return func(*args, **given)
        return self.attend(*args, **given)

    def attend(
        self,
        query: Float[Tensor, "b heads length dim"],
        key: Float[Tensor, "b heads length dim"],
        value: Float[Tensor, "b heads length dim"],
        scale: float | None = None,
        **_: Any,
    ) -> Float[Tensor, "b heads length dim"]:
        """The prefix attends to itself, every block to the prefix and itself."""
        attend: Callable[..., Tensor] = attention
        seen = self.seen
        if torch.is_autocast_enabled("cpu"):
            attend, seen = products, torch.where(seen, 0.0, HIDDEN).bfloat16()
        rows = []
        # Splits, not slices: the gradient of each slice would be as large as the whole.
        for *one, lengths in zip(query.unbind(), key.unbind(), value.unbind(), self.lengths, strict=True):
            queries, keys, values = (torch.split(tensor[None], lengths, dim=2) for tensor in one)
            ahead = lengths[0]
            own = seen[:ahead, ahead : 2 * ahead]
            done = [attend(queries[0], keys[0], values[0], attn_mask=own, scale=scale)]
            for length, q, k, v in zip(lengths[1:], queries[1:], keys[1:], values[1:], strict=True):
                all_keys, all_values = torch.cat([keys[0], k], 2), torch.cat([values[0], v], 2)
                here = seen[:length, : ahead + length]
                done.append(attend(q, all_keys, all_values, attn_mask=here, scale=scale))
            rows.append(torch.cat(done, dim=2))
        return torch.cat(rows)


def causal(length: int, ahead: int, device: torch.device) -> Bool[Tensor, "length keys"]:
    """Which keys each query may see, if `ahead` of them come before the queries' own."""
    return torch.ones(length, ahead + length, dtype=torch.bool, device=device).tril(ahead)


def products(
    query: Float[Tensor, "b heads length dim"],
    key: Float[Tensor, "b heads keys dim"],
    value: Float[Tensor, "b heads keys dim"],
    attn_mask: Float[Tensor, "length keys"],
    scale: float | None,
) -> Float[Tensor, "b heads length dim"]:
    """Attention in bfloat16 by plain products of matrices, which for few queries take less time on a CPU than PyTorch's
    fused attention in either precision, gradients included (docs/speed.md). `attn_mask` is added to the scores."""
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast(query.device.type, enabled=False):
        q, k, v = (tensor.bfloat16().flatten(0, 1) for tensor in (query, key, value))
        scores = torch.baddbmm(attn_mask.bfloat16().expand(len(q), -1, -1), q, k.mT, alpha=factor)
        return (scores.softmax(-1) @ v).view_as(query).to(query.dtype)


def starts(prefix: int, blocks: Sequence[Sequence[int]]) -> list[int]:
    """Where each block of a row begins, after a prefix of that length."""
    return list(accumulate(map(len, blocks[:-1]), initial=prefix))


def pack(prefix: Sequence[int], rows: Sequence[Sequence[Sequence[int]]], pad: int) -> Packed:
    """One sequence for each row of blocks, all after the same prefix."""
    length = len(prefix) + max(sum(map(len, blocks)) for blocks in rows)
    ids = torch.full((len(rows), length), pad)
    owner, positions = torch.full_like(ids, PADDING), torch.zeros_like(ids)
    for row, blocks in enumerate(rows):
        ids[row, : len(prefix)], owner[row, : len(prefix)] = torch.tensor(prefix), PREFIX
        positions[row, : len(prefix)] = torch.arange(len(prefix))
        for number, (start, block) in enumerate(zip(starts(len(prefix), blocks), blocks, strict=True)):
            here = slice(start, start + len(block))
            ids[row, here], owner[row, here] = torch.tensor(block), number
            positions[row, here] = len(prefix) + torch.arange(len(block))
    return Packed(ids, owner, positions)
