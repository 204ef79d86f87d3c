"""Batches for the evaluator: packed blocks of five kinds of task behind one picture.

`point`: a question alone, of which only `training.guidance` has something to say. `explain`: a question, answered in
words (InternVL3 brings such visual question answering along; mini learns it here). `describe`: what lies under each
mask. `score`: the IoU of each mask. `reason`: first the words of `explain` and `describe`, and how well each mask fits
in a word, then the scores. Blocks are built by the functions that build the evaluator's prompts, so that training sees
exactly the ids of inference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rea2seg.errors import ConfigError
from rea2seg.evaluators.internvl import image_pixels
from rea2seg.evaluators.prompts import EvaluatorTemplate, piece_ids, prefix_ids, suffix_ids
from rea2seg.evaluators.replies import ScoreGrammar, reply_ids
from rea2seg.synth.descriptions import COLUMNS, IOU_WORDS, describe_iou
from rea2seg.text import encode_untrusted
from training.batches import Movable
from training.examples import Example, Source
from training.misreading import misread
from training.packing import Packed, pack, starts
from training.regions import connected, coverage, shown_masks, tokens_inside, tokens_under

Task = Literal["point", "explain", "describe", "score", "reason"]
WITHOUT_MASKS = ("point", "explain")
SCORED = ("score", "reason")
WHAT = "What is under each mask?"
IGNORED = -100


@dataclass(frozen=True, eq=False)
class JudgementBatch(Movable):
    """Packed blocks; `words` and `digits` are the next-token labels of a reply's text and of its numbers' digits.

    `question_ends` marks the token that ends each of n questions (the template's `asked`). `members` are the image
    tokens inside what each asks for: 1 on its first connected part, 2 on the next, as groups have, and 0 outside.
    `mention_ends` marks where the words of each question's `Mention` end (its first word if there are none),
    `mentioned` the image tokens inside the things of it. `under` are the image tokens under what every mask token shows
    of its mask. `verdicts` marks the word for the IoU of each mask in `reason`, and nothing elsewhere. `judges` says
    which question each of the scored masks belongs to, `shares` how far the asked region, and then mask and region
    together, cover the 4 x 4 squares of its tokens. For `describe`, the ends mark nothing, and `members`, `mentioned`,
    `judges` and `shares` have no rows; for tasks without masks, `under`, `judges` and `shares` have none.
    """

    pixels: Float[Tensor, "b 3 side side"]
    mask_pixels: Float[Tensor, "m 3 mask_side mask_side"]
    packed: Packed
    words: Int[Tensor, "b length"]
    digits: Int[Tensor, "b length"]
    question_ends: Bool[Tensor, "b length"]
    members: Int[Tensor, "n tokens"]
    mention_ends: Bool[Tensor, "b length"]
    mentioned: Bool[Tensor, "n tokens"]
    under: Bool[Tensor, "m mask_tokens tokens"]
    verdicts: Bool[Tensor, "b length"]
    judges: Int[Tensor, " scored"]
    shares: Float[Tensor, "scored mask_tokens both"]

    @property
    def inside(self) -> Bool[Tensor, "n tokens"]:
        """The image tokens inside what each question asks for."""
        return self.members > 0

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class Portion:
    """How likely a batch is of a task, and how many questions of it share a picture."""

    share: float
    questions: int


@dataclass(frozen=True, eq=False)
class Block:
    """One question with its masks and its reply, as ids; where its mention and itself end, and its reply starts
    (after the end if there is none). `right` are the ids with the right reply, of which `ids` may have a falsified
    form."""

    ids: list[int]
    right: list[int]
    mention_end: int
    question_end: int
    reply: int

    def where(self, ids: list[int]) -> list[int]:
        """Where these ids begin in its reply."""
        return [at for at in range(self.reply, len(self.ids)) if self.ids[at : at + len(ids)] == ids]


def said_of_masks(words: Sequence[str]) -> str:
    """What is said of each mask, in one sentence."""
    return f"masks: {'; '.join(words)}."


class JudgementDrawer:
    """Draws batches of tasks. All blocks of a batch are of one task.

    A share `misread` of the groups that are scored is read with the reply of a `misread` example, though the right
    scores are to be said: at inference an evaluator reads what it wrote itself, and learns here not to trust it. Words
    that were falsified are not to be said.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: EvaluatorTemplate,
        sides: tuple[int, int],
        tokens: tuple[int, int],
        tasks: Mapping[Task, Portion],
        source: Source,
        misread: float = 0.0,
    ) -> None:
        self.tokenizer, self.template, self.source, self.misread = tokenizer, template, source, misread
        self.sides, self.image_tokens, self.mask_tokens = sides, *tokens
        self.grids = isqrt(tokens[0]), isqrt(tokens[1])
        self.tasks = tasks
        self.grammar = ScoreGrammar.of(tokenizer)
        self.iou_words = [encode_untrusted(tokenizer, f": {word}") for word in IOU_WORDS]
        cells = [encode_untrusted(tokenizer, f" {column}{row}") for column in COLUMNS for row in range(10)]
        # What is read and what is said instead must stand in the same places.
        if misread and any(len({*map(len, words)}) > 1 for words in (cells, self.iou_words)):
            raise ConfigError("cells, or words for IoUs, differ in their number of tokens: leave `misread` at 0")
        whole = prefix_ids(tokenizer, template, "", self.image_tokens)
        tail = [*piece_ids(tokenizer, template, template.question), *piece_ids(tokenizer, template, template.asked)]
        self.prefix = whole[: len(whole) - len(tail)]

    def batch(self, rng: np.random.Generator, scenes: int, split: str) -> JudgementBatch:
        """A batch of `scenes` pictures from the source."""
        names: list[Task] = [*self.tasks]
        shares = np.array([self.tasks[name].share for name in names])
        task = names[int(rng.choice(len(names), p=shares / shares.sum()))]
        count, masks_too = self.tasks[task].questions, task not in WITHOUT_MASKS
        drawn = [self.source(rng, count, split, masks_too) for _ in range(scenes)]
        rows = [[self.block(task, each, self.read(rng, task, each)) for each in examples] for _, examples in drawn]
        packed = pack(self.prefix, [[block.ids for block in blocks] for blocks in rows], self.tokenizer.pad_token_id)
        words, digits = (torch.full_like(packed.ids, IGNORED) for _ in range(2))
        mention_ends, question_ends, verdicts = (torch.zeros_like(packed.ids, dtype=torch.bool) for _ in range(3))
        for row, blocks in enumerate(rows):
            for start, block in zip(starts(len(self.prefix), [block.ids for block in blocks]), blocks, strict=True):
                mention_ends[row, start + block.mention_end] = task != "describe"
                question_ends[row, start + block.question_end] = task != "describe"
                verdicts[row, [start + at for at in self.verdicts(task, block)]] = True
                self.label(words[row], digits[row], start, block)
        every = [example for _, questions in drawn for example in questions]
        masks = [mask for example in every for mask in example.masks]
        return JudgementBatch(
            pixels=torch.stack([image_pixels(image, self.sides[0]) for image, _ in drawn]),
            mask_pixels=shown_masks(masks, self.sides[1]),
            packed=packed,
            words=words,
            digits=digits,
            question_ends=question_ends,
            mention_ends=mention_ends,
            under=tokens_under(masks, *self.grids),
            verdicts=verdicts,
            **self.regions([] if task == "describe" else every),
        )

    def regions(self, every: Sequence[Example]) -> dict[str, Tensor]:
        """`members`, `mentioned`, `judges` and `shares` of a batch with these questions, in their order."""
        image_grid, mask_grid = self.grids
        inside = tokens_inside(coverage([example.truth for example in every], image_grid).mean(-1))
        mentioned = tokens_inside(coverage([example.mentioned for example in every], image_grid).mean(-1))
        judged = torch.tensor([len(example.masks) for example in every], dtype=torch.long)
        truths = coverage([example.truth for example in every], mask_grid).repeat_interleave(judged, dim=0)
        both = coverage([mask & example.truth for example in every for mask in example.masks], mask_grid)
        judges = torch.arange(len(every)).repeat_interleave(judged)
        shares = torch.cat([truths, both], dim=-1)
        return {"members": connected(inside), "mentioned": mentioned, "judges": judges, "shares": shares}

    def read(self, rng: np.random.Generator, task: Task, example: Example) -> Example:
        """The example whose reply the model reads."""
        return misread(rng, example) if task in SCORED and rng.random() < self.misread else example

    def block(self, task: Task, example: Example, read: Example) -> Block:
        """One task about one question; what is read is the reply of the second example."""
        text = WHAT if task == "describe" else example.text
        ids = prefix_ids(self.tokenizer, self.template, text, self.image_tokens)[len(self.prefix) :]
        before = piece_ids(self.tokenizer, self.template, self.template.question)
        mention_end = len(before) + max(len(encode_untrusted(self.tokenizer, example.mention)) - 1, 0)
        question_end = len(ids) - 1
        if task == "point":
            return Block(ids, ids, mention_end, question_end, len(ids))
        ids += suffix_ids(self.tokenizer, self.template, len(example.masks), self.mask_tokens, task != "score")
        right = [*ids, *self.reply(task, example)]
        written = right if read is example else [*ids, *self.reply(task, read)]
        return Block(written, right, mention_end, question_end, len(ids))

    def reply(self, task: Task, example: Example) -> list[int]:
        """The ids of the right reply."""
        if task in ("explain", "describe"):
            words = example.reasoning if task == "explain" else said_of_masks(example.under)
            return [
                *encode_untrusted(self.tokenizer, words),
                *piece_ids(self.tokenizer, self.template, self.template.end),
            ]
        pairs = zip(example.under, example.scores, strict=True)
        judged = said_of_masks([f"{under}: {describe_iou(score)}" for under, score in pairs])
        reasoning = f"{example.reasoning} {judged}" if task == "reason" else ""
        return reply_ids(self.tokenizer, self.template, example.scores, reasoning)

    def label(self, words: Int[Tensor, " length"], digits: Int[Tensor, " length"], start: int, block: Block) -> None:
        """Write the labels of a block that starts there: position t predicts token t + 1."""
        scored = self.scored(block)
        # Between the digits the grammar leaves no choice.
        for at in range(block.reply, scored[0] if scored else len(block.ids)):
            if block.ids[at] == block.right[at]:
                words[start + at - 1] = block.right[at]
        zero, one, *_, nine = self.grammar.digits
        for whole, *decimals in zip(scored[::3], scored[1::3], scored[2::3], strict=True):
            # After a `0.` that should have been `1.`, the zeros of 1.00 would be the farthest from right.
            passed = (block.ids[whole], block.right[whole]) == (zero, one)
            digits[start + whole - 1] = block.right[whole]
            for at in decimals:
                digits[start + at - 1] = nine if passed else block.right[at]

    def scored(self, block: Block) -> list[int]:
        """The places in a block of the digits of its scores, three a score, which come after the last opening."""
        digits, found = set(self.grammar.digits), block.where([*self.grammar.opening])
        return [at for at in range(found[-1], len(block.ids)) if block.ids[at] in digits] if found else []

    def verdicts(self, task: Task, block: Block) -> list[int]:
        """The places in a block where its words for IoUs end: the last of their kind, one for every three digits."""
        if task != "reason":
            return []
        found = sorted(at + len(ids) - 1 for ids in self.iou_words for at in block.where(ids))
        return found[-(len(self.scored(block)) // 3) :]
