"""Reads single rows of attention from a running model, without ever building the full matrices.

Importing this module registers an attention backend with transformers that is PyTorch's fused attention plus a probe.
Grouped-query heads, rotary embeddings, adapters and quantised weights need no care: the backend receives the finished
queries and keys.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rea2seg.errors import ConfigError
from rea2seg.generator.tokens import TokenLayout

BACKEND = "rea2seg_sdpa"


class Rows:
    """The attention rows that a probe has found so far.

    `layers` maps a layer (counted from 0) to softmax weights over all keys. Rows met at different steps of a generation
    are padded with zeros to the longest: no row attends to keys that come after it.
    """

    def __init__(self, layers: Collection[int], wanted: Int[Tensor, "batch rows"]) -> None:
        self.layers: dict[int, Float[Tensor, "batch rows heads keys"]] = {}
        self._wanted = wanted.cpu()
        self._pending = {layer: torch.ones_like(self._wanted, dtype=torch.bool) for layer in layers}

    def record(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, first: int, scaling: float) -> None:
        """Keeps those of the wanted rows that are among the queries, which start at position `first`."""
        if layer not in self._pending:
            return
        local = self._wanted - first
        here = (local >= 0) & (local < query.shape[2])
        if not here.any():
            return
        local = local.clamp(0, query.shape[2] - 1).expand(len(query), -1)
        weights = row_weights(query, key, local.to(query.device), mask, scaling)
        weights = weights * here.to(query.device)[..., None, None]
        # Gradient checkpointing, and the look-ahead of `generate` on some devices, run a layer twice on the same token.
        # The first run counts; checkpointing wants the second computed all the same.
        if not (here & self._pending[layer]).any():
            return
        if layer in self.layers:
            earlier = self.layers[layer]
            weights = weights + nn.functional.pad(earlier, (0, weights.shape[-1] - earlier.shape[-1]))
        self.layers[layer] = weights
        self._pending[layer] &= ~here

    def mean(self) -> Float[Tensor, "batch rows keys"]:
        """The weights of the rows, mean over the heads and the layers."""
        return torch.stack([weights.mean(2) for weights in self.layers.values()]).mean(0)

    def check_complete(self) -> None:
        """Raises if a layer or a row never came by: an empty map must not pass for an answer."""
        for layer, pending in self._pending.items():
            if pending.any():
                missing = self._wanted[pending].tolist()
                raise RuntimeError(
                    f"layer {layer} gave no attention for rows {missing}: was `enable` called on the model?"
                )


_PROBES: ContextVar[tuple[Rows, ...]] = ContextVar("rea2seg_probes", default=())


@contextmanager
def probe(layers: Collection[int], rows: Int[Tensor, "batch rows"]) -> Iterator[Rows]:
    """Collects the attention of `rows`, absolute positions in the keys, while models run inside the `with` block.

    Works in a single forward pass and, with a growing cache, in `generate`. Layers count from 0. The rows carry
    gradients where these are enabled; under gradient checkpointing the backward pass belongs inside the block too.
    Probes may be nested and have layers in common.
    """
    found = Rows(layers, rows)
    token = _PROBES.set((*_PROBES.get(), found))
    try:
        yield found
    finally:
        _PROBES.reset(token)
    found.check_complete()


def enable(model: PreTrainedModel) -> None:
    """Sends the language model's attention through the probe; the vision tower keeps its own backend."""
    model.set_attn_implementation({"text_config": BACKEND})


def layer_range(layers: tuple[int, int], count: int) -> range:
    """The layers of an inclusive range, counted from 0, which must be among the model's."""
    first, last = layers
    if not 0 <= first <= last < count:
        raise ConfigError(f"layers {first} to {last} are not among the model's layers 0 to {count - 1}")
    return range(first, last + 1)


def prompt_attention(
    layers: Sequence[Float[Tensor, "*n heads keys"]], layout: TokenLayout
) -> Float[Tensor, "*n rows cols"]:
    """What prompt rows give to each image token: mean over heads and layers, after the softmax over all keys."""
    # The layers of a model that is spread over several devices are not all on one.
    to_image = torch.stack([weights[..., layout.image].mean(-2).to(layers[0].device) for weights in layers])
    return to_image.mean(0).reshape(*to_image.shape[1:-1], *layout.grid)


def row_weights(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch groups keys dim"],
    at: Int[Tensor, "batch rows"],
    mask: Shaped[Tensor, "_ _ queries _"] | None,
    scaling: float,
) -> Float[Tensor, "batch rows heads keys"]:
    """Softmax weights in float32 of the queries at `at`, under the mask that the fused attention receives."""
    batch, heads, queries, dim = query.shape
    groups, keys = key.shape[1:3]
    index = at[:, None, :, None]
    picked = query.gather(2, index.expand(-1, heads, -1, dim))
    picked = picked.reshape(batch, groups, heads // groups, -1, dim)
    # Autocast would bring the products back to half precision.
    with torch.autocast(query.device.type, enabled=False):
        scores = torch.einsum("bgird,bgnd->bgirn", picked.float(), key.float()).flatten(1, 2) * scaling
    if mask is None:
        # Without a mask the fused attention is causal, aligned at the first key; a single query sees everything.
        last = index if queries > 1 else torch.full_like(index, keys)
        hidden = torch.arange(keys, device=query.device) > last
        return scores.masked_fill(hidden, -torch.inf).softmax(-1).transpose(1, 2)
    allowed = mask[..., :keys].expand(batch, -1, -1, -1)
    allowed = allowed.gather(2, index.expand(-1, allowed.shape[1], -1, keys))
    scores = scores.masked_fill(~allowed, -torch.inf) if allowed.dtype == torch.bool else scores + allowed.float()
    return scores.softmax(-1).transpose(1, 2)


def _probed_sdpa(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    queries, keys = query.shape[2], key.shape[2]
    # A preallocated cache is longer than what it holds; its prefill comes without a mask and starts at 0.
    first = 0 if attention_mask is None and queries > 1 else keys - queries
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    for found in _PROBES.get():
        found.record(int(module.layer_idx), query, key, attention_mask, first, scale)
    return output, None


AttentionInterface.register(BACKEND, _probed_sdpa)
# A backend without a mask function of its own gets no mask at all, and padding would silently be attended to.
AttentionMaskInterface.register(BACKEND, sdpa_mask)
