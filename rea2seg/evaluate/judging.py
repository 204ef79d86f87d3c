"""One sample: the pipeline's answer and its rivals' over the same candidates, measured against the truth."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from jaxtyping import Bool
from torch import Tensor

from rea2seg import rivals
from rea2seg.config import Config
from rea2seg.evaluate.benchmarks import benchmark_of
from rea2seg.evaluate.rows import KEYS, Found, Row
from rea2seg.evaluate.workers import Judge
from rea2seg.masks import encode_rle
from rea2seg.metrics import PRESETS, Convention, Overlap, best_of, overlaps
from rea2seg.output import finite
from rea2seg.pipeline import Rea2Seg
from rea2seg.ranking import ByEvaluator, shuffled_groups
from rea2seg.seeding import random_for
from rea2seg.structures import Candidate, Query, Ranking, Sample, Scene
from rea2seg.text import clean_question


def load_judge(options: argparse.Namespace, config: Config) -> Judge:
    """The judge of one run on the benchmark that the options of a command name; loads the weights."""
    benchmark, pipe, convention = benchmark_of(options), Rea2Seg(**config.build()), PRESETS[options.preset]

    def judge_sample(index: int, _: Sequence[int]) -> Iterator[Row]:
        yield judge(pipe, benchmark.sample(index), benchmark.other_question(index), convention, options.seed)

    return judge_sample


@torch.no_grad()
def judge(pipe: Rea2Seg, sample: Sample, other_question: str | None, convention: Convention, seed: int = 0) -> Row:
    """Ask the pipeline, ask its rivals, and measure all answers. Without another question nobody is `blind`."""
    scenes = pipe.scenes(Query.of(sample.image, sample.query, sample.id))
    candidates = pipe.candidates(scenes)
    ranking = pipe.rank(scenes, candidates)
    orders = _rival_orders(pipe, scenes[0], candidates, other_question, seed)
    return measure(pipe, sample, scenes, ranking, convention, seed, orders)


def measure(
    pipe: Rea2Seg,
    sample: Sample,
    scenes: Sequence[Scene],
    ranking: Ranking,
    convention: Convention,
    seed: int = 0,
    orders: Mapping[str, Ranking] = MappingProxyType({}),
) -> Row:
    """The row of a sample that the pipeline has answered; `orders` are rivals' of the same candidates."""
    truth = _Truth(sample, convention)
    worths = truth.overlaps([candidate.mask for candidate in ranking.candidates])
    initial = _initial(scenes)
    pairs = _choices(truth, ranking, worths, orders)
    if initial is not None:
        (pairs["initial"],) = truth.overlaps([initial])
    if sample.instances:
        (pairs["instance"],) = truth.overlaps([random_for(seed, f"{sample.id}/instance").choice(sample.instances).mask])
    groups, failed = _groups(pipe, sample.id, ranking)
    return Row(
        id=sample.id,
        category=sample.category,
        component=sample.component,
        granularity=sample.granularity,
        overlaps={key: pairs[key] for key in KEYS if key in pairs},
        target_area=truth.nothing.union,
        ranking=tuple(_found(ranking, place, worth) for place, worth in enumerate(worths)),
        orders={name: order.indices for name, order in orders.items()},
        groups=groups,
        fallback=failed,
        warnings=ranking.warnings,
        no_target=ranking.no_target,
        masks={name: encode_rle(mask) for name, mask in _masks(initial, ranking, worths, pairs["oracle"]).items()},
    )


@dataclass(frozen=True, eq=False)
class _Truth:
    """What masks of a sample are measured against."""

    sample: Sample
    convention: Convention

    @property
    def nothing(self) -> Overlap:
        """The worth of an empty mask."""
        height, width = self.sample.image.shape[1:]
        return self.overlaps([torch.zeros(height, width, dtype=torch.bool)])[0]

    def overlaps(self, masks: Sequence[Bool[Tensor, "h w"]]) -> list[Overlap]:
        if not masks:
            return []
        stacked = torch.stack([mask.cpu() for mask in masks])
        return overlaps(stacked, self.sample.truth, self.sample.ignore, self.convention)


def _choices(
    truth: _Truth, ranking: Ranking, worths: Sequence[Overlap], orders: Mapping[str, Ranking]
) -> dict[str, Overlap]:
    """The overlap of every choice among the candidates; without any, that of an empty mask.

    `top3` and `oracle` look at the candidates, whatever is answered.
    """
    if not worths:
        return dict.fromkeys(("top1", "top3", "oracle", *orders), truth.nothing)
    by_index = dict(zip(ranking.indices, worths, strict=True))
    firsts = {name: truth.nothing if order.no_target else by_index[order.indices[0]] for name, order in orders.items()}
    best_of_three, best = best_of(worths[:3], truth.convention), best_of(worths, truth.convention)
    # Whoever says that there is no target answers with an empty mask.
    answer = truth.nothing if ranking.no_target else worths[0]
    return {"top1": answer, "top3": best_of_three, "oracle": best, **firsts}


def _initial(scenes: Sequence[Scene]) -> Bool[Tensor, "h w"] | None:
    """What the prompts alone give, of several targets together; None without a generator."""
    masks = [scene.initial.upsample()[0] > 0 for scene in scenes if scene.initial is not None]
    return torch.stack(masks).any(0) if masks else None


def _masks(
    initial: Bool[Tensor, "h w"] | None, ranking: Ranking, worths: Sequence[Overlap], best: Overlap
) -> dict[str, Bool[Tensor, "h w"]]:
    """The masks to keep for pictures; of several equally good ones the best ranked is the oracle's."""
    masks = {} if initial is None else {"initial": initial}
    if ranking.best is not None:
        answer = ranking.best.mask & (not ranking.no_target)
        masks |= {"top1": answer, "oracle": ranking.candidates[worths.index(best)].mask}
    return masks


def _found(ranking: Ranking, place: int, worth: Overlap) -> Found:
    candidate, score = ranking.candidates[place], ranking.scores[place]
    return Found(ranking.indices[place], candidate.source, finite(score.iou), finite(candidate.quality), worth)


def _rival_orders(
    pipe: Rea2Seg, scene: Scene, candidates: Sequence[Candidate], other_question: str | None, seed: int
) -> dict[str, Ranking]:
    orders = {"quality": rivals.quality(scene, candidates), "random": rivals.Random(seed)(scene, candidates)}
    if other_question is not None:
        # The same id: the blind evaluator sees the same groups, and differs in the question alone.
        blindfold = replace(scene, query=replace(scene.query, text=clean_question(other_question)))
        orders["blind"] = pipe.selector(blindfold, candidates)
    if scene.initial is not None:
        orders["agreement"] = rivals.agreement(scene, candidates)
    if scene.grounding is not None:
        orders["attention"] = rivals.attention(scene, candidates)
    return orders


def _groups(pipe: Rea2Seg, id: str, ranking: Ranking) -> tuple[int, int]:
    """How many groups were scored together, and in how many of them a score is missing."""
    if not isinstance(pipe.selector, ByEvaluator):
        return 0, 0
    groups = shuffled_groups(len(ranking), pipe.selector.group, pipe.selector.seed, id)
    failed = {index for index, score in zip(ranking.indices, ranking.scores, strict=True) if score.fallback}
    return len(groups), sum(not failed.isdisjoint(group) for group in groups)
