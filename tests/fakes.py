"""Stand-ins for the models: small, deterministic, and with answers that can be worked out by hand."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

from rea2seg.geometry import Canvas, CellMap
from rea2seg.protocols import Segmenter
from rea2seg.structures import Candidate, Embedding, Grounding, Images, Masks, Prompt, Query, Scene, Score


@dataclass
class FakeSegmenter:
    """A segmenter whose masks are smooth, dented discs around the first point of each prompt (the centre if none).

    `radii` are those of the k masks in canvas pixels, `slopes` the logits per canvas pixel at their edges (steep is
    stable), `quality` their IoU estimates. All prompts are kept in `prompts`.
    """

    side: int = 128
    reduction: int = 4
    radii: tuple[float, ...] = (10.0, 20.0, 40.0)
    slopes: tuple[float, ...] = (4.0, 4.0, 4.0)
    quality: tuple[float, ...] = (0.9, 0.95, 0.92)
    prompts: list[Prompt] = field(default_factory=list)

    def encode(self, images: Images) -> list[Embedding]:
        """Zero features: no test of a search needs others, unless it sets them itself."""
        canvases = [letterbox((image.shape[1], image.shape[2]), self.side) for image in images]
        return [Embedding(torch.zeros(4, 8, 8), canvas) for canvas in canvases]

    def decode(self, embedding: Embedding, prompt: Prompt, multimask: bool) -> Masks:
        self.prompts.append(prompt)
        count = len(self.radii) if multimask else 1
        centre = torch.tensor([[embedding.canvas.size[1] / 2, embedding.canvas.size[0] / 2]])
        points = centre.expand(len(prompt), 2) if prompt.points is None else prompt.points[:, 0]
        lowres = torch.stack([self._discs(point, count) for point in embedding.canvas.from_pixels(points)])
        return Masks(lowres, torch.tensor(self.quality[:count]).repeat(len(prompt), 1), embedding.canvas)

    def _discs(self, centre: Float[Tensor, " 2"], count: int) -> Float[Tensor, "k h w"]:
        grid = (torch.arange(self.side // self.reduction) + 0.5) * self.reduction
        x, y = grid[None] - centre[0], grid[:, None] - centre[1]
        dent = 1 + 0.1 * torch.sin(3 * torch.atan2(y, x) + float(centre.sum()))
        discs = zip(self.radii[:count], self.slopes, strict=False)
        return torch.stack([slope * (radius * dent - (x**2 + y**2 + 1).sqrt()) for radius, slope in discs])


def letterbox(size: tuple[int, int], side: int) -> Canvas:
    """An image of (height, width) in the corner of a square canvas, as SAM places it."""
    scale = side / max(size)
    return Canvas(size, side, (math.floor(size[0] * scale + 0.5), math.floor(size[1] * scale + 0.5)))


def find_nothing(scene: Scene, segmenter: Segmenter) -> list[Candidate]:  # noqa: ARG001 - those of a search
    """A search that is a function."""
    return []


# A whole pipeline on flat paint: questions name a colour, and every seat can see colours.

PAINTS = {"red": (213, 0, 0), "green": (0, 158, 0), "blue": (0, 0, 213)}


def canvas_of_paint(size: tuple[int, int] = (64, 64)) -> UInt8[Tensor, "3 h w"]:
    """A white picture of (height, width) with a red, a green and a blue box."""
    image, (height, width) = torch.full((3, *size), 255, dtype=torch.uint8), size
    for place, rgb in enumerate(PAINTS.values()):
        left = (place * width) // 3 + width // 16
        box = image[:, height // 4 : height // 4 + height // 2, left : left + width // 4]
        box[:] = torch.tensor(rgb, dtype=torch.uint8)[:, None, None]
    return image


def painted(image: UInt8[Tensor, "3 h w"], text: str) -> Bool[Tensor, "h w"]:
    """The pixels of the colour that a text names; none if it names none."""
    rgb = next((paint for name, paint in PAINTS.items() if name in text), (1, 2, 3))
    return (image == torch.tensor(rgb, dtype=torch.uint8)[:, None, None]).all(0)


@dataclass
class PaintGenerator:
    """Attends to the colour that a question names; to nothing finite where it says `nan`. Answers with `targets`."""

    grid: int = 8
    targets: int = 1
    device: str = "auto"
    asked: list[str] = field(default_factory=list)

    def ground(self, queries: Sequence[Query]) -> list[Grounding]:
        self.asked += [query.text for query in queries]
        return [self._one(query) for query in queries]

    def _one(self, query: Query) -> Grounding:
        wanted = painted(query.image, query.text)
        attention = functional.adaptive_avg_pool2d(wanted[None].float(), (self.grid, self.grid))
        attention = attention / attention.sum().clamp(min=1)
        if "nan" in query.text:
            attention = attention * float("nan")
        rgb = query.image[:, wanted][:, 0].float() if wanted.any() else torch.zeros(3)
        cells = CellMap.stretched(query.size, (self.grid, self.grid))
        token = (rgb / 255).expand(self.targets, 1, 3)
        return Grounding(token, attention.repeat(self.targets, 1, 1), cells, "It is [SEG]." * self.targets)


@dataclass
class PaintSegmenter:
    """Masks of one colour: that of the token, or of the pixel under the first point.

    Of three masks the first is its upper half, the second all of it, the third everything that is not white; a single
    mask is all of it and a rim around it.
    """

    weights: str = ""
    side: int = 64
    device: str = "auto"
    encoded: int = 0

    def encode(self, images: Images) -> list[Embedding]:
        self.encoded += len(images)
        return [self._one(image) for image in images]

    def _one(self, image: UInt8[Tensor, "3 h w"]) -> Embedding:
        pixels = functional.interpolate(image[None].float() / 255, (self.side, self.side), mode="nearest")[0]
        canvas = Canvas((image.shape[1], image.shape[2]), self.side, None)
        return Embedding(functional.adaptive_avg_pool2d(pixels, (8, 8)), canvas, (pixels,))

    def decode(self, embedding: Embedding, prompt: Prompt, multimask: bool) -> Masks:
        pixels = embedding.fine[0]
        if prompt.token is not None:
            colours = prompt.token[:, 0]
        else:
            x, y = embedding.canvas.from_pixels(prompt.points)[:, 0].long().clamp(0, self.side - 1).unbind(1)
            colours = pixels[:, y, x].T
        whole = torch.stack([(pixels - colour[:, None, None]).abs().amax(0) < 0.01 for colour in colours])
        upper = whole & (torch.arange(self.side)[:, None] < self.side // 2)
        colourful = (pixels.amin(0) < 0.99).expand_as(whole)
        rim = functional.max_pool2d(whole[:, None].float(), 5, 1, 2)[:, 0] > 0
        masks = torch.stack([upper, whole, colourful], dim=1) if multimask else rim[:, None]
        quality = torch.tensor([0.9, 0.92, 0.95] if multimask else [0.9]).expand(len(masks), -1)
        return Masks(torch.where(masks, 4.0, -4.0), quality, embedding.canvas)


@dataclass
class PaintEvaluator:
    """Knows the true IoU with the colour that a question names; fails where it says `mumble`."""

    weights: str = ""
    reasoning: bool = False
    device: str = "auto"
    asked: list[str] = field(default_factory=list)

    def score(self, query: Query, groups: Sequence[Sequence[Candidate]]) -> list[list[Score]]:
        self.asked.append(query.text)
        return [[self._judge(query, candidate) for candidate in group] for group in groups]

    def _judge(self, query: Query, candidate: Candidate) -> Score:
        if "mumble" in query.text:
            return Score(None, fallback=True)
        truth = painted(query.image, query.text)
        shared, either = (candidate.mask & truth).sum(), (candidate.mask | truth).sum()
        thought = f"I look for {query.text}." if self.reasoning else ""
        return Score(float(shared / either.clamp(min=1)), thought, 0.75)


@dataclass(frozen=True)
class WholeImage:
    """A search that needs no generator."""

    def __call__(self, scene: Scene, segmenter: Segmenter) -> list[Candidate]:  # noqa: ARG002
        return [Candidate(torch.ones(scene.query.size, dtype=torch.bool), "given", 0.5)]
