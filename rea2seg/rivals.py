"""Orders that need no evaluator: what the benchmark compares the ranking with, over the same candidates.

Each is a selector. Their scores are empty, since none of them estimates an IoU.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rea2seg.errors import ConfigError
from rea2seg.ranking import best_first, ranked
from rea2seg.seeding import random_for
from rea2seg.structures import Candidate, Ranking, Scene, Score


def quality(scene: Scene, candidates: Sequence[Candidate]) -> Ranking:  # noqa: ARG001
    """By the segmenter's own IoU estimate."""
    return _ranked(best_first([candidate.quality for candidate in candidates], candidates), candidates)


def agreement(scene: Scene, candidates: Sequence[Candidate]) -> Ranking:
    """By the mean initial logit inside the mask minus the mean outside."""
    if scene.initial is None:
        raise ConfigError("the order `agreement` needs an initial mask, which only a generator gives")
    return _by_contrast(scene.initial.upsample().mean(0), candidates)


def attention(scene: Scene, candidates: Sequence[Candidate]) -> Ranking:
    """By the mean attention inside the mask minus the mean outside."""
    if scene.grounding is None:
        raise ConfigError("the order `attention` needs an attention map, which only a generator gives")
    grounding = scene.grounding
    attention = grounding.attention.mean(0).cpu()
    return _by_contrast(grounding.cells.to_image(attention, scene.query.size), candidates)


@dataclass(frozen=True)
class Random:
    """By chance: an order drawn from the seed and the query alone."""

    seed: int = 0

    def __call__(self, scene: Scene, candidates: Sequence[Candidate]) -> Ranking:
        # A stream of its own: the evaluator's shuffle is drawn from the bare id.
        rng = random_for(self.seed, f"{scene.query.id}/random")
        return _ranked(rng.sample(range(len(candidates)), len(candidates)), candidates)


def contrast(values: Float[Tensor, "h w"], masks: Bool[Tensor, "n h w"]) -> Float[Tensor, " n"]:
    """The mean value inside each mask minus the mean outside; NaN for a mask with no inside or no outside."""
    inside, flat = masks.flatten(1).double(), values.flatten().double()
    area, total = inside.sum(1), inside @ flat
    return total / area - (flat.sum() - total) / (flat.numel() - area)


def _by_contrast(values: Float[Tensor, "h w"], candidates: Sequence[Candidate]) -> Ranking:
    if not candidates:
        return _ranked([], candidates)
    masks = torch.stack([candidate.mask for candidate in candidates])
    return _ranked(best_first(contrast(values.to(masks.device), masks).tolist(), candidates), candidates)


def _ranked(order: Sequence[int], candidates: Sequence[Candidate]) -> Ranking:
    return ranked(candidates, order, [Score(None)] * len(candidates))
