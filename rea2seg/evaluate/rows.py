"""What is kept of one sample: overlaps with the truth by key, every candidate in the order of the ranking, masks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rea2seg.masks import Rle
from rea2seg.metrics import Convention, Overlap, iou

KEYS = (
    "initial",  # the mask of the prompt alone, which the pipeline starts from
    "top1",  # the answer
    "top3",  # the best of the first three, chosen by the truth
    "oracle",  # the best of all
    "quality",  # the first by the segmenter's own estimate
    "agreement",  # the first by the initial logits inside minus outside, both of the first target
    "attention",  # the first by the attention inside minus outside, likewise
    "random",  # any candidate
    "blind",  # the first for an evaluator that is asked another sample's question
    "instance",  # the true mask of any object: how far one gets without understanding the question
)


@dataclass(frozen=True)
class Found:
    """A candidate: its place in the order it was found, who found it, what was thought of it, what it is worth.

    `score` is the evaluator's estimate, None where it has none; `quality` the segmenter's, None if it is no number.
    """

    index: int
    source: str
    score: float | None
    quality: float | None
    overlap: Overlap

    def to_json(self, rank: int, convention: Convention) -> dict[str, Any]:
        """An entry of a line's `ranking`; `rank` counts from 1."""
        return {
            "rank": rank,
            "index": self.index,
            "source": self.source,
            "score": self.score,
            "quality": self.quality,
            "iou": round(iou(self.overlap, convention), 6),
            "intersection": self.overlap.intersection,
            "union": self.overlap.union,
        }

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Found:
        """The candidate that was written as that entry."""
        overlap = Overlap(int(entry["intersection"]), int(entry["union"]))
        return cls(entry["index"], entry["source"], entry["score"], entry["quality"], overlap)


@dataclass(frozen=True)
class Row:
    """One sample. `overlaps` has those of `KEYS` that apply, `target_area` the truth's pixels.

    `orders` are the rivals' orders of the candidates' indices, best first; `groups` were scored together, `fallback` of
    them got no scores. `masks` are `initial`, `top1` and `oracle`, where there are such. `no_target` is what the
    pipeline answered: then `top1` is an empty mask.
    """

    id: str
    category: str
    component: str
    granularity: str
    overlaps: dict[str, Overlap]
    target_area: int = 0
    ranking: tuple[Found, ...] = ()
    orders: dict[str, tuple[int, ...]] = field(default_factory=dict)
    groups: int = 0
    fallback: int = 0
    warnings: tuple[str, ...] = ()
    masks: dict[str, Rle] = field(default_factory=dict, repr=False)
    no_target: bool = False

    @property
    def has_target(self) -> bool:
        """Whether anything in the image answers the question, as the convention reads ignored pixels."""
        return self.target_area > 0

    @property
    def nothing(self) -> Overlap:
        """What an empty mask shares with the truth: the worth of an answer where nothing was found."""
        return Overlap(0, self.target_area)

    def to_json(self, convention: Convention) -> dict[str, Any]:
        """A line of `per_sample.jsonl`."""
        return {
            "id": self.id,
            "category": self.category,
            "component": self.component,
            "granularity": self.granularity,
            "target_area": self.target_area,
            "iou": {key: round(iou(overlap, convention), 6) for key, overlap in self.overlaps.items()},
            "intersection": {key: overlap.intersection for key, overlap in self.overlaps.items()},
            "union": {key: overlap.union for key, overlap in self.overlaps.items()},
            "candidates": len(self.ranking),
            "ranking": [found.to_json(rank, convention) for rank, found in enumerate(self.ranking, 1)],
            "orders": {name: list(order) for name, order in self.orders.items()},
            "groups": self.groups,
            "failures": {"fallback": self.fallback, "no_candidates": int(not self.ranking)},
            "warnings": list(self.warnings),
            "masks": self.masks,
            "no_target": self.no_target,
        }

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> Row:
        """The row that was written as that line."""
        return cls(
            id=line["id"],
            category=line["category"],
            component=line["component"],
            granularity=line["granularity"],
            overlaps={key: Overlap(int(line["intersection"][key]), int(line["union"][key])) for key in line["union"]},
            target_area=line["target_area"],
            ranking=tuple(Found.from_json(entry) for entry in line["ranking"]),
            orders={name: tuple(order) for name, order in line["orders"].items()},
            groups=line["groups"],
            fallback=line["failures"]["fallback"],
            warnings=tuple(line["warnings"]),
            masks=line["masks"],
            no_target=line["no_target"],
        )
