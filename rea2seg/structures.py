"""The nouns of the library: frozen values that one stage hands to the next.

Coordinates are pixels of the image as a person sees it (after EXIF rotation), x to the right and y down, with the
centre of the top-left pixel at (0.5, 0.5). Masks have the size of that image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

Source = Literal["prompt", "core", "attention", "given"]
Granularity = Literal["part", "object", "group"]
Images = Sequence[UInt8[Tensor, "3 _ _"]]
"""RGB images of any sizes. One name, because configs are checked by comparing signatures, and two spellings of a shaped
type are never equal."""


@dataclass(frozen=True, eq=False)
class Query:
    """An image and a question about it. `id` seeds every random choice made for this query.

    The text is read as it is; `rea2seg.text.clean_question` prepares one from outside.
    """

    image: UInt8[Tensor, "3 h w"]
    text: str
    id: str = "0"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.image.shape[1], self.image.shape[2]


@dataclass(frozen=True)
class CellMap:
    """Which pixels of the image each image token of an MLLM stands for.

    Token (row, col) covers x in [left + col * cell_width, left + (col + 1) * cell_width), likewise y. The numbers are
    in pixels of the original image: they undo the crop, the padding or the stretch with which the MLLM saw it.
    """

    rows: int
    cols: int
    left: float
    top: float
    cell_width: float
    cell_height: float

    @classmethod
    def stretched(cls, size: tuple[int, int], grid: tuple[int, int]) -> CellMap:
        """The whole image was resized to the token grid, aspect ratio not kept (Qwen2.5-VL, InternVL)."""
        (height, width), (rows, cols) = size, grid
        return cls(rows, cols, 0.0, 0.0, width / cols, height / rows)

    @classmethod
    def padded(cls, size: tuple[int, int], grid: int) -> CellMap:
        """The longest side was resized to the token grid and the short side padded equally on both ends."""
        height, width = size
        cell = max(height, width) / grid
        return cls(grid, grid, (width - grid * cell) / 2, (height - grid * cell) / 2, cell, cell)

    @classmethod
    def cropped(cls, size: tuple[int, int], grid: int, side: int) -> CellMap:
        """The shortest side was resized to `side` pixels and the centre cropped (CLIP in LISA and READ).

        The long side is floored and the crop offset is an integer, as CLIP's processor does it.
        """
        height, width = size
        short = min(height, width)
        resized_height, resized_width = side * height // short, side * width // short
        scale_x, scale_y = width / resized_width, height / resized_height
        left, top = (resized_width - side) // 2 * scale_x, (resized_height - side) // 2 * scale_y
        return cls(grid, grid, left, top, side / grid * scale_x, side / grid * scale_y)

    def boxes(self) -> Float[Tensor, "tokens 4"]:
        """The pixel box (left, top, right, bottom) of every token, row by row. Boxes may reach outside the image."""
        row = torch.arange(self.rows).repeat_interleave(self.cols)
        col = torch.arange(self.cols).repeat(self.rows)
        left, top = self.left + col * self.cell_width, self.top + row * self.cell_height
        return torch.stack([left, top, left + self.cell_width, top + self.cell_height], dim=1)

    def to_image(self, values: Float[Tensor, "rows cols"], size: tuple[int, int]) -> Float[Tensor, "h w"]:
        """At every pixel of an image of (height, width) the value of its token; 0 where no token looks."""
        row = 1 + ((torch.arange(size[0]) + 0.5 - self.top) / self.cell_height).floor().long()
        col = 1 + ((torch.arange(size[1]) + 0.5 - self.left) / self.cell_width).floor().long()
        return functional.pad(values, (1, 1, 1, 1))[row.clamp(0, self.rows + 1)][:, col.clamp(0, self.cols + 1)]


@dataclass(frozen=True, eq=False)
class Grounding:
    """What the generator knows of a query: one prompt embedding and one attention map for each `[SEG]` of its reply.

    `attention` is what the prompt token gives to each image token: softmax over all keys, mean over heads and the
    chosen layers, so its sum is at most 1. `flags` are warnings for the caller, such as a reply without `[SEG]`.
    """

    token: Float[Tensor, "n 1 c"]
    attention: Float[Tensor, "n rows cols"]
    cells: CellMap
    reply: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Canvas:
    """Where an image lies on the square input of a segmenter.

    `resized` is the image's (height, width) in the top-left corner of a canvas of `side` x `side` pixels, the rest is
    padding (SAM); `None` says the image was stretched over the whole canvas (SAM 2).
    """

    size: tuple[int, int]
    side: int
    resized: tuple[int, int] | None

    def from_pixels(self, xy: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 2"]:
        """Points (x, y) of the image as points of the canvas."""
        height, width = self.resized or (self.side, self.side)
        return xy * torch.tensor([width / self.size[1], height / self.size[0]], dtype=xy.dtype, device=xy.device)

    def content(self, lowres: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n rows cols"]:
        """The part of maps on the canvas, of any resolution, whose pixel centres lie on the image."""
        scale = lowres.shape[-1] / self.side
        rows, cols = (math.ceil(length * scale - 0.5) for length in self.resized or (self.side, self.side))
        return lowres[..., : max(1, rows), : max(1, cols)]

    def to_image(self, lowres: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c height width"]:
        """Logits on the canvas as logits on the image, with upstream's interpolation (bilinear, twice for SAM)."""
        if self.resized is not None:
            lowres = functional.interpolate(lowres, (self.side, self.side), mode="bilinear", align_corners=False)
            lowres = lowres[..., : self.resized[0], : self.resized[1]]
        return functional.interpolate(lowres, self.size, mode="bilinear", align_corners=False)


