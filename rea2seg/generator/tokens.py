"""The MLLM's sequence: prompts assembled from separately encoded segments, and positions derived from them once.

Nothing here parses text for control tokens. A trusted template is cut at the control tokens it names, and everything
between two of them, the question included, is encoded as plain text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from transformers import PreTrainedTokenizerBase

from rea2seg.errors import ConfigError
from rea2seg.text import control_id, cut, encode_untrusted, refuse_undeclared

Row = Literal["predictor", "seg"]
Mode = Literal["teacher", "generate"]
"""Whether an answer is put in the MLLM's mouth or left to itself."""

IMAGE = -200
"""Stands for an image token in a list of ids, as in LLaVA. Tokenizers disagree about the id of `<image>`: in
LLaVA 1.5's it is 32000, which READ's tokenizer gives to `[SEG]`."""
SEG = "[SEG]"
PLACEHOLDER = "<image>"
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Conversation:
    """How a question and its answer are written for the MLLM; the default is LISA's and READ's (`llava_v1`, long form).

    `controls` are the tokens of the templates that are one id each. `stripped` are those that swallow the whitespace on
    both sides, as the slow tokenizer did with which LISA was trained; later tokenizers keep it, and the position before
    `[SEG]` would become a piece that training never saw there.
    """

    prompt: str = (
        "<s>A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions. USER: <im_start><image><im_end>\n"
        "{question} Please output segmentation mask. ASSISTANT:"
    )
    reply: str = " {answer}</s>"
    controls: tuple[str, ...] = ("<s>", "</s>", SEG, "<im_start>", "<im_end>")
    stripped: tuple[str, ...] = (SEG, "<im_start>", "<im_end>")

    def check(self) -> None:
        """Refuses templates that would drop the image, the question or the answer, or say one twice."""
        for template, slot in ((self.prompt, PLACEHOLDER), (self.prompt, "{question}"), (self.reply, "{answer}")):
            if template.count(slot) != 1:
                raise ConfigError(f"the conversation's template {template!r} must hold one {slot}")

    def prompt_ids(self, tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
        """The ids up to where the answer begins, with one `IMAGE` for the image."""
        return self._encode(tokenizer, self.prompt, {"question": question})

    def dialogue_ids(
        self, tokenizer: PreTrainedTokenizerBase, question: str, answer: str, **untrusted: str
    ) -> tuple[list[int], int]:
        """The ids of prompt and answer, and how many of them are the prompt.

        `answer` is trusted and may hold `[SEG]`; words from outside go into slots of it, `answer="{words}", words=...`.
        """
        template = self.prompt + self.reply.replace("{answer}", answer)
        ids = self._encode(tokenizer, template, {**untrusted, "question": question})
        prompt = self.prompt_ids(tokenizer, question)
        if ids[: len(prompt)] != prompt:
            raise ConfigError(f"the answer {answer!r} changes how the end of the prompt is tokenized: separate them")
        return ids, len(prompt)

    def _encode(self, tokenizer: PreTrainedTokenizerBase, template: str, slots: Mapping[str, str]) -> list[int]:
        ids: list[int] = []
        pieces = cut(template, [PLACEHOLDER, *self.controls])
        for before, piece, after in zip(["", *pieces], pieces, [*pieces[1:], ""], strict=False):
            if piece == PLACEHOLDER:
                ids.append(IMAGE)
            elif piece in self.controls:
                ids.append(control_id(tokenizer, piece))
            else:
                refuse_undeclared(tokenizer, piece)
                text = _fill(piece, slots)
                text = text.lstrip() if before in self.stripped else text
                text = text.rstrip() if after in self.stripped else text
                ids += encode_untrusted(tokenizer, text)
        return ids


@dataclass(frozen=True)
class Exchange:
    """A question with its answer as ids, the answer in words, and warnings."""

    ids: list[int]
    reply: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenLayout:
    """Positions in one sequence whose image placeholder has been expanded to one token per patch, row by row.

    `segs` are those of each `[SEG]`, or of what stands for it, such as LENS's queries.
    """

    image: slice
    grid: tuple[int, int]
    segs: tuple[int, ...]
    length: int

    def __post_init__(self) -> None:
        rows, cols = self.grid
        if self.image.start < 0 or self.image.stop - self.image.start != rows * cols:
            raise ValueError(f"{self.image} cannot hold a {rows} x {cols} grid of image tokens")
        if not self.segs or list(self.segs) != sorted(set(self.segs)):
            raise ValueError(f"[SEG] positions {self.segs} are not one or more increasing positions")
        if self.segs[0] <= self.image.stop or self.segs[-1] >= self.length:
            raise ValueError(f"[SEG] at {self.segs} must come after the image {self.image} and before {self.length}")

    @classmethod
    def of(cls, ids: Sequence[int], grid: tuple[int, int], seg: int, extra: int = 0) -> TokenLayout:
        """The layout of expanded ids; `extra` image tokens, such as a kept CLS, precede the grid."""
        image = [position for position, token in enumerate(ids) if token == IMAGE]
        if not image or image != list(range(image[0], image[-1] + 1)):
            raise ValueError("the sequence must hold exactly one image, in one piece")
        span = slice(image[0] + extra, image[-1] + 1)
        return cls(span, grid, tuple(position for position, token in enumerate(ids) if token == seg), len(ids))

    @property
    def predictors(self) -> tuple[int, ...]:
        """The positions that predict each `[SEG]`: their hidden states become the segmenter's prompts (LISA)."""
        return tuple(position - 1 for position in self.segs)

    def rows(self, row: Row) -> tuple[int, ...]:
        """The positions whose attention is read, one for each `[SEG]`."""
        return self.predictors if row == "predictor" else self.segs

    def shifted(self, by: int) -> TokenLayout:
        """The same sequence with `by` tokens in front of it, such as padding or another sequence of a pack."""
        image = slice(self.image.start + by, self.image.stop + by)
        return replace(self, image=image, segs=tuple(at + by for at in self.segs), length=self.length + by)


def expand(ids: Sequence[int], count: int) -> list[int]:
    """The ids with `count` image tokens in place of each single `IMAGE`."""
    return [token for identity in ids for token in [identity] * (count if identity == IMAGE else 1)]


def _fill(piece: str, slots: Mapping[str, str]) -> str:
    # One pass, so that braces inside a question stay what they are.
    if unknown := [name for name in _SLOT.findall(piece) if name not in slots]:
        raise ConfigError(f"the conversation's template has unknown slots: {', '.join(unknown)}")
    return _SLOT.sub(lambda slot: slots[slot[1]], piece)
