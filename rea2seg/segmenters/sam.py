"""SAM on the models of the `segment-anything` package: encode an image once, decode any prompts.

The functions can be differentiated and serve training; only the methods of `Sam` switch gradients off. Departures from
upstream: prompts share one copy of the image embedding, and a picture so long and thin that its short side would vanish
keeps one pixel of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from segment_anything.modeling import MaskDecoder, PromptEncoder
from segment_anything.modeling import Sam as SamModel
from torch import Tensor

from rea2seg.checkpoints.sam import build_decoder, build_sam, decoder_tensors, load_decoder, sam_plan
from rea2seg.checkpoints.strict import check_fit
from rea2seg.devices import chosen_device
from rea2seg.errors import require_choice, require_positive
from rea2seg.findings import Finding, Footprint, footprint, stored_as
from rea2seg.geometry import Canvas
from rea2seg.images import to_picture
from rea2seg.structures import Embedding, Images, Masks, Prompt

TokenMasks = Literal["all", "single"]
SINGLE, MULTI = range(1), range(1, 4)
"""The mask tokens of SAM: 0 answers an unambiguous prompt, 1 to 3 the readings of an ambiguous one."""


def resized_shape(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Height and width after the longest side became `side` pixels, halves rounded up (SAM's ResizeLongestSide)."""
    scale = side / max(size)
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def resize_to(image: UInt8[Tensor, "3 h w"], shape: tuple[int, int]) -> UInt8[Tensor, "3 _ _"]:
    """The image at (height, width), resized as SAM was trained: Pillow's antialiased bilinear on 8-bit values."""
    resized = np.array(to_picture(image).resize(shape[::-1], Image.Resampling.BILINEAR))
    return torch.from_numpy(resized).permute(2, 0, 1)


def to_canvas(model: SamModel, image: UInt8[Tensor, "3 h w"]) -> tuple[Float[Tensor, "3 side side"], Canvas]:
    """The encoder's input: resized, normalised, then padded with zeros to the right and below."""
    size, side = (image.shape[1], image.shape[2]), model.image_encoder.img_size
    shape = resized_shape(size, side)
    return model.preprocess(resize_to(image, shape).to(model.device)), Canvas(size, side, shape)


def embed_prompt(
    encoder: PromptEncoder, prompt: Prompt
) -> tuple[Float[Tensor, "n t c"], Float[Tensor, "#n c rows cols"]]:
    """Sparse and dense embeddings of n prompts given in canvas pixels; raw tokens follow points and box (as in LISA).

    Without a mask prompt the dense part is the same for all and given once.
    """
    points = None if prompt.points is None else (prompt.points, prompt.labels)
    sparse, dense = encoder(points=points, boxes=prompt.box, masks=prompt.mask)
    if prompt.token is not None:
        sparse = torch.cat([sparse.expand(len(prompt), -1, -1), prompt.token], dim=1)
    return sparse, dense[:1] if prompt.mask is None else dense


