"""LENS's way from the states of its queries to one prompt embedding, under the parameter names of hustvl/LENS."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

OUT, DEPTH, HEADS, RATIO = 256, 4, 16, 4
"""Width of SAM's prompts; blocks, heads and MLP ratio of the connector. LENS has one size of it and stores none."""


class QueryConnector(nn.Module):
    """The learnt queries that are appended to the MLLM's input, and what makes one prompt token of their last states.

    The states get position embeddings, pass pre-norm blocks in which all of them see each other (no norm follows), and
    a convolution as wide as their number merges them.
    """

    def __init__(self, hidden: int, queries: int = 64) -> None:
        super().__init__()
        self.learnable_query = nn.Parameter(torch.zeros(1, queries, hidden))
        self.connector = _Mixer(hidden, queries)
        self.conv_1d = nn.Conv1d(hidden, hidden, kernel_size=queries)
        self.proj_to_sam = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, OUT))

    @classmethod
    def described(cls, hidden: int, queries: int) -> QueryConnector:
        """One without memory (on the meta device): the public size has 0.5 billion weights."""
        with torch.device("meta"):
            return cls(hidden, queries)

    def forward(self, states: Float[Tensor, "batch queries hidden"]) -> Float[Tensor, "batch out"]:
        # The weights may be more precise than the MLLM's, and on another device than its last layer.
        mixed = self.connector(states.to(self.learnable_query))
        token: Tensor = self.proj_to_sam(self.conv_1d(mixed.transpose(1, 2))[..., 0])
        return token


class _Mixer(nn.Module):
    def __init__(self, hidden: int, queries: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, queries, hidden))
        self.blocks = nn.ModuleList(_Block(hidden) for _ in range(DEPTH))

    def forward(self, states: Float[Tensor, "batch queries hidden"]) -> Float[Tensor, "batch queries hidden"]:
        states = states + self.pos_embed
        for block in self.blocks:
            states = block(states)
        return states


class _Block(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(hidden, eps=1e-6), nn.LayerNorm(hidden, eps=1e-6)
        self.attn, self.mlp = _Attention(hidden), _Mlp(hidden)

    def forward(self, states: Float[Tensor, "batch queries hidden"]) -> Float[Tensor, "batch queries hidden"]:
        states = states + self.attn(self.norm1(states))
        mixed: Tensor = states + self.mlp(self.norm2(states))
        return mixed


class _Attention(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)

    def forward(self, states: Float[Tensor, "batch queries hidden"]) -> Float[Tensor, "batch queries hidden"]:
        heads = self.qkv(states).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(*heads.unbind(0))
        projected: Tensor = self.proj(seen.transpose(1, 2).flatten(2))
        return projected


class _Mlp(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(hidden, RATIO * hidden), nn.Linear(RATIO * hidden, hidden)

    def forward(self, states: Float[Tensor, "batch queries hidden"]) -> Float[Tensor, "batch queries hidden"]:
        inner = self.fc1(states)
        # CLIP's quick approximation of GELU.
        outer: Tensor = self.fc2(inner * torch.sigmoid(1.702 * inner))
        return outer
