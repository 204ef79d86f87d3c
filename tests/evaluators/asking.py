"""Images, groups and evaluators for the tests of InternVL."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from rea2seg.evaluators.internvl import InternVL
from rea2seg.structures import Candidate, Query, Score

SIZE = (40, 56)
RNG = torch.Generator().manual_seed(1)
IMAGE = torch.randint(0, 256, (3, *SIZE), generator=RNG, dtype=torch.uint8)
QUERY = Query(IMAGE, "the red cup left of the tree", "q")


def group(count: int, seed: int = 0) -> list[Candidate]:
    rng = torch.Generator().manual_seed(seed)
    coarse = (torch.rand(count, 1, 5, 7, generator=rng) > 0.5).float()
    masks = torch.nn.functional.interpolate(coarse, SIZE)[:, 0].bool()
    return [Candidate(mask, "given", 0.5) for mask in masks]


def evaluator(model: Any, tokenizer: PreTrainedTokenizerFast, **options: Any) -> InternVL:
    return InternVL.wrap(model, tokenizer, **{"image_side": 32, "mask_side": 32, "max_reasoning_tokens": 6, **options})


def assert_same(found: Sequence[Score], wanted: Sequence[Score]) -> None:
    assert [score.iou for score in found] == pytest.approx([score.iou for score in wanted], abs=1e-5)
    assert [score.confidence for score in found] == pytest.approx([score.confidence for score in wanted], rel=1e-3)
    assert not any(score.fallback for score in found)
