"""SAM 2 on the image modules of the `sam2` package, for 2.0 and 2.1 in all four sizes.

The functions can be differentiated and serve training; only the methods of `Sam2` switch gradients off. What the
package adds for video is neither built nor loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from accelerate import init_empty_weights
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from rea2seg.checkpoints.sam2 import DECODER_HEADS, DOWNSAMPLING, IMAGE_HALF, Sam2Config, sam2_tensors
from rea2seg.checkpoints.strict import check_fit, fill
from rea2seg.devices import chosen_device
from rea2seg.errors import CheckpointError, ConfigError, reason, require_positive
from rea2seg.findings import Finding, Footprint, footprint, stored_as
from rea2seg.geometry import Canvas
from rea2seg.structures import Embedding, Images, Masks, Prompt

try:
    from sam2.modeling.backbones.hieradet import Hiera
    from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine
    from sam2.modeling.sam.mask_decoder import MaskDecoder
    from sam2.modeling.sam.prompt_encoder import PromptEncoder
    from sam2.modeling.sam.transformer import TwoWayTransformer
    from sam2.modeling.sam2_base import SAM2Base
except ImportError as error:
    raise ConfigError(
        f"SAM 2 needs its package ({reason(error)}): SAM2_BUILD_CUDA=0 pip install --no-build-isolation sam2==1.1.0"
    ) from error

MEAN, STD = (torch.tensor(numbers)[:, None, None] for numbers in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
HEADS = ("sam_prompt_encoder.", "sam_mask_decoder.")
LIMIT = 32.0
"""Upstream's predictor hands low-resolution logits back within this, so mask prompts never exceed it."""


class Sam2Heads(nn.Module):
    """The prompt encoder and the mask decoder, under upstream's names, with fresh weights and in eval mode."""

    def __init__(self, config: Sam2Config, dynamic_multimask: bool = True) -> None:
        super().__init__()
        side = config.image_size
        self.sam_prompt_encoder = PromptEncoder(
            embed_dim=config.channels,
            image_embedding_size=(side // 16, side // 16),
            input_image_size=(side, side),
            mask_in_chans=config.mask_channels,
        )
        self.sam_mask_decoder = MaskDecoder(
            transformer_dim=config.channels,
            transformer=TwoWayTransformer(
                depth=2,
                embedding_dim=config.channels,
                num_heads=DECODER_HEADS,
                mlp_dim=config.decoder_mlp,
                attention_downsample_rate=DOWNSAMPLING,
            ),
            iou_head_hidden_dim=config.iou_width,
            use_high_res_features=True,
            iou_prediction_use_sigmoid=True,
            dynamic_multimask_via_stability=dynamic_multimask,
            dynamic_multimask_stability_delta=0.05,
            dynamic_multimask_stability_thresh=0.98,
            pred_obj_scores=True,
            pred_obj_scores_mlp=True,
            use_multimask_token_for_obj_ptr=True,
        )
        self.eval()


class Sam2Model(Sam2Heads):
    """What SAM 2 needs for single images, under upstream's names, with fresh weights and in eval mode."""

    def __init__(self, config: Sam2Config, dynamic_multimask: bool = True) -> None:
        super().__init__(config, dynamic_multimask)
        trunk = Hiera(
            embed_dim=config.width,
            num_heads=config.heads,
            stages=config.stages,
            window_pos_embed_bkg_spatial_size=(config.background, config.background),
            window_spec=config.windows,
            global_att_blocks=config.global_blocks,
        )
        neck = FpnNeck(
            # Its cache would be filled on the first GPU, whichever the model is for.
            position_encoding=PositionEmbeddingSine(config.channels, warmup_cache=False),
            d_model=config.channels,
            backbone_channel_list=trunk.channel_list,
            fpn_top_down_levels=[2, 3],
            fpn_interp_model="nearest",
        )
        self.config = config
        self.image_encoder = ImageEncoder(trunk, neck, scalp=1)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, config.channels))
        self.eval()


Model: TypeAlias = Sam2Model | SAM2Base
Heads: TypeAlias = Sam2Heads | SAM2Base


def load_sam2(place: Path, dynamic_multimask: bool = True) -> Sam2Model:
    """A SAM 2 from disk: see `sam2_tensors`. Raises `CheckpointError` where it does not fit."""
    tensors = sam2_tensors(place)
    model = Sam2Model(Sam2Config.of(tensors, place), dynamic_multimask)
    fill(model, place, IMAGE_HALF.native(tensors))
    return model


