"""What Qwen2.5-VL sees of an image: all of it, stretched until whole image tokens (28 pixels) tile it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

from rea2seg.errors import InputError
from rea2seg.images import to_picture

MIN_PIXELS = 56 * 56
"""Qwen2.5-VL's own, with which LENS was trained."""
LONGEST = 200
"""The aspect ratio beyond which Qwen2.5-VL refuses an image."""


@dataclass(frozen=True, eq=False)
class Seen:
    """An image as the MLLM sees it: its tokens, row by row, and the number of patches along time, height and width."""

    features: Float[Tensor, "tokens hidden"]
    patches: Int[Tensor, "1 3"]
    grid: tuple[int, int]


def processor_for(mllm: Qwen2_5_VLForConditionalGeneration, max_pixels: int) -> Any:
    """transformers' image processor, on Pillow as in training, for the patches of this model."""
    vision = mllm.config.vision_config
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": MIN_PIXELS, "longest_edge": max_pixels},
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
    )


def resized(image: UInt8[Tensor, "3 h w"], side: int | None) -> Image.Image:
    """The picture with its longest side at `side` pixels, enlarged if need be (PIL bicubic, the other side floored).

    `None` leaves it as it is. Raises `InputError` for a picture so long and thin that Qwen2.5-VL refuses it.
    """
    picture = to_picture(image)
    short, long = sorted(picture.size)
    if long > LONGEST * short:
        told = f"{picture.width} x {picture.height} pixels, one side more than {LONGEST} times the other"
        raise InputError(f"the image has {told}: crop it")
    if side is None:
        return picture
    # Floored alone, a very long picture could pass the limit.
    width, height = (max(int(length * (side / long)), math.ceil(side / LONGEST)) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def see(mllm: Qwen2_5_VLForConditionalGeneration, processor: Any, picture: Image.Image) -> Seen:
    """The image tokens of a picture, which `processor` stretches to its grid."""
    inputs = processor(images=[picture], return_tensors="pt").to(mllm.device)
    patches = inputs["image_grid_thw"]
    (features,) = mllm.get_image_features(inputs["pixel_values"], patches).pooler_output
    _, rows, cols = (patches[0] // processor.merge_size).tolist()
    if len(features) != rows * cols:
        raise ValueError(f"{len(features)} image tokens for a grid of {rows} x {cols}")
    return Seen(features, patches, (rows, cols))
