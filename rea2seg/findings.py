"""What an examination of weights finds, before anything is loaded: facts for a person, and what memory they will need.

A seat that can be examined has a classmethod `examine`, which takes the arguments of its config. It yields its findings
one after another, and raises `CheckpointError` or `ConfigError`, in one line with the mend, at the first fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rea2seg.devices import ON_CPU, Placement, Precision

BYTES: dict[Precision, float] = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    "int8": 1.0,
    # A scale of 8 bits for every 64 weights, and one of 32 for every 256 of those (QLoRA, double quantisation).
    "nf4": 0.5 + 1 / 64 + 4 / (64 * 256),
}
GIGABYTE = 1e9


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at and is right."""

    check: str
    detail: str


@dataclass(frozen=True)
class Footprint:
    """What a model needs while it runs.

    language: weights of the language model, which quantisation shrinks. other: all other weights. working: an estimate
    of the bytes that it computes with. placement: that of the config; a model without a language model has none, stays
    where it is and in float32. fixed: weights that are always in float32.
    """

    language: int
    other: int
    working: int
    placement: Placement = ON_CPU
    fixed: int = 0

    def weights(self, precision: Precision | None = None) -> float:
        """Bytes of all weights in a precision, the config's own by default."""
        precision = precision or self.placement.precision
        if not self.language:
            return self.other * BYTES["float32"]
        rest = "bfloat16" if precision in ("int8", "nf4") else precision
        return self.language * BYTES[precision] + self.other * BYTES[rest] + 4.0 * self.fixed


def cache_bytes(text_config: Any, tokens: int, precision: Precision) -> int:
    """The keys and values of all layers of a language model (a transformers config) for so many tokens."""
    groups = int(getattr(text_config, "num_key_value_heads", None) or text_config.num_attention_heads)
    width = int(text_config.hidden_size) * groups // int(text_config.num_attention_heads)
    values = 2 * int(text_config.num_hidden_layers) * width * tokens
    return values * (4 if precision == "float32" else 2)


def footprint(model: nn.Module, working: int, placement: Placement = ON_CPU) -> Footprint:
    """That of a model, which may lie on the meta device; what is `language_model` in it counts as such."""
    sizes = Counter[bool]()
    for name, weight in model.named_parameters():
        sizes["language_model." in name] += weight.numel()
    return Footprint(sizes[True], sizes[False], working, placement)


def peak(footprints: Iterable[Footprint], precision: Precision | None = None, offload: bool | None = None) -> float:
    """Bytes on one device for all stages, in which offloaded models take turns; None stands for the config's own."""
    each = list(footprints)
    moves = [bool(one.language) and (one.placement.offload if offload is None else offload) for one in each]
    resident = sum(one.weights(precision) for one, moving in zip(each, moves, strict=True) if not moving)
    visiting = max((one.weights(precision) for one, moving in zip(each, moves, strict=True) if moving), default=0.0)
    return resident + visiting + max((one.working for one in each), default=0)


def stored_as(tensors: Mapping[str, Tensor]) -> str:
    """How many tensors there are of each precision, most first."""
    counted = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    return ", ".join(f"{count} {name}" for name, count in counted.most_common())
