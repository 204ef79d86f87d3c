"""Batches of questions for the generator: pictures, packed questions, and the truth as tokens and as codes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rea2seg.generator.llava import clip_pixels
from rea2seg.generator.tokens import IMAGE, Conversation, expand
from rea2seg.synth.queries import CATEGORIES, Question, part_id
from rea2seg.synth.render import Rendering, look
from rea2seg.text import encode_untrusted
from training.batches import Movable
from training.mentions import Mention
from training.packing import Packed, pack, starts
from training.point_prompts import canvas_lattice, on_canvas
from training.regions import token_cells, tokens_inside
from training.scenes import Targets, code_set, codes_of, scene_with_questions, to_tensor


def target_codes(question: Question) -> Bool[np.ndarray, " codes"]:
    """The set of codes of a question's answer."""
    return code_set(question.target, None if question.part is None else part_id(question.part))


@dataclass(frozen=True, eq=False)
class QuestionBatch(Movable):
    """q packed questions about each of b pictures.

    `inside` are the image tokens inside the target, `mentioned` those inside the things of a question's `Mention`. Its
    words end at `mention_ends` of the packed sequence (without such things: no token, and the question's first word).
    """

    pixels: Float[Tensor, "b 3 side side"]
    canvas: UInt8[Tensor, "b 3 canvas canvas"]
    resized: Int[Tensor, "b 2"]
    packed: Packed
    inside: Bool[Tensor, "b q tokens"]
    mentioned: Bool[Tensor, "b q tokens"]
    mention_ends: Int[Tensor, "b q"]
    targets: Targets

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True, eq=False)
class QuestionedScene:
    """A picture, questions about it, and the mention of each."""

    rendering: Rendering
    asked: list[Question]
    mentions: list[Mention]


def draw_questions(rng: np.random.Generator, count: int, categories: Sequence[str], split: str) -> QuestionedScene:
    """A scene with exactly `count` questions."""
    world, rendering, asked = scene_with_questions(rng, split, count, categories)
    seen = look(world, rendering)
    return QuestionedScene(rendering, asked, [Mention.of(question, seen) for question in asked])


class QuestionDrawer:
    """Draws question batches. `side` and `grid` belong to the generator's tower, `canvas` to the segmenter."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        conversation: Conversation,
        answer: str,
        side: int,
        grid: int,
        canvas: int,
        cells: int,
        count: int,
        categories: Sequence[str] = CATEGORIES,
    ) -> None:
        self.tokenizer, self.conversation, self.answer = tokenizer, conversation, answer
        self.side, self.grid, self.canvas, self.cells = side, grid, canvas, cells
        self.count, self.categories = count, categories
        head = replace(conversation, prompt=conversation.prompt.split("{question}")[0], reply="")
        self.prefix = expand(head.prompt_ids(tokenizer, ""), grid * grid)

    def block_ids(self, text: str) -> list[int]:
        """The ids of a question and its answer after the prefix."""
        ids, _ = self.conversation.dialogue_ids(self.tokenizer, text, self.answer)
        return expand(ids, self.grid * self.grid)[len(self.prefix) :]

    def batch(self, rng: np.random.Generator, scenes: int, split: str) -> QuestionBatch:
        """A batch of fresh scenes."""
        drawn = [draw_questions(rng, self.count, self.categories, split) for _ in range(scenes)]
        rows = [self.row(rng, scene) for scene in drawn]
        stacked = {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}
        targets = Targets(stacked.pop("lattice"), stacked.pop("shift"), stacked.pop("table"))
        blocks = [[self.block_ids(question.text) for question in scene.asked] for scene in drawn]
        packed = pack(self.prefix, blocks, self.tokenizer.pad_token_id)
        ends = torch.tensor([self.mention_ends(row, scene) for row, scene in zip(blocks, drawn, strict=True)])
        return QuestionBatch(packed=packed, targets=targets, mention_ends=ends, **stacked)

    def mention_ends(self, blocks: list[list[int]], scene: QuestionedScene) -> list[int]:
        """Where in a packed sequence the mention of each question ends."""
        words = [len(encode_untrusted(self.tokenizer, mention.words)) for mention in scene.mentions]
        begins = starts(len(self.prefix), blocks)
        return [start + max(count - 1, 0) for start, count in zip(begins, words, strict=True)]

    def row(self, rng: np.random.Generator, scene: QuestionedScene) -> dict[str, object]:
        """The pictures and the truth of one scene."""
        rendering, asked = scene.rendering, scene.asked
        codes, sets = codes_of(rendering), [target_codes(question) for question in asked]
        names = [code_set(mention.things) for mention in scene.mentions]
        cells = token_cells(codes, self.grid, padded=True)
        share = torch.from_numpy(np.stack([chosen[cells].mean(-1) for chosen in (*sets, *names)])).flatten(1)
        inside, mentioned = torch.split(tokens_inside(share), len(asked))
        canvas, resized, _ = on_canvas(rendering, self.canvas)
        lattice, shift = canvas_lattice(rng, codes, resized, self.canvas, self.cells)
        return {
            "pixels": clip_pixels(to_tensor(rendering.image), self.side, "pad"),
            "canvas": canvas,
            "resized": np.array(resized),
            "inside": inside,
            "mentioned": mentioned,
            "lattice": lattice,
            "shift": shift,
            "table": np.stack(sets)[:, None],
        }


def image_columns(ids: Int[Tensor, "b length"]) -> slice:
    """Where the image tokens are, the same in every row."""
    columns = torch.nonzero(ids[0] == IMAGE)[:, 0]
    return slice(int(columns[0]), int(columns[-1]) + 1)
