"""One sample: the pipeline's answer and its rivals' over the same candidates, as integer overlaps with the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from rea2seg import rivals
from rea2seg.metrics import Convention, Overlap, best_of, iou, overlaps
from rea2seg.pipeline import Rea2Seg
from rea2seg.ranking import ByEvaluator
from rea2seg.seeding import random_for
from rea2seg.structures import Candidate, Query, Ranking, Sample, Scene
from rea2seg.text import clean_question

KEYS = (
    "initial",  # the mask of the prompt alone, which the pipeline starts from
    "top1",  # the answer
    "top3",  # the best of the first three, chosen by the truth
    "oracle",  # the best of all
    "quality",  # the first by the segmenter's own estimate
    "agreement",  # the first by the initial logits inside minus outside
    "attention",  # the first by the attention inside minus outside
    "random",  # any candidate
    "blind",  # the first for an evaluator that is asked another sample's question
    "instance",  # the true mask of any object: how far one gets without understanding the question
)


@dataclass(frozen=True)
class Row:
    """A sample's overlaps with the truth by key, and what went wrong: groups that got no scores, no candidates."""

    id: str
    category: str
    component: str
    granularity: str
    overlaps: dict[str, Overlap]
    candidates: int
    groups: int
    fallback: int
    warnings: tuple[str, ...] = ()

    def to_json(self, convention: Convention) -> dict[str, Any]:
        """A line of `per_sample.jsonl`."""
        return {
            "id": self.id,
            "category": self.category,
            "component": self.component,
            "granularity": self.granularity,
            "iou": {key: round(iou(overlap, convention), 6) for key, overlap in self.overlaps.items()},
            "intersection": {key: overlap.intersection for key, overlap in self.overlaps.items()},
            "union": {key: overlap.union for key, overlap in self.overlaps.items()},
            "candidates": self.candidates,
            "groups": self.groups,
            "failures": {"fallback": self.fallback, "no_candidates": int(self.candidates == 0)},
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> Row:
        """The row that was written as that line."""
        pairs = {key: Overlap(int(line["intersection"][key]), int(line["union"][key])) for key in line["intersection"]}
        names = (line["id"], line["category"], line["component"], line["granularity"])
        failed = line["failures"]["fallback"]
        return cls(*names, pairs, line["candidates"], line["groups"], failed, tuple(line["warnings"]))


@torch.no_grad()
def judge(pipe: Rea2Seg, sample: Sample, other_question: str, convention: Convention, seed: int = 0) -> Row:
    """Ask the pipeline, ask its rivals, and measure all answers."""
    query = Query.of(sample.image, sample.query, sample.id)
    scenes = pipe.scenes(query)
    candidates = pipe.candidates(scenes)
    ranking = pipe.rank(scenes, candidates)
    firsts = {
        name: order.indices[:1] for name, order in _rival_orders(pipe, scenes[0], candidates, other_question, seed)
    }

    def measured(masks: Sequence[Bool[Tensor, "h w"]]) -> list[Overlap]:
        stacked = torch.stack([mask.cpu() for mask in masks])
        return overlaps(stacked, sample.truth, sample.ignore, convention)

    (nothing,) = measured([torch.zeros(query.size, dtype=torch.bool)])
    found = measured([candidate.mask for candidate in candidates]) if candidates else []

    def best(places: Sequence[int]) -> Overlap:
        return best_of([found[place] for place in places], convention) if places else nothing

    chosen = {"top1": ranking.indices[:1], "top3": ranking.indices[:3], "oracle": range(len(found)), **firsts}
    pairs = {key: best(places) for key, places in chosen.items()}
    if initial := [scene.initial.upsample()[0] > 0 for scene in scenes if scene.initial is not None]:
        (pairs["initial"],) = measured([torch.stack(initial).any(0)])
    if sample.instances:
        (pairs["instance"],) = measured([random_for(seed, f"{sample.id}/instance").choice(sample.instances).mask])
    groups, failed = _groups(pipe, ranking)
    pairs = {key: pairs[key] for key in KEYS if key in pairs}
    names = (sample.id, sample.category, sample.component, sample.granularity)
    return Row(*names, pairs, len(candidates), groups, failed, ranking.warnings)


def _rival_orders(
    pipe: Rea2Seg, scene: Scene, candidates: Sequence[Candidate], other_question: str, seed: int
) -> list[tuple[str, Ranking]]:
    # The same id: the blind evaluator sees the same groups, and differs in the question alone.
    blindfold = replace(scene, query=replace(scene.query, text=clean_question(other_question)))
    orders = [
        ("quality", rivals.quality(scene, candidates)),
        ("random", rivals.Random(seed)(scene, candidates)),
        ("blind", pipe.selector(blindfold, candidates)),
    ]
    if scene.initial is not None:
        orders.append(("agreement", rivals.agreement(scene, candidates)))
    if scene.grounding is not None:
        orders.append(("attention", rivals.attention(scene, candidates)))
    return orders


def _groups(pipe: Rea2Seg, ranking: Ranking) -> tuple[int, int]:
    """How many groups were scored together, and how many of them failed; only one of them can be short."""
    if not isinstance(pipe.selector, ByEvaluator):
        return 0, 0
    size, failed = pipe.selector.group, sum(score.fallback for score in ranking.scores)
    return math.ceil(len(ranking) / size), math.ceil(failed / size)
