"""Questions for the evaluator with their masks, IoUs and right answers, as a source draws them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from rea2seg.masks import iou
from rea2seg.synth.descriptions import describe_mask
from rea2seg.synth.queries import Question
from rea2seg.synth.render import Rendering, look
from rea2seg.synth.worlds import World
from training.mentions import Mention
from training.regions import Mask, draw_masks
from training.scenes import code_set, codes_of, scene_with_questions, to_tensor


@dataclass(frozen=True, eq=False)
class Example:
    """A question with the region it asks for and the right answer in words, and masks with their IoUs and what lies
    under each. `mention` are the words of its `Mention`, `mentioned` is the region of the things in it."""

    text: str
    reasoning: str
    truth: Mask
    mention: str
    mentioned: Mask
    masks: list[Mask]
    scores: list[float]
    under: list[str]


Drawn = tuple[UInt8[Tensor, "3 h w"], list[Example]]
"""A picture and questions about it. One name, because configs are checked by comparing signatures, and two spellings of
a shaped type are never equal."""


@runtime_checkable
class Source(Protocol):
    """Draws a picture of a split and `count` questions about it, with a group of masks each unless told otherwise."""

    def __call__(self, rng: np.random.Generator, count: int, split: str, masks: bool) -> Drawn: ...


def group_sizes(rng: np.random.Generator, count: int, group: int, short: float) -> list[int]:
    """The sizes of `count` groups: the last group of a query is often short, so some must be in training too."""
    return [int(rng.integers(1, group + 1)) if group and rng.random() < short else group for _ in range(count)]


class FreshScenes:
    """Scenes of SGDR-Synth; groups of `group` masks, a share `short` of them smaller, are drawn without a segmenter."""

    def __init__(self, categories: Sequence[str], group: int = 5, short: float = 0.15) -> None:
        self.categories, self.group, self.short = tuple(categories), group, short

    def __call__(self, rng: np.random.Generator, count: int, split: str, masks: bool) -> Drawn:
        world, rendering, asked = scene_with_questions(rng, split, count, self.categories)
        sizes, seen = group_sizes(rng, count, self.group if masks else 0, self.short), look(world, rendering)
        sized = zip(asked, sizes, strict=True)
        return to_tensor(rendering.image), [example_of(rng, world, seen, rendering, *one) for one in sized]


def example_of(
    rng: np.random.Generator, world: World, seen: World, rendering: Rendering, question: Question, count: int
) -> Example:
    """A question with a group of `count` masks; `seen` is the world as it is seen in the picture."""
    codes, truth, mention = codes_of(rendering), question.truth(rendering), Mention.of(question, seen)
    masks = draw_masks(rng, world, codes, question, truth, count)
    return Example(
        text=question.text,
        reasoning=question.reasoning,
        truth=truth,
        mention=mention.words,
        mentioned=code_set(mention.things)[codes],
        masks=masks,
        scores=[iou(torch.from_numpy(mask), torch.from_numpy(truth)) for mask in masks],
        under=[describe_mask(mask, rendering, seen) for mask in masks],
    )
