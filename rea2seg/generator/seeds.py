"""Where the MLLM looks: its most attended image tokens, and points inside them (section 4.2 of the paper).

The paper gives neither the numbers of tokens and points nor the way to spread points; the rules here are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rea2seg.cells import Cells
from rea2seg.errors import require_positive
from rea2seg.seeding import generator_for
from rea2seg.structures import Scene


@dataclass(frozen=True)
class SeedSettings:
    """How many tokens are taken by attention, how many of them are kept by their logits, and points in all."""

    attended: int = 48  # ours
    kept: int = 16  # ours
    points: int = 24  # ours
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(attended=self.attended, kept=self.kept, points=self.points)


@dataclass(frozen=True, eq=False)
class Seeds:
    """The kept tokens, best mean logit first, and point prompts inside them; `owner` says in which token each lies."""

    centres: Float[Tensor, "m 2"]
    attention: Float[Tensor, " m"]
    points: Float[Tensor, "p 2"]
    owner: Int[Tensor, " p"]


def descending(values: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Indices from the highest value to the lowest; of equals the lower index first."""
    return values.argsort(descending=True, stable=True)


def share_points(attention: Float[Tensor, " m"], budget: int) -> list[int]:
    """Points for each of m seeds, at least one each: in proportion to attention, by largest remainders.

    The budget is m or more. Where a proportional share is below one point, the others share what is left.
    """
    weights = attention.double().tolist()
    if sum(weights) == 0:
        weights = [1.0] * len(weights)
    shares, rest = [1] * len(weights), list(range(len(weights)))
    while True:
        left, total = budget - (len(weights) - len(rest)), sum(weights[i] for i in rest)
        quotas = {i: left * weights[i] / total for i in rest}
        rest = [i for i in rest if quotas[i] >= 1]
        if len(rest) == len(quotas):
            break
    for i in rest:
        shares[i] = int(quotas[i])
    by_remainder = sorted(rest, key=lambda i: shares[i] - quotas[i])
    for i in by_remainder[: budget - sum(shares)]:
        shares[i] += 1
    return shares


def draw_points(
    centre: Float[Tensor, " 2"], pixels: Int[Tensor, " 4"], count: int, generator: torch.Generator
) -> Float[Tensor, "count 2"]:
    """The centre of a cell, then centres of pixels drawn from it."""
    uniform = torch.rand((count - 1, 2), generator=generator, dtype=torch.float64)
    drawn = pixels[:2] + (uniform * (pixels[2:] - pixels[:2])).floor() + 0.5
    return torch.cat([centre[None], drawn.to(centre)])


def pick_seeds(cells: Cells, settings: SeedSettings, query_id: str) -> Seeds:
    """Of the most attended cells those with the highest logits: attention sinks lie where the initial mask is not.

    Never more cells than points.
    """
    attended = descending(cells.attention)[: settings.attended]
    kept = attended[descending(cells.logits[attended])][: min(settings.kept, settings.points)]
    shares = share_points(cells.attention[kept], settings.points)
    generator = generator_for(settings.seed, query_id)
    points = [
        draw_points(cells.centres[cell], cells.pixels[cell], count, generator)
        for cell, count in zip(kept, shares, strict=True)
    ]
    owner = torch.arange(len(kept)).repeat_interleave(torch.tensor(shares))
    return Seeds(cells.centres[kept], cells.attention[kept], torch.cat(points), owner)


def seeds_of(scene: Scene, settings: SeedSettings) -> Seeds | None:
    """The seeds of a scene, the same for every search with the same settings; None if there are none."""
    return None if scene.cells is None else pick_seeds(scene.cells, settings, scene.query.id)


def why_no_seeds(scene: Scene) -> str | None:
    """What keeps a scene that has a grounding from having seeds, in words; None if it has some."""
    if scene.grounding is None or scene.cells is not None:
        return None
    if scene.initial is None:
        cause = "there is no initial mask"
    elif not scene.grounding.attention.isfinite().all():
        cause = "the attention map holds numbers that are not finite"
    elif not scene.initial.lowres.isfinite().all():
        cause = "the initial mask holds numbers that are not finite"
    else:
        cause = "no image token looks at the image"
    return f"no seeds to search from: {cause}"