def load_heads(place: Path, config: Sam2Config, dynamic_multimask: bool = True) -> Sam2Heads:
    """The prompt encoder and the mask decoder alone, of a SAM 2 on disk.

    Raises `CheckpointError` where that has another architecture.
    """
    heads = Sam2Heads(config, dynamic_multimask)
    fill(heads, place, head_tensors(place, config))
    return heads


def head_tensors(place: Path, config: Sam2Config) -> dict[str, Tensor]:
    """Those of prompt encoder and mask decoder, from a SAM 2 on disk, whose architecture must be this one.

    Raises `CheckpointError`.
    """
    tensors = sam2_tensors(place)
    if Sam2Config.of(tensors, place) != config:
        raise CheckpointError(f"{place} holds a SAM 2 of another size than the segmenter's: name weights of one size")
    return {name: tensor for name, tensor in tensors.items() if name.startswith(HEADS)}


def to_canvas(image: UInt8[Tensor, "3 h w"], side: int) -> tuple[Float[Tensor, "3 side side"], Canvas]:
    """The encoder's input: stretched to a square as upstream's predictor does it (antialiased, on floats), normalised.

    LENS stretched in other ways: ReasonSeg with OpenCV's bilinear, without antialiasing, RefCOCO with Pillow's.
    """
    pixels = image[None].float() / 255
    pixels = functional.interpolate(pixels, (side, side), mode="bilinear", align_corners=False, antialias=True)
    return (pixels[0] - MEAN) / STD, Canvas((image.shape[1], image.shape[2]), side, None)


def encode_pixels(model: Model, pixels: Float[Tensor, "n 3 side side"]) -> list[Float[Tensor, "n c _ _"]]:
    """Feature levels of n images, at 1/4, 1/8 and 1/16 of the side; the last says that no frames went before."""
    finest, finer, coarse = model.image_encoder(pixels)["backbone_fpn"]
    return [finest, finer, coarse + model.no_mem_embed.reshape(1, -1, 1, 1)]


def embed_prompt(
    encoder: PromptEncoder, prompt: Prompt
) -> tuple[Float[Tensor, "n t c"], Float[Tensor, "#n c rows cols"]]:
    """Sparse and dense embeddings of n prompts given in canvas pixels: box, points, padding, then raw tokens.

    A raw token without points and box stands alone, without upstream's padding, as in LENS. Without a mask prompt the
    dense part is the same for all and may be given once.
    """
    mask = None if prompt.mask is None else prompt.mask.clamp(-LIMIT, LIMIT)
    sparse, dense = encoder(points=_as_points(prompt), boxes=None, masks=mask)
    if prompt.token is not None:
        sparse = torch.cat([sparse.expand(len(prompt), -1, -1), prompt.token], dim=1)
    return sparse, dense


def decode_prompts(
    heads: Heads,
    features: Float[Tensor, "#n c rows cols"],
    fine: Sequence[Float[Tensor, "#n c _ _"]],
    prompt: Prompt,
    multimask: bool,
) -> tuple[Float[Tensor, "n k h w"], Float[Tensor, "n k"]]:
    """Low-resolution logits and IoU estimates of n prompts in canvas pixels: 3 each if `multimask`, else 1.

    `features` and `fine` are of one image for all prompts, or of one image for each.
    """
    encoder, decoder = heads.sam_prompt_encoder, heads.sam_mask_decoder
    sparse, dense = embed_prompt(encoder, prompt)
    lowres, quality, _, _ = decoder(
        image_embeddings=features,
        image_pe=encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
        repeat_image=len(features) == 1,
        high_res_features=[decoder.conv_s0(fine[0]), decoder.conv_s1(fine[1])],
    )
    return lowres, quality