@dataclass(frozen=True, eq=False)
class Embedding:
    """A segmenter's encoding of one image: made once, decoded with as many prompts as wanted.

    `fine` holds the higher-resolution feature levels of SAM 2, finest first; SAM has none.
    """

    features: Float[Tensor, "c h w"]
    canvas: Canvas
    fine: tuple[Float[Tensor, "..."], ...] = ()

    def sample_at(self, points: Float[Tensor, "n 2"]) -> Float[Tensor, "n c"]:
        """Image features at points (x, y) in image pixels, interpolated bilinearly."""
        grid = self.canvas.from_pixels(points.to(self.features))[None, None] * (2 / self.canvas.side) - 1
        sampled = functional.grid_sample(self.features[None], grid, padding_mode="border", align_corners=False)
        return sampled[0, :, 0].T


@dataclass(frozen=True, eq=False)
class Prompt:
    """A batch of n prompts for one image; each prompt mixes any of the five kinds.

    points: (x, y) in image pixels, with labels 1 = foreground, 0 = background, -1 = padding. box: (left, top, right,
    bottom) in image pixels. token: raw sparse embeddings, such as an MLLM's. mask: low-resolution logits of an earlier
    decode.
    """

    points: Float[Tensor, "n p 2"] | None = None
    labels: Int[Tensor, "n p"] | None = None
    box: Float[Tensor, "n 4"] | None = None
    token: Float[Tensor, "n t c"] | None = None
    mask: Float[Tensor, "n 1 h w"] | None = None

    def __post_init__(self) -> None:
        if (self.points is None) != (self.labels is None):
            raise ValueError("a prompt needs both points and labels, or neither")
        if len({len(given) for given in self.given()}) != 1:
            raise ValueError("the parts of a prompt must be given, and agree on the number of prompts")

    def given(self) -> list[Tensor]:
        """The parts that are present."""
        return [part for part in (self.points, self.labels, self.box, self.token, self.mask) if part is not None]

    def __len__(self) -> int:
        return len(self.given()[0])


@dataclass(frozen=True, eq=False)
class Masks:
    """What a segmenter decodes: for each of n prompts k masks as low-resolution logits, and SAM's own IoU estimates."""

    lowres: Float[Tensor, "n k h w"]
    quality: Float[Tensor, "n k"]
    canvas: Canvas

    def upsample(self, chosen: Bool[Tensor, "n k"] | None = None) -> Float[Tensor, "m height width"]:
        """Logits at image size of the chosen masks, in order of prompt and mask; of all masks by default."""
        flat = self.lowres.flatten(0, 1) if chosen is None else self.lowres[chosen]
        return self.canvas.to_image(flat[:, None])[:, 0]


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything known of a query before candidates are searched. Reasoners have no grounding and no initial mask."""

    query: Query
    embedding: Embedding
    grounding: Grounding | None = None
    initial: Masks | None = None


@dataclass(frozen=True, eq=False)
class Candidate:
    """A mask that may be the answer."""

    mask: Bool[Tensor, "h w"]
    source: Source
    """Which search found it; `given` for masks a caller brings."""
    quality: float
    """The segmenter's own IoU estimate in [0, 1] or so, never the evaluator's."""
    seed_xy: tuple[float, float] | None = None
    """The point prompt behind an attention candidate, in image pixels."""


@dataclass(frozen=True)
class Score:
    """An evaluator's judgement of one candidate.

    `iou` is the estimated IoU with the target in [0, 1], or None where the evaluator failed (`fallback`). `confidence`
    is the probability the evaluator gave to the digits it chose among, in [0, 1]: near 0, it did not mean to write a
    number at all.
    """

    iou: float | None
    reasoning: str = ""
    confidence: float | None = None
    fallback: bool = False


@dataclass(frozen=True, eq=False)
class Ranking:
    """Candidates, best first, with their scores and their places in the order they were found."""

    candidates: tuple[Candidate, ...]
    scores: tuple[Score, ...]
    indices: tuple[int, ...]
    warnings: tuple[str, ...] = ()

    @property
    def best(self) -> Candidate | None:
        """The first candidate, or None if the searches found nothing."""
        return self.candidates[0] if self.candidates else None

    def top(self, k: int) -> tuple[Candidate, ...]:
        """The k best candidates, or all if there are fewer."""
        return self.candidates[:k]

    def __len__(self) -> int:
        return len(self.candidates)


@dataclass(frozen=True)
class Answer:
    """What a reasoner says: boxes (left, top, right, bottom), points (x, y) and labels, in image pixels."""

    boxes: tuple[tuple[float, float, float, float], ...]
    points: tuple[tuple[float, float], ...]
    labels: tuple[str, ...] = ()
    thinking: str = ""


@dataclass(frozen=True, eq=False)
class Region:
    """A labelled mask: an object, or a part of one."""

    label: str
    mask: Bool[Tensor, "h w"]


@dataclass(frozen=True, eq=False)
class Sample:
    """One question of a dataset with its true mask; `truth` is None where nothing in the image answers the question."""

    id: str
    image: UInt8[Tensor, "3 h w"]
    query: str
    truth: Bool[Tensor, "h w"] | None
    ignore: Bool[Tensor, "h w"] | None = None
    category: str = "all"
    component: str = ""
    granularity: Granularity = "object"
    split: str = ""
    instances: tuple[Region, ...] = ()
    parts: tuple[Region, ...] = ()
    graph: dict[str, Any] | None = None
    reasoning: str = ""


@dataclass(frozen=True, eq=False)
class Dialogue:
    """An image and (question, answer) turns about it: plain visual question answering for training."""

    image: UInt8[Tensor, "3 h w"]
    turns: tuple[tuple[str, str], ...]