def decode_prompts(
    encoder: PromptEncoder,
    decoder: MaskDecoder,
    features: Float[Tensor, "#n c rows cols"],
    prompt: Prompt,
    wanted: range,
) -> tuple[Float[Tensor, "n k h w"], Float[Tensor, "n k"]]:
    """Low-resolution logits and IoU estimates of n prompts in canvas pixels, for the wanted mask tokens.

    `features` is one image for all prompts, or one image for each. Follows `MaskDecoder.predict_masks`, but leaves the
    repetition over prompts to broadcasting: the first layer's keys and values are then computed once.
    """
    sparse, dense = embed_prompt(encoder, prompt)
    outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([outputs.expand(len(sparse), -1, -1), sparse], dim=1)
    image = features + dense
    hidden, image_out = decoder.transformer(image, encoder.get_dense_pe(), tokens)
    upscaled = decoder.output_upscaling(image_out.transpose(1, 2).unflatten(2, image.shape[2:]))
    kernels = torch.stack([decoder.output_hypernetworks_mlps[i](hidden[:, 1 + i]) for i in wanted], dim=1)
    lowres = (kernels @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
    quality = decoder.iou_prediction_head(hidden[:, 0])
    return lowres, quality[:, wanted.start : wanted.stop]


class Sam:
    """SAM in the segmenter's seat.

    weights: what `sam_plan` takes. token_decoder: a second mask decoder for prompts that carry a raw token, such as the
    one fine-tuned inside a LISA checkpoint (see `load_decoder`); the stock decoder by default. token_masks: which masks
    of such prompts it decodes, `all`, or `single` and leaves the three of a multi-mask prompt, which LISA's loss never
    saw, to the stock decoder. batch: images encoded together; 4 is ours, as ViT-H holds 1 GB of attention for each at a
    time.
    """

    def __init__(
        self,
        weights: str | Path,
        token_decoder: str | Path | None = None,
        token_masks: TokenMasks = "all",
        device: str = "auto",
        batch: int = 4,
    ) -> None:
        place, plan = chosen_device(device), sam_plan(Path(weights))
        decoder = None if token_decoder is None else load_decoder(Path(token_decoder), plan).to(place)
        self._seat(plan.load().to(place), decoder, token_masks, batch)

    @classmethod
    def wrap(
        cls,
        model: SamModel,
        token_decoder: MaskDecoder | None = None,
        token_masks: TokenMasks = "all",
        batch: int = 4,
    ) -> Sam:
        """A segmenter around live modules, on the device they are on."""
        sam = cls.__new__(cls)
        sam._seat(model, token_decoder, token_masks, batch)
        return sam

    @classmethod
    def examine(cls, weights: str, token_decoder: str | None = None, **_: Any) -> Iterator[Finding | Footprint]:
        """What a pipeline with these arguments will load, found without loading it (`rea2seg.findings`)."""
        plan = sam_plan(Path(weights))
        config = plan.config
        with torch.device("meta"):
            model, decoder = build_sam(config), build_decoder(config)
        check_fit(model.state_dict(), plan.source, plan.tensors)
        yield Finding("tensors", f"SAM {stored_as(plan.tensors)}: all fit")
        told = f"{config.encoder_depth} blocks of width {config.encoder_width}, {config.image_size} px"
        tokens = (config.image_size // config.patch_size) ** 2
        yield Finding("config", f"{told}, {tokens} tokens")
        if token_decoder is not None:
            place = Path(token_decoder)
            check_fit(decoder.state_dict(), place, decoder_tensors(place, plan))
            yield Finding("decoder", "the decoder for raw tokens fits, and was trained with this encoder")
        # Ours: scores, offsets and softmax of one global block, for one image.
        yield footprint(model, 3 * 4 * config.encoder_heads * tokens**2)

    def _seat(self, model: SamModel, token_decoder: MaskDecoder | None, token_masks: TokenMasks, batch: int) -> None:
        require_positive(batch=batch)
        require_choice(TokenMasks, token_masks=token_masks)
        self.model, self.token_masks, self.batch = model, token_masks, batch
        self.token_decoder = model.mask_decoder if token_decoder is None else token_decoder

    # no_grad and not inference_mode: training decodes frozen embeddings with tokens that want gradients.
    @torch.no_grad()
    def encode(self, images: Images) -> list[Embedding]:
        """One embedding an image, whatever their sizes."""
        embeddings: list[Embedding] = []
        for start in range(0, len(images), self.batch):
            placed = [to_canvas(self.model, image) for image in images[start : start + self.batch]]
            features = self.model.image_encoder(torch.stack([pixels for pixels, _ in placed]))
            embeddings += [Embedding(one, canvas) for one, (_, canvas) in zip(features, placed, strict=True)]
        return embeddings

    @torch.no_grad()
    def decode(self, embedding: Embedding, prompt: Prompt, multimask: bool) -> Masks:
        """The masks of n prompts, in image pixels, on one image: 3 each if `multimask`, else 1."""
        by_token = prompt.token is not None and not (multimask and self.token_masks == "single")
        decoder = self.token_decoder if by_token else self.model.mask_decoder
        prompt = prompt.on(embedding.canvas).beside(embedding.features)
        features = embedding.features[None]
        wanted = MULTI if multimask else SINGLE
        lowres, quality = decode_prompts(self.model.prompt_encoder, decoder, features, prompt, wanted)
        return Masks(lowres, quality, embedding.canvas)
