"""Attention under autocast: computed in float32, given back in the precision it was asked in."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from training.attention import FullAttention


def attend(dtype: torch.dtype, full: bool) -> tuple[torch.Tensor, list[torch.dtype]]:
    """What attention gives for random heads, and the types it was computed in on the way back."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 5, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3))
    mode = FullAttention() if full else torch.enable_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16), mode:
        seen = scaled_dot_product_attention(query, key, value, is_causal=True)
        half = query[0, 0] @ key[0, 0].T
    seen.float().sum().backward()
    return seen, [half.dtype, *(tensor.grad.dtype for tensor in (query, key, value))]


def test_attention_is_computed_in_full_precision_and_nothing_else() -> None:
    exact, _ = attend(torch.float32, full=False)
    rounded, _ = attend(torch.bfloat16, full=False)
    seen, types = attend(torch.bfloat16, full=True)
    assert (seen.dtype, types) == (torch.bfloat16, [torch.bfloat16] * 4)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 2, 5, 8, generator=generator).bfloat16().float() for _ in range(3)]
    wanted = scaled_dot_product_attention(*inputs, is_causal=True).bfloat16()
    assert torch.equal(seen, wanted)
    assert not torch.equal(rounded, wanted)
    assert torch.allclose(exact.float(), wanted.float(), atol=0.05)


def test_full_precision_stays_as_it_is() -> None:
    query, key, value = torch.randn(3, 1, 2, 5, 8)
    with FullAttention():
        seen = scaled_dot_product_attention(query, key, value)
    assert torch.equal(seen, scaled_dot_product_attention(query, key, value))
