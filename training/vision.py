"""The vision towers of mini learn what lies under every image token (mini only; real towers come trained).

    python -m training.vision fit --config configs/train/vision_generator.yaml
    python -m training.vision fit --config configs/train/vision_evaluator.yaml

Tower and projector are trained; linear heads on the projected tokens name kind, colour, size, texture and part of what
fills most of a token's cell, what is painted and written on it, whether it hides another thing or is hidden, and where
that object's centre lies. The evaluator's tower also sees binary masks and tells how far each is covered, on a 4 x 4
grid inside every token; and it starts from a `teacher`, the generator's tower, whose projected tokens it imitates, so
that it can speak to a language model that was trained with that one. The heads are thrown away.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isqrt
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import InternVLForConditionalGeneration, LlavaForConditionalGeneration
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from rea2seg.drawing import FAINT, PAPER
from rea2seg.evaluators.internvl import image_pixels
from rea2seg.evaluators.weights import load_internvl
from rea2seg.generator.llava import clip_pixels, load
from rea2seg.generator.llava import image_features as llava_features
from rea2seg.synth.render import look
from rea2seg.synth.vocabulary import COLOURS, KINDS
from rea2seg.synth.worlds import Theme, pick
from training.batches import Movable, Stream
from training.mini import Language, Tower, load_tokenizer, save_internvl, small_internvl, small_llava
from training.optim import Schedule
from training.pictures import CLIP, IMAGENET, SHOWN, captioned, named, plain, restored
from training.point_prompts import draw_goal
from training.regions import FINE, coverage, shown_masks, token_cells
from training.scenes import codes_of, sample_scene, to_tensor
from training.stage import Stage, run
from training.take_over import see_at, take_over_tower
from training.token_labels import NAMES, RARE, labels_of


@dataclass(frozen=True, eq=False)
class TokenBatch(Movable):
    """Pictures with one row of labels for every image token, and masks with their coverage."""

    pixels: Float[Tensor, "b 3 side side"]
    names: Int[Tensor, "b tokens heads"]
    place: Float[Tensor, "b tokens 3"]
    mask_pixels: Float[Tensor, "m 3 mask_side mask_side"]
    coverage: Float[Tensor, "m mask_tokens fine"]

    def __len__(self) -> int:
        return len(self.pixels)


def draw_batch(
    rng: np.random.Generator,
    scenes: int,
    tower: Tower,
    grid: int,
    padded: bool,
    masks: int,
    mask_side: int,
    split: str,
    themes: Sequence[Theme] = (),
) -> TokenBatch:
    """A batch of fresh scenes, of `themes` if there are any; `masks` masks of each, at `mask_side` pixels."""
    pixels, names, places, drawn = [], [], [], []
    for _ in range(scenes):
        world, rendering = sample_scene(rng, split, pick(rng, themes) if themes else None)
        image, codes = to_tensor(rendering.image), codes_of(rendering)
        pixels.append(clip_pixels(image, tower.side, "pad") if padded else image_pixels(image, tower.side))
        labels = labels_of(look(world, rendering), token_cells(codes, grid, padded), padded)
        places.append(labels.pop("place").reshape(-1, 3))
        names.append(np.stack([labels[name].reshape(-1) for name in NAMES], axis=1))
        drawn += [draw_goal(rng, world).codes()[codes] for _ in range(masks)]
    return TokenBatch(
        torch.stack(pixels),
        torch.from_numpy(np.stack(names)),
        torch.from_numpy(np.stack(places)),
        shown_masks(drawn, mask_side),
        coverage(drawn, mask_side * grid // tower.side),
    )


def as_clip(pixels: Float[Tensor, "b 3 side side"]) -> Float[Tensor, "b 3 side side"]:
    """Pixels normalised for InternVL, normalised for CLIP instead."""
    stacked = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    mean, std, clip_mean, clip_std = (torch.tensor(numbers, device=pixels.device)[:, None, None] for numbers in stacked)
    return (pixels * std + mean - clip_mean) / clip_std


def image_tokens(
    model: LlavaForConditionalGeneration | InternVLForConditionalGeneration, pixels: Float[Tensor, "b 3 side side"]
) -> Float[Tensor, "b tokens width"]:
    """What the tower of a generator or of an evaluator tells its language model of each picture."""
    if isinstance(model, LlavaForConditionalGeneration):
        return llava_features(model, pixels)
    features: Tensor = model.get_image_features(pixel_values=pixels).pooler_output
    return features


def coarser_tokens(
    model: InternVLForConditionalGeneration, pixels: Float[Tensor, "b 3 side side"]
) -> Float[Tensor, "b tokens width"]:
    """What an evaluator's tower tells of pictures that are larger than its own: for each of their cells the token in
    whose cell its middle lies."""
    side = model.config.vision_config.image_size[0]
    if pixels.shape[-1] == side:
        return image_tokens(model, pixels)
    tokens = image_tokens(model, functional.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True))
    coarse = isqrt(tokens.shape[1])
    fine = coarse * pixels.shape[-1] // side
    placed = tokens.transpose(1, 2).reshape(len(tokens), -1, coarse, coarse)
    return functional.interpolate(placed, size=(fine, fine), mode="nearest-exact").flatten(2).transpose(1, 2)


def mean_of_means(values: Float[Tensor, "b tokens"], *groups: Bool[Tensor, "b tokens"]) -> Float[Tensor, ""]:
    """The mean of the means of groups of tokens; a group without any is left out."""
    return torch.stack([values[group].mean() for group in groups if group.any()]).mean()


def unlike(tokens: Float[Tensor, "b tokens width"], taught: Float[Tensor, "b tokens width"]) -> Float[Tensor, ""]:
    """How far tokens are from what they should be, as a share of its variance."""
    return (tokens.float() - taught.float()).square().mean() / taught.float().var()


class LabelledScenes(Stream):
    """Scenes for the generator's tower (`padded`, as `clip_pixels` letterboxes) or the evaluator's (stretched).

    Their themes are drawn from `themes`, in which one may stand several times, or as the benchmark's are.
    """

    def __init__(
        self,
        tower: Tower,
        grid: int,
        padded: bool,
        scenes: int = 32,
        masks: int = 0,
        mask_side: int = 64,
        themes: Sequence[Theme] = (),
        seed: int = 0,
        workers: int = 1,
        val_batches: int = 8,
    ) -> None:
        draw = partial(
            draw_batch,
            scenes=scenes,
            tower=tower,
            grid=grid,
            padded=padded,
            masks=masks,
            mask_side=mask_side,
            themes=themes,
        )
        super().__init__(partial(draw, split="train"), partial(draw, split="val"), seed, workers, val_batches)


class VisionStage(Stage):
    """Wires a tower to its heads. `family` says which model is built and exported, its language part untrained.

    `prompt_width` belongs to the generator's connector, `downsample` to the evaluator's pixel shuffle. `weights` is a
    folder with weights of the same shape to go on from, `teacher` a generator whose tower is imitated; an
    evaluator's without `weights` begins with its tower. With the same folder for both, the tower imitates what it was
    itself, masks included, and learns beside that: the language model that was trained with it can go on with it. An
    evaluator's tower may then see larger pictures than before (the `side` of `tower`).
    """

    LOSS: ClassVar[Mapping[str, float]] = {**dict.fromkeys(NAMES, 1.0), "place": 5.0, "cover": 2.0, "match": 3.0}

    def __init__(
        self,
        family: Literal["generator", "evaluator"],
        tower: Tower,
        language: Language,
        tokenizer: str,
        export: str,
        prompt_width: int = 128,
        downsample: float = 0.5,
        weights: str | None = None,
        teacher: str | None = None,
        schedule: Schedule = Schedule(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(export, schedule, [weights, teacher])
        words = load_tokenizer(tokenizer)
        if family == "generator":
            parts = load(weights) if weights else small_llava(tower, language, words, prompt_width)
            self.model, self.sees = parts.mllm, CLIP
            self.save: Callable[[Path], None] = parts.save
        else:
            if weights:
                self.model = load_internvl(Path(weights)).model
                see_at(self.model, tower.side)
            else:
                self.model = small_internvl(tower, language, words, downsample)
            self.sees = IMAGENET
            self.save = partial(save_internvl, self.model, words)
        self.features: Callable[[Tensor], Tensor] = partial(image_tokens, self.model)
        self.taught: Callable[[Tensor], Tensor] | None = None
        self.own_teacher = teacher is not None and teacher == weights
        if teacher and self.own_teacher and family == "evaluator":
            self.teacher = load_internvl(Path(teacher)).model.requires_grad_(False)
            self.taught = partial(coarser_tokens, self.teacher)
        elif teacher:
            self.teacher = load(teacher).mllm.requires_grad_(False)
            self.taught = lambda pixels: image_tokens(
                self.teacher, as_clip(pixels) if self.sees is IMAGENET else pixels
            )
            if family == "evaluator" and not weights:
                take_over_tower(self.model, self.teacher)
        self.heads = nn.ModuleDict({name: nn.Linear(language.width, count + 1) for name, count in NAMES.items()})
        self.place, self.cover = nn.Linear(language.width, 3), nn.Linear(language.width, FINE * FINE)

    def losses(self, batch: TokenBatch) -> dict[str, Tensor]:
        """Cross-entropy of each name, the error of the place, the coverage's cross-entropy; accuracies on objects."""
        tokens = self.features(batch.pixels)
        things = batch.names[..., 0] > 0
        parts: dict[str, Tensor] = {}
        for index, (name, head) in enumerate(self.heads.items()):
            scores, label = head(tokens).float(), batch.names[..., index]
            right = (scores.argmax(-1) == label).float()
            error = functional.cross_entropy(scores.flatten(0, 1), label.flatten(), reduction="none").view_as(label)
            if name in RARE:
                without = things & (label == 1)
                parts[name] = mean_of_means(error, label > 1, without, ~things)
                parts[f"accuracy/{name}"] = mean_of_means(right, label > 1, without)
            else:
                parts[name], parts[f"accuracy/{name}"] = error.mean(), right[things].mean()
        parts["place"] = (self.place(tokens).float() - batch.place).abs()[things].mean()
        if self.taught is not None:
            parts["match"] = unlike(tokens, self.taught(batch.pixels))
        if len(batch.mask_pixels):
            mask_tokens = self.features(batch.mask_pixels)
            parts["cover"] = functional.binary_cross_entropy_with_logits(
                self.cover(mask_tokens).float(), batch.coverage
            )
            if self.taught is not None and self.own_teacher:
                parts["match"] = parts["match"] + unlike(mask_tokens, image_tokens(self.teacher, batch.mask_pixels))
        return parts

    def pictures(self, batch: TokenBatch) -> list[Image.Image]:
        """The first pictures, and the things that the heads see: in their colours, with their kinds."""
        tokens, names = self.features(batch.pixels[:SHOWN]), batch.names[:SHOWN, :, [*NAMES].index("kind")]
        grid = isqrt(tokens.shape[1])
        kinds, colours, middle, truth = (
            found.view(-1, grid, grid).cpu().numpy()
            for found in (*(self.heads[name](tokens).argmax(-1) for name in ("kind", "colour", "middle")), names)
        )
        paint = np.array([PAPER, *COLOURS.values(), FAINT], np.uint8)[colours.clip(max=len(COLOURS) + 1)]
        pictures = []
        for row, kind in enumerate(kinds):
            image = restored(batch.pixels[row], *self.sees)
            at = np.argwhere(middle[row] * kind > 0).tolist()
            words = [(r, c, KINDS[kind[r, c] - 1], bool(kind[r, c] == truth[row, r, c])) for r, c in at]
            pictures.append(captioned("", plain(image), named(image, paint[row], kind > 0, words)))
        return pictures

    def export(self, folder: Path) -> None:
        """Write the model with its trained tower in the native layout."""
        self.save(folder)


if __name__ == "__main__":
    run(VisionStage, LabelledScenes)
