"""Attention in full precision inside a step of mixed precision."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


class FullAttention(TorchFunctionMode):
    """Computes PyTorch's attention in float32, whatever autocast says; packed blocks have theirs (`training.packing`).

    On a CPU with instructions for bfloat16 everything else is faster in it, but the gradient of attention takes five
    times as long; docs/speed.md has the numbers.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is not scaled_dot_product_attention:
            return func(*args, **given)
        query, key, value, *others = args
        with torch.autocast(query.device.type, enabled=False):
            seen = func(query.float(), key.float(), value.float(), *others, **given)
        return seen.to(query.dtype)
