"""Batches for the evaluator: packed blocks of five kinds of task behind one picture.

`point`: a question alone, of which only `training.guidance` has something to say. `explain`: a question, answered in
words (InternVL3 brings such visual question answering along; mini learns it here). `describe`: what lies under each
mask. `score`: the IoU of each mask. `reason`: first the words of `explain` and `describe`, and how well each mask fits
in a word, then the scores. Blocks are built by the functions that build the evaluator's prompts, so that training sees
exactly the ids of inference.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rea2seg.errors import ConfigError
from rea2seg.evaluators.internvl import image_pixels
from rea2seg.evaluators.prompts import EvaluatorTemplate, piece_ids, prefix_ids, suffix_ids
from rea2seg.evaluators.replies import ScoreGrammar, reply_ids
from rea2seg.masks import iou
from rea2seg.synth.descriptions import COLUMNS, describe_iou, describe_mask
from rea2seg.synth.queries import Question
from rea2seg.synth.render import Rendering, look
from rea2seg.synth.worlds import World, pick
from rea2seg.text import encode_untrusted
from training.batches import Movable
from training.mentions import Mention
from training.packing import Packed, pack, starts
from training.regions import Mask, coverage, draw_masks, shown_masks, tokens_inside, tokens_under
from training.scenes import code_set, codes_of, scene_with_questions, to_tensor

Task = Literal["point", "explain", "describe", "score", "reason"]
WITHOUT_MASKS = ("point", "explain")
SCORED = ("score", "reason")
WHAT = "What is under each mask?"
IGNORED = -100
CELL = re.compile(rf"\b[{COLUMNS}][0-9]\b")
"""Where something is, as `rea2seg.synth.descriptions.cell` says it."""


@dataclass(frozen=True, eq=False)
class JudgementBatch(Movable):
    """Packed blocks; `words` and `digits` are the next-token labels of a reply's text and of its numbers' digits.

    `question_ends` marks the token that ends each of n questions (the template's `asked`), `inside` the image tokens
    inside what each asks for. `mention_ends` marks where the words of each question's `Mention` end (its first word if
    there are none), `mentioned` the image tokens inside the things of it. `under` are the image tokens under what every
    mask token shows of its mask. `judges` says which question each of the scored masks belongs to, `shares` how far the
    asked region, and then mask and region together, cover the 4 x 4 squares of its tokens. For `describe`, the ends
    mark nothing, and `inside`, `mentioned`, `judges` and `shares` have no rows; for tasks without masks, `under`,
    `judges` and `shares` have none.
    """

    pixels: Float[Tensor, "b 3 side side"]
    mask_pixels: Float[Tensor, "m 3 mask_side mask_side"]
    packed: Packed
    words: Int[Tensor, "b length"]
    digits: Int[Tensor, "b length"]
    question_ends: Bool[Tensor, "b length"]
    inside: Bool[Tensor, "n tokens"]
    mention_ends: Bool[Tensor, "b length"]
    mentioned: Bool[Tensor, "n tokens"]
    under: Bool[Tensor, "m mask_tokens tokens"]
    judges: Int[Tensor, " scored"]
    shares: Float[Tensor, "scored mask_tokens both"]

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


def said_of_masks(words: Sequence[str]) -> str:
    """What is said of each mask, in one sentence."""
    return f"masks: {'; '.join(words)}."


def beside(rng: np.random.Generator, cell: str) -> str:
    """A cell that shares an edge with this one."""
    place = np.array([COLUMNS.index(cell[0]), int(cell[1])])
    near = place + pick(rng, [(0, 1), (0, -1), (1, 0), (-1, 0)])
    column, row = np.where((near < 0) | (near > 9), 2 * place - near, near)
    return f"{COLUMNS[column]}{row}"


def misread_scores(rng: np.random.Generator, scores: Sequence[float]) -> list[float]:
    """Scores as an evaluator might have written them: each some way off, one in seven anything. Ours."""
    near = np.clip(rng.normal(scores, 0.2), 0.0, 1.0)
    anything = rng.random(len(scores))
    read: list[float] = np.where(rng.random(len(scores)) < 0.15, anything, near).tolist()
    return read


def misread(rng: np.random.Generator, example: Example) -> Example:
    """The example as an evaluator might have read it: of all things three in ten are seen a cell beside their own, in
    all that is said of them, and three answers in ten are something else that was named. Scores, and the words for
    them, are those of `misread_scores`. Ours."""
    named = sorted(set(CELL.findall(example.reasoning)))
    everything = sorted(set(CELL.findall(" ".join([example.reasoning, *example.under]))))
    seen = {cell: beside(rng, cell) if rng.random() < 0.3 else cell for cell in everything}
    steps, mark, answer = example.reasoning.rpartition("answer:")
    if rng.random() < 0.3:
        answer = CELL.sub(lambda _: pick(rng, named), answer)

    def as_seen(words: str) -> str:
        return CELL.sub(lambda found: seen[found[0]], words)

    reasoning, under = as_seen(steps + mark + answer), [as_seen(words) for words in example.under]
    return replace(example, reasoning=reasoning, under=under, scores=misread_scores(rng, example.scores))


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
        mention_ends, question_ends = (torch.zeros_like(packed.ids, dtype=torch.bool) for _ in range(2))
        for row, blocks in enumerate(rows):
            for start, block in zip(starts(len(self.prefix), [block.ids for block in blocks]), blocks, strict=True):
                mention_ends[row, start + block.mention_end] = task != "describe"
                question_ends[row, start + block.question_end] = task != "describe"
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
            **self.regions([] if task == "describe" else every),
        )

    def regions(self, every: Sequence[Example]) -> dict[str, Tensor]:
        """`inside`, `mentioned`, `judges` and `shares` of a batch with these questions, in their order."""
        image_grid, mask_grid = self.grids
        inside = tokens_inside(coverage([example.truth for example in every], image_grid).mean(-1))
        mentioned = tokens_inside(coverage([example.mentioned for example in every], image_grid).mean(-1))
        judged = torch.tensor([len(example.masks) for example in every], dtype=torch.long)
        truths = coverage([example.truth for example in every], mask_grid).repeat_interleave(judged, dim=0)
        both = coverage([mask & example.truth for example in every for mask in example.masks], mask_grid)
        judges = torch.arange(len(every)).repeat_interleave(judged)
        shares = torch.cat([truths, both], dim=-1)
        return {"inside": inside, "mentioned": mentioned, "judges": judges, "shares": shares}

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
        read_ids, right = ([*ids, *self.reply(task, one)] for one in (read, example))
        if len(read_ids) != len(right):
            raise ConfigError("cells, or words for IoUs, differ in their number of tokens: leave `misread` at 0")
        return Block(read_ids, right, mention_end, question_end, len(ids))

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
        for at in range(block.reply, len(block.ids)):
            if at in scored:
                digits[start + at - 1] = block.right[at]
            elif block.ids[at] == block.right[at]:
                words[start + at - 1] = block.right[at]

    def scored(self, block: Block) -> set[int]:
        """The places in a block of the digits of its scores, which come after the last opening."""
        opening, digits = list(self.grammar.opening), set(self.grammar.digits)
        found = [at for at in range(block.reply, len(block.ids)) if block.ids[at : at + len(opening)] == opening]
        return {at for at in range(found[-1], len(block.ids)) if block.ids[at] in digits} if found else set()