class Sam2:
    """SAM 2 in the segmenter's seat.

    weights: what `sam2_tensors` takes. token_heads: another such, whose prompt encoder and mask decoder, like those
    trained in a LENS checkpoint, take the prompts that carry a raw token; the stock ones by default. dynamic_multimask:
    a single mask that is not stable (IoU of its thresholds at logits ±0.05 below 0.98) gives way to the best of three;
    on by default because upstream's `build_sam2` has it on, and with it the evaluation of LENS. batch: images encoded
    together; 4 is ours.

    An embedding holds the fine levels as the image encoder gives them, 84 MB, since each mask decoder has its own view
    of them. Raises `CheckpointError` and `ConfigError`.
    """

    def __init__(
        self,
        weights: str | Path,
        token_heads: str | Path | None = None,
        dynamic_multimask: bool = True,
        device: str = "auto",
        batch: int = 4,
    ) -> None:
        place = chosen_device(device)
        model, heads = load_sam2(Path(weights), dynamic_multimask), None
        if token_heads is not None:
            heads = load_heads(Path(token_heads), model.config, dynamic_multimask).to(place)
        self._seat(model.to(place), heads, batch)

    @classmethod
    def examine(cls, weights: str, token_heads: str | None = None, **_: Any) -> Iterator[Finding | Footprint]:
        """What a pipeline with these arguments will load, found without loading it (`rea2seg.findings`).

        Raises `CheckpointError` as the constructor does.
        """
        tensors = sam2_tensors(Path(weights))
        config = Sam2Config.of(tensors, Path(weights))
        # Not on the meta device: upstream's trunk reads numbers off a tensor while it is built.
        with init_empty_weights():
            model = Sam2Model(config)
        check_fit(model.state_dict(), Path(weights), IMAGE_HALF.native(tensors))
        yield Finding("tensors", f"SAM 2 {stored_as(tensors)}: all fit, those of video among them unused")
        yield Finding("config", f"{sum(config.stages)} blocks of width {config.width} and up, {config.image_size} px")
        if token_heads is not None:
            with init_empty_weights():
                heads = Sam2Heads(config)
            check_fit(heads.state_dict(), Path(token_heads), head_tensors(Path(token_heads), config))
            yield Finding("heads", "the prompt encoder and decoder for raw tokens fit")
        # Ours: some twenty values for every cell and channel of the first stage, which is the largest.
        yield footprint(model, 20 * 4 * config.width * (config.image_size // 4) ** 2)

    @classmethod
    def wrap(cls, model: Model, token_heads: Heads | None = None, batch: int = 4) -> Sam2:
        """A segmenter around live modules in eval mode, ours or upstream's, on their device and with their settings."""
        sam = cls.__new__(cls)
        sam._seat(model, token_heads, batch)
        return sam

    def _seat(self, model: Model, token_heads: Heads | None, batch: int) -> None:
        require_positive(batch=batch)
        self.model, self.batch = model, batch
        self.token_heads = model if token_heads is None else token_heads

    # no_grad and not inference_mode: training decodes frozen embeddings with tokens that want gradients.
    @torch.no_grad()
    def encode(self, images: Images) -> list[Embedding]:
        """One embedding an image, whatever their sizes."""
        side, device = self.model.sam_prompt_encoder.input_image_size[0], self.model.no_mem_embed.device
        embeddings: list[Embedding] = []
        for start in range(0, len(images), self.batch):
            placed = [to_canvas(image, side) for image in images[start : start + self.batch]]
            levels = encode_pixels(self.model, torch.stack([pixels for pixels, _ in placed]).to(device))
            for (_, canvas), *fine, features in zip(placed, *levels, strict=True):
                embeddings.append(Embedding(features, canvas, tuple(fine)))
        return embeddings

    @torch.no_grad()
    def decode(self, embedding: Embedding, prompt: Prompt, multimask: bool) -> Masks:
        """The masks of n prompts, in image pixels, on one image: 3 each if `multimask`, else 1."""
        heads = self.model if prompt.token is None else self.token_heads
        prompt = prompt.on(embedding.canvas).beside(embedding.features)
        features, *fine = (level[None] for level in (embedding.features, *embedding.fine))
        lowres, quality = decode_prompts(heads, features, fine, prompt, multimask)
        return Masks(lowres, quality, embedding.canvas)


def _as_points(prompt: Prompt) -> tuple[Tensor, Tensor] | None:
    """Points and labels as SAM 2 takes them: a box is two points with labels 2 and 3 that come first."""
    parts: list[tuple[Any, Any]] = []
    if prompt.box is not None:
        corners = prompt.box.reshape(-1, 2, 2)
        parts.append((corners, torch.tensor([[2, 3]], device=corners.device).expand(len(corners), -1)))
    if prompt.points is not None:
        parts.append((prompt.points, prompt.labels))
    if not parts:
        return None
    points, labels = zip(*parts, strict=True)
    return torch.cat(points, dim=1), torch.cat(labels, dim=1)
