"""The nouns of the library: frozen values that one stage hands to the next.

Coordinates are pixels of the image as a person sees it (after EXIF rotation), x to the right and y down, with the
centre of the top-left pixel at (0.5, 0.5). Masks have the size of that image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from rea2seg.cells import Cells, cells_on_image
from rea2seg.geometry import Canvas, CellMap
from rea2seg.images import ImageSource, load_image

Source = Literal["prompt", "core", "attention", "given"]
Granularity = Literal["part", "object", "group"]
Images = Sequence[UInt8[Tensor, "3 _ _"]]
"""RGB images of any sizes. One name, because configs are checked by comparing signatures, and two spellings of a shaped
type are never equal."""


@dataclass(frozen=True, eq=False)
class Query:
    """An image and a question about it. `id` seeds every random choice made for this query.

    Image and text are taken as they are; `Query.of` prepares those from outside.
    """

    image: UInt8[Tensor, "3 h w"] = field(repr=False)
    text: str
    id: str = "0"

    @classmethod
    def of(cls, image: ImageSource, question: str, id: str = "0") -> Query:
        """The query of an image and a question from outside. Raises `InputError` where either cannot be used."""
        from rea2seg.text import clean_question  # only now: it brings transformers along, which takes seconds

        return cls(load_image(image), clean_question(question), id)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.image.shape[1], self.image.shape[2]


@dataclass(frozen=True, eq=False)
class Grounding:
    """What the generator knows of a query: one prompt embedding and one attention map for each `[SEG]` of its reply.

    `attention` is what the prompt token gives to each image token: softmax over all keys, mean over heads and the
    chosen layers, so its sum is at most 1. `flags` are warnings for the caller, such as a reply without `[SEG]`.
    """

    token: Float[Tensor, "n 1 c"] = field(repr=False)
    attention: Float[Tensor, "n rows cols"] = field(repr=False)
    cells: CellMap
    reply: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Embedding:
    """A segmenter's encoding of one image: made once, decoded with as many prompts as wanted.

    `fine` holds the higher-resolution feature levels of SAM 2, finest first; SAM has none.
    """

    features: Float[Tensor, "c h w"] = field(repr=False)
    canvas: Canvas
    fine: tuple[Float[Tensor, "..."], ...] = field(default=(), repr=False)

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

    def on(self, canvas: Canvas) -> Prompt:
        """The same with points and box in pixels of the canvas."""
        return replace(
            self,
            points=None if self.points is None else canvas.from_pixels(self.points),
            box=None if self.box is None else canvas.from_pixels(self.box.reshape(-1, 2, 2)).flatten(1),
        )

    def beside(self, features: Tensor) -> Prompt:
        """The same on the device of an image's features; token and mask in their precision, points in their own."""
        given: dict[str, Any] = {
            name: part.to(features.device) for name, part in vars(self).items() if part is not None
        }
        given |= {name: given[name].to(features.dtype) for name in ("token", "mask") if name in given}
        return Prompt(**given)


@dataclass(frozen=True, eq=False)
class Masks:
    """What a segmenter decodes: for each of n prompts k masks as low-resolution logits, and SAM's own IoU estimates."""

    lowres: Float[Tensor, "n k h w"] = field(repr=False)
    quality: Float[Tensor, "n k"]
    canvas: Canvas

    def upsample(self) -> Float[Tensor, "m height width"]:
        """Logits at image size of all masks, in order of prompt and mask."""
        return self.canvas.to_image(self.lowres.flatten(0, 1)[:, None])[:, 0]


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything known of a query before candidates are searched. Reasoners have no grounding and no initial mask."""

    query: Query
    embedding: Embedding
    grounding: Grounding | None = None
    initial: Masks | None = None

    # Kept, since every search asks for it and the logits of a large photograph take their time.
    @cached_property
    def cells(self) -> Cells | None:
        """The image tokens that look at the image; None if there are none, no initial mask, or nothing finite."""
        if self.grounding is None or self.initial is None:
            return None
        logits = self.initial.upsample()[0].detach().float().cpu()
        return cells_on_image(self.grounding.attention[0].detach().float().cpu(), logits, self.grounding.cells)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A mask that may be the answer."""

    mask: Bool[Tensor, "h w"] = field(repr=False)
    source: Source = "given"
    """Which search found it; `given` for masks a caller brings."""
    quality: float = math.nan
    """The segmenter's own IoU estimate in [0, 1] or so, never the evaluator's; NaN where no segmenter made one."""
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

    def __str__(self) -> str:
        """The estimate for a person to read, or why there is none."""
        if self.fallback:
            return "failed"
        return "none" if self.iou is None else f"{self.iou:.3f}"


@dataclass(frozen=True, eq=False)
class Ranking:
    """Candidates, best first, with their scores and their places in the order they were found.

    `no_target` says that nothing in the image seems to be meant; the candidates are there all the same.
    """

    candidates: tuple[Candidate, ...]
    scores: tuple[Score, ...]
    indices: tuple[int, ...]
    warnings: tuple[str, ...] = ()
    no_target: bool = False

    @property
    def best(self) -> Candidate | None:
        """The first candidate, or None if the searches found nothing."""
        return self.candidates[0] if self.candidates else None

    def top(self, k: int) -> tuple[Candidate, ...]:
        """The k best candidates, or all if there are fewer."""
        return self.candidates[:k]

    def __len__(self) -> int:
        return len(self.candidates)

    def __iter__(self) -> Iterator[tuple[Candidate, Score]]:
        """Each candidate with its score."""
        return zip(self.candidates, self.scores, strict=True)


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
    mask: Bool[Tensor, "h w"] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Sample:
    """One question of a dataset with its true mask; `truth` is None where nothing in the image answers the question."""

    id: str
    image: UInt8[Tensor, "3 h w"] = field(repr=False)
    query: str
    truth: Bool[Tensor, "h w"] | None = field(repr=False)
    ignore: Bool[Tensor, "h w"] | None = field(default=None, repr=False)
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

    image: UInt8[Tensor, "3 h w"] = field(repr=False)
    turns: tuple[tuple[str, str], ...]
