"""Batches for the evaluator: packed blocks of four kinds of task behind one picture.

`explain`: a question, answered in words (InternVL3 brings such visual question answering along; mini learns it here).
`describe`: what lies under each mask. `score`: the IoU of each mask. `reason`: first the words of `explain` and
`describe`, then the scores. Blocks are built by the functions that build the evaluator's prompts, so that training sees
exactly the ids of inference.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rea2seg.evaluators.internvl import image_pixels, mask_pixels
from rea2seg.evaluators.prompts import EvaluatorTemplate, piece_ids, prefix_ids, suffix_ids
from rea2seg.evaluators.replies import ScoreGrammar, reply_ids
from rea2seg.synth.descriptions import describe_mask
from rea2seg.synth.queries import Question, questions
from rea2seg.synth.render import Rendering, look
from rea2seg.synth.worlds import World
from rea2seg.text import encode_untrusted
from training.batches import Movable
from training.packing import Packed, pack
from training.regions import Mask, draw_masks, iou
from training.scenes import codes_of, sample_scene, to_tensor

Task = Literal["explain", "describe", "score", "reason"]
WHAT = "What is under each mask?"
IGNORED = -100


@dataclass(frozen=True, eq=False)
class JudgementBatch(Movable):
    """Packed blocks; `words` and `digits` are the next-token labels of a reply's text and of its numbers' digits."""

    pixels: Float[Tensor, "b 3 side side"]
    mask_pixels: Float[Tensor, "m 3 mask_side mask_side"]
    packed: Packed
    words: Int[Tensor, "b length"]
    digits: Int[Tensor, "b length"]


@dataclass(frozen=True, eq=False)
class Block:
    """One question with its masks and its reply, as ids."""

    ids: list[int]
    reply: int
    """Where the reply begins."""
    masks: list[Mask]


MaskSource = Callable[[np.random.Generator, World, Rendering, Question], list[Mask]]


def synthetic(group: int) -> MaskSource:
    """Groups of `group` masks drawn without a segmenter."""

    def draw(rng: np.random.Generator, world: World, rendering: Rendering, question: Question) -> list[Mask]:
        return draw_masks(rng, world, codes_of(rendering), question, question.truth(rendering), group)

    return draw


class JudgementDrawer:
    """Draws batches of tasks. All blocks of a batch are of one task, drawn with probability `tasks[task]`."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: EvaluatorTemplate,
        sides: tuple[int, int],
        tokens: tuple[int, int],
        tasks: Mapping[Task, float],
        counts: Mapping[Task, int],
        categories: Sequence[str],
        group: int = 5,
    ) -> None:
        self.tokenizer, self.template, self.categories = tokenizer, template, categories
        self.sides, self.image_tokens, self.mask_tokens = sides, *tokens
        self.tasks, self.counts, self.masks = tasks, counts, synthetic(group)
        self.grammar = ScoreGrammar.of(tokenizer)
        ask = prefix_ids(tokenizer, template, "", self.image_tokens)
        tail = [*piece_ids(tokenizer, template, template.question), *piece_ids(tokenizer, template, template.asked)]
        self.prefix = ask[: len(ask) - len(tail)]

    def batch(self, rng: np.random.Generator, scenes: int, split: str) -> JudgementBatch:
        """A batch of fresh scenes."""
        names: list[Task] = [*self.tasks]
        weights = np.array([self.tasks[name] for name in names])
        task = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        drawn = [self.scene(rng, task, split) for _ in range(scenes)]
        packed = pack(self.prefix, [[b.ids for b in blocks] for _, blocks in drawn], self.tokenizer.pad_token_id)
        words, digits = (torch.full_like(packed.ids, IGNORED) for _ in range(2))
        for row, (_, blocks) in enumerate(drawn):
            self.label(words[row], digits[row], packed.ids[row], blocks)
        masks = [mask for _, blocks in drawn for block in blocks for mask in block.masks]
        pixels = torch.stack([image_pixels(to_tensor(r.image), self.sides[0]) for r, _ in drawn])
        return JudgementBatch(pixels, self.mask_pixels(masks), packed, words, digits)

    def mask_pixels(self, masks: list[Mask]) -> Float[Tensor, "m 3 mask_side mask_side"]:
        """The masks of a batch as pictures, in the order of their places in the sequences; sizes may differ."""
        pictures = [mask_pixels(torch.from_numpy(mask)[None], self.sides[1]) for mask in masks]
        return torch.cat(pictures) if pictures else torch.zeros(0, 3, self.sides[1], self.sides[1])

    def scene(self, rng: np.random.Generator, task: Task, split: str) -> tuple[Rendering, list[Block]]:
        """A fresh scene with the blocks of one task."""
        while True:
            world, rendering = sample_scene(rng, split)
            asked = questions(rng, world, rendering, self.counts[task], self.categories)
            if len(asked) == self.counts[task]:
                return rendering, [self.block(rng, task, world, rendering, question) for question in asked]

    def block(
        self, rng: np.random.Generator, task: Task, world: World, rendering: Rendering, question: Question
    ) -> Block:
        """One task about one question."""
        masks = [] if task == "explain" else self.masks(rng, world, rendering, question)
        text = WHAT if task == "describe" else question.text
        asked = prefix_ids(self.tokenizer, self.template, text, self.image_tokens)[len(self.prefix) :]
        asked += suffix_ids(self.tokenizer, self.template, len(masks), self.mask_tokens, task != "score")
        reply = self.reply(task, masks, world, rendering, question)
        return Block([*asked, *reply], len(asked), masks)

    def reply(
        self, task: Task, masks: list[Mask], world: World, rendering: Rendering, question: Question
    ) -> list[int]:
        """The ids of the right reply."""
        seen = look(world, rendering)
        under = " masks: " + "; ".join(describe_mask(mask, rendering, seen) for mask in masks) + "."
        if task in ("explain", "describe"):
            words = question.reasoning if task == "explain" else under.strip()
            end = piece_ids(self.tokenizer, self.template, self.template.end)
            return [*encode_untrusted(self.tokenizer, words), *end]
        truth = question.truth(rendering)
        scores = [iou(mask, truth) for mask in masks]
        reasoning = question.reasoning + under if task == "reason" else ""
        return reply_ids(self.tokenizer, self.template, scores, reasoning)

    def label(
        self, words: Int[Tensor, " length"], digits: Int[Tensor, " length"], ids: Int[Tensor, " length"], blocks: list[Block]
    ) -> None:
        """Write the labels of one sequence: position t predicts token t + 1."""
        start = len(self.prefix)
        for block in blocks:
            stop, scored = start + len(block.ids), self.scored(block)
            for at in range(start + block.reply, stop):
                (digits if at - start in scored else words)[at - 1] = ids[at]
            start = stop

    def scored(self, block: Block) -> set[int]:
        """The places in a block of the digits of its scores: those after the last opening that a choice is left at."""
        opening = list(self.grammar.opening)
        ends = [at + len(opening) for at in range(block.reply, len(block.ids)) if block.ids[at : at + len(opening)] == opening]
        digits = set(self.grammar.digits)
        return {at for at in range(ends[-1], len(block.ids)) if block.ids[at] in digits} if ends else set()
