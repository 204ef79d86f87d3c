"""The three searches for candidate masks: by the prompt embedding, by a core of seeds, by single seeds (section 4.2).

Each is a value of plain numbers that is called with a scene and a segmenter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rea2seg.errors import require_choice, require_positive
from rea2seg.generator.kcore import background_point, innermost_core, look_alike
from rea2seg.generator.seeds import SeedSettings, descending, seeds_of
from rea2seg.masks import inclusive_boxes, nms, stability
from rea2seg.protocols import Segmenter
from rea2seg.structures import Candidate, Masks, Prompt, Scene, Source

Order = Literal["predicted_iou", "attention"]
Decisions = Literal["lowres", "full"]

TOGETHER = 8
"""Masks upsampled at once. Ours: the logits of eight take 1.6 GB at 50 megapixels, and those of a hundred 20 GB."""


@dataclass(frozen=True)
class PromptSearch:
    """The three masks that the segmenter makes of the MLLM's prompt embedding."""

    def __call__(self, scene: Scene, segmenter: Segmenter) -> list[Candidate]:
        if scene.grounding is None:
            return []
        masks = segmenter.decode(scene.embedding, Prompt(token=scene.grounding.token[:1]), multimask=True)
        return binarise(masks, "prompt")


@dataclass(frozen=True)
class CoreSearch:
    """Three refinements of the initial mask, by points on the seeds that look most alike and one on the background.

    cosine: two seeds are alike above it. background: a cell with a mean logit below it is background.
    """

    seeds: SeedSettings = field(default_factory=SeedSettings)
    cosine: float = 0.7  # ours
    background: float = -2.0  # ours

    def __call__(self, scene: Scene, segmenter: Segmenter) -> list[Candidate]:
        cells, seeds = scene.cells, seeds_of(scene, self.seeds)
        if cells is None or seeds is None or scene.initial is None:
            return []
        # One feature a cell: several points of one cell would be alike by themselves.
        features = scene.embedding.sample_at(seeds.centres)
        core = innermost_core(look_alike(features, self.cosine), seeds.attention)
        if not len(core):
            return []
        foreground = seeds.points[torch.isin(seeds.owner, core)]
        points = torch.cat([foreground, background_point(cells, self.background)[None]])
        labels = torch.tensor([1] * len(foreground) + [0])
        prompt = Prompt(points=points[None], labels=labels[None], mask=scene.initial.lowres[:1, :1])
        return binarise(segmenter.decode(scene.embedding, prompt, multimask=True), "core")


@dataclass(frozen=True)
class AttentionSearch:
    """SAM's automatic mask generator with the seeds in place of its grid, on the embedding that is already there.

    quality, stability, offset: what SAM's IoU estimate must exceed and its stability score reach. overlap: box IoU
    above which the worse of two masks goes. keep: masks at most. order: which is better, by `predicted_iou` (SAM's) or
    by the mean `attention` under the mask. decisions: `full` judges stability at image size, as SAM does; `lowres`,
    which is ours, never upsamples masks that are clearly unstable on the decoder's logits, and finds the same on smooth
    shapes. chunk: prompts decoded at once.
    """

    seeds: SeedSettings = field(default_factory=SeedSettings)
    quality: float = 0.88  # the paper's for SAM; 0.80 for SAM 2
    stability: float = 0.90  # the paper's for SAM; 0.88 for SAM 2
    offset: float = 1.0  # the paper's and SAM's
    overlap: float = 0.7  # SAM's
    keep: int = 9  # the paper's
    order: Order = "predicted_iou"
    decisions: Decisions = "lowres"
    chunk: int = 64  # SAM's

    def __post_init__(self) -> None:
        require_positive(keep=self.keep, chunk=self.chunk)
        require_choice(Order, order=self.order)
        require_choice(Decisions, decisions=self.decisions)

    def __call__(self, scene: Scene, segmenter: Segmenter) -> list[Candidate]:
        seeds = seeds_of(scene, self.seeds)
        return [] if seeds is None else self.at(seeds.points, scene, segmenter)

    def at(self, points: Float[Tensor, "n 2"], scene: Scene, segmenter: Segmenter) -> list[Candidate]:
        """The masks found from these points (x, y) in image pixels, best first."""
        found: list[Candidate] = []
        for part in torch.split(points, self.chunk):
            prompt = Prompt(points=part[:, None], labels=torch.ones(len(part), 1, dtype=torch.long))
            found += self._filtered(segmenter.decode(scene.embedding, prompt, multimask=True), part)
        if not found:
            return []
        # Mask by mask: stacked, those of a large photograph would be in memory twice.
        boxes = torch.cat([inclusive_boxes(candidate.mask[None]) for candidate in found])
        kept = nms(boxes, descending(self._merits(found, scene)), self.overlap)
        return [found[i] for i in kept[: self.keep]]

    def _filtered(self, masks: Masks, points: Float[Tensor, "n 2"]) -> list[Candidate]:
        """The masks good and stable enough, point by point."""
        passed = masks.quality > self.quality
        if self.decisions == "lowres":
            passed &= self._may_be_stable(masks.canvas.content(masks.lowres))
        found = []
        for (point, mask), logits in zip(passed.nonzero().tolist(), upsampled(masks, passed), strict=True):
            if stability(logits, self.offset) >= self.stability and (logits > 0).any():
                x, y = points[point].tolist()
                quality = float(masks.quality[point, mask])
                found.append(Candidate((logits > 0).cpu(), "attention", quality, seed_xy=(x, y)))
        return found

    def _may_be_stable(self, lowres: Float[Tensor, "n k h w"]) -> Bool[Tensor, "n k"]:
        # A count of coarse pixels is wrong along the outline, which grows with the root of the area: measured on smooth
        # shapes, the score is off by at most 0.6 / sqrt(area). The margin of 1 / sqrt(area) is ours, to be safe.
        slack = (lowres > -self.offset).sum((-2, -1)).float().rsqrt()
        return stability(lowres, self.offset) >= self.stability - slack

    def _merits(self, found: list[Candidate], scene: Scene) -> Float[Tensor, " n"]:
        if self.order == "predicted_iou" or scene.grounding is None:
            return torch.tensor([candidate.quality for candidate in found])
        attention = scene.grounding.attention[0].float().cpu()
        attention = scene.grounding.cells.to_image(attention, scene.query.size)
        return torch.stack([attention[candidate.mask].mean() for candidate in found])


def upsampled(masks: Masks, chosen: Bool[Tensor, "n k"]) -> Iterator[Float[Tensor, "height width"]]:
    """The chosen masks' logits at image size, in order of prompt and mask, a few in memory at a time."""
    for part in torch.split(masks.lowres[chosen][:, None], TOGETHER):
        yield from masks.canvas.to_image(part)[:, 0]


def binarise(masks: Masks, source: Source) -> list[Candidate]:
    """Every mask of a decode that is not empty, as a candidate."""
    found = zip((masks.upsample() > 0).cpu(), masks.quality.flatten().tolist(), strict=True)
    return [Candidate(mask, source, quality) for mask, quality in found if mask.any()]
