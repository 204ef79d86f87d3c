"""A small SAM from nothing, on points, boxes and mask prompts (mini only; real SAM comes trained).

    python -m training.segmenter fit --config configs/train/segmenter.yaml

Up to two decodes a step: the first from one point, a few points or a box, the second (every other step) from more
points, a background point and the logits of the first. Mask losses are SAM's focal : dice = 20 : 1, and the quality
head learns the IoU.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from segment_anything.modeling import Sam
from torch import Tensor

from rea2seg.checkpoints.sam import SamConfig, build_sam, sam_plan, save_sam
from rea2seg.checkpoints.strict import fill
from rea2seg.masks import iou
from rea2seg.segmenters.sam import decode_prompts
from rea2seg.structures import Prompt
from training.batches import Stream
from training.losses import at_lattice, lattice_iou, mask_dice, mask_focal
from training.optim import Schedule
from training.pictures import SHOWN, SIDE, boxed, captioned, compared, on_picture, pointed
from training.point_prompts import PromptBatch, draw_batch
from training.stage import Stage, run
from training.take_over import take_over_sam

ALL_MASKS = range(4)


class PromptedScenes(Stream):
    """`scenes` fresh scenes a step, `prompts` prompts each, for a canvas of `side` pixels and a lattice of `cells`."""

    def __init__(
        self,
        scenes: int = 6,
        prompts: int = 8,
        side: int = 192,
        cells: int = 64,
        seed: int = 0,
        workers: int = 1,
        val_batches: int = 12,
    ) -> None:
        draw = partial(draw_batch, scenes=scenes, prompts=prompts, side=side, cells=cells)
        train, val = (partial(draw, split=split) for split in ("train", "val"))
        super().__init__(train, val, seed, workers, val_batches)


def encode_canvas(
    sam: Sam, images: UInt8[Tensor, "b 3 side side"], resized: Int[Tensor, "b 2"]
) -> Float[Tensor, "b c rows cols"]:
    """Embeddings of pictures that lie in the corner of the canvas; what is outside them is zero after normalisation."""
    side = torch.arange(images.shape[-1], device=images.device)
    inside = (side < resized[:, :1])[:, None, :, None] & (side < resized[:, 1:])[:, None, None]
    encoded: Tensor = sam.image_encoder((images - sam.pixel_mean) / sam.pixel_std * inside)
    return encoded


def compare(
    logits: Float[Tensor, "n 4 h w"], quality: Float[Tensor, "n 4"], truth: Bool[Tensor, "n 4 h w"], name: str
) -> dict[str, Tensor]:
    """The parts of the loss of one decode, and its mean IoUs under `name`."""
    iou = lattice_iou(logits, truth)
    return {
        "focal": mask_focal(logits, truth).mean(),
        "dice": mask_dice(logits, truth).mean(),
        "quality": (quality - iou).square().mean(),
        f"iou/{name}": iou[:, 0].mean(),
        f"iou/{name}_levels": iou[:, 1:].mean(),
    }


class SegmenterStage(Stage):
    """Wires SAM, its losses and the optimiser.

    `weights` is a folder with weights to go on from, `rea2seg/mini/v4/segmenter` for one; size of image and windows may
    differ. With `frozen_encoder` only what decodes prompts learns, so that a generator that was trained with the
    embeddings still fits.
    """

    LOSS: ClassVar[Mapping[str, float]] = {"focal": 20.0, "dice": 1.0, "quality": 1.0}

    def __init__(
        self,
        config: SamConfig,
        export: str,
        weights: str | None = None,
        frozen_encoder: bool = False,
        schedule: Schedule = Schedule(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(export, schedule, [weights])
        self.config, self.sam = config, build_sam(config).train()
        if weights is not None:
            tensors = sam_plan(Path(weights)).tensors
            fill(self.sam, Path(weights), take_over_sam(self.sam, tensors))
        self.sam.image_encoder.requires_grad_(not frozen_encoder)

    def features(self, batch: PromptBatch) -> Float[Tensor, "bn c rows cols"]:
        """The image embedding of every prompt's scene."""
        encoded = encode_canvas(self.sam, batch.images, batch.resized)
        return encoded.repeat_interleave(batch.targets.table.shape[1], dim=0)

    def decode(self, features: Tensor, prompt: Prompt) -> tuple[Float[Tensor, "bn 4 h w"], Float[Tensor, "bn 4"]]:
        """All four masks of every prompt."""
        lowres, quality = decode_prompts(self.sam.prompt_encoder, self.sam.mask_decoder, features, prompt, ALL_MASKS)
        return lowres.float(), quality.float()

    def losses(self, batch: PromptBatch) -> dict[str, Tensor]:
        """The parts of the loss, and for the log the mean IoUs of the single mask and of the three levels."""
        features, truth = self.features(batch), batch.targets.masks().flatten(0, 1)
        shift = batch.targets.shift.repeat_interleave(batch.targets.table.shape[1], dim=0)
        lowres, quality = self.decode(features, batch.first())
        parts = compare(at_lattice(lowres, shift, truth.shape[-1]), quality, truth[:, :4], batch.kind)
        if not batch.refine:
            return parts
        lowres, quality = self.decode(features, batch.second(lowres[:, :1].detach()))
        again = compare(at_lattice(lowres, shift, truth.shape[-1]), quality, truth[:, 4:], "refined")
        return {**parts, **again, **{name: (parts[name] + again[name]) / 2 for name in self.LOSS}}

    def pictures(self, batch: PromptBatch) -> list[Image.Image]:
        """Of the first scenes the first prompt, the mask that it asks for and the single mask that it gets."""
        lowres, _ = self.decode(self.features(batch), batch.first())
        pictures, every = [], batch.targets.table.shape[1]
        for scene, truth in enumerate(batch.targets.masks()[:SHOWN, 0, 0]):
            canvas, resized, shift = batch.images[scene], batch.resized[scene], batch.targets.shift[scene]
            image, right, guess = on_picture(canvas, resized, truth, shift, lowres[scene * every, 0])
            scale = SIDE / max(image.shape[1:])
            panel = compared(image, right, guess)
            if batch.kind == "box":
                panel = boxed(panel, batch.boxes[scene, 0].cpu() * scale)
            else:
                panel = pointed(panel, batch.first_points[scene, 0].cpu() * scale)
            pictures.append(captioned(f"{batch.kind}   IoU {iou(guess, right):.2f}", panel))
        return pictures

    def export(self, folder: Path) -> None:
        """Write the weights in the layout that `Sam` loads."""
        save_sam(self.sam, self.config, folder)


if __name__ == "__main__":
    run(SegmenterStage, PromptedScenes)
