"""SAM on the models of the `segment-anything` package: encode an image once, decode any prompts.

The functions can be differentiated and serve training; only the methods of `Sam` switch gradients off. Departures from
upstream: prompts share one copy of the image embedding, and a picture so long and thin that its short side would vanish
keeps one pixel of it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors.torch import save_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling import Sam as SamModel
from torch import Tensor, nn

from rea2seg.checkpoints.strict import fill
from rea2seg.devices import chosen_device
from rea2seg.errors import CheckpointError, reason, require_positive
from rea2seg.geometry import Canvas
from rea2seg.images import to_picture
from rea2seg.structures import Embedding, Images, Masks, Prompt

CONFIG, WEIGHTS = "config.json", "model.safetensors"
SINGLE, MULTI = range(1), range(1, 4)
"""The mask tokens of SAM: 0 answers an unambiguous prompt, 1 to 3 the readings of an ambiguous one."""


@dataclass(frozen=True)
class SamConfig:
    """The numbers of SAM's architecture; the defaults are upstream's ViT-B."""

    image_size: int = 1024
    patch_size: int = 16
    encoder_width: int = 768
    encoder_depth: int = 12
    encoder_heads: int = 12
    encoder_window: int = 14
    encoder_global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    channels: int = 256
    mask_channels: int = 16
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    iou_depth: int = 3
    iou_width: int = 256

    @classmethod
    def read(cls, path: Path) -> SamConfig:
        """The config in a JSON file, which must name every number and no others."""
        try:
            values = json.loads(path.read_text())
            values["encoder_global_blocks"] = tuple(values["encoder_global_blocks"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{path} is not the config of a SAM: {reason(error)}") from error
        if wrong := values.keys() ^ {field.name for field in fields(cls)}:
            raise CheckpointError(f"{path} has missing or unknown keys: {', '.join(sorted(wrong))}")
        return cls(**values)


VIT_B = SamConfig()
VIT_L = replace(VIT_B, encoder_width=1024, encoder_depth=24, encoder_heads=16, encoder_global_blocks=(5, 11, 17, 23))
VIT_H = replace(VIT_B, encoder_width=1280, encoder_depth=32, encoder_heads=16, encoder_global_blocks=(7, 15, 23, 31))


def build_sam(config: SamConfig) -> SamModel:
    """A SAM of that architecture with fresh weights, in eval mode."""
    grid = config.image_size // config.patch_size
    encoder = ImageEncoderViT(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.encoder_width,
        depth=config.encoder_depth,
        num_heads=config.encoder_heads,
        window_size=config.encoder_window,
        global_attn_indexes=config.encoder_global_blocks,
        out_chans=config.channels,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
    )
    prompts = PromptEncoder(
        embed_dim=config.channels,
        image_embedding_size=(grid, grid),
        input_image_size=(config.image_size, config.image_size),
        mask_in_chans=config.mask_channels,
    )
    return SamModel(encoder, prompts, build_decoder(config)).eval()


def build_decoder(config: SamConfig) -> MaskDecoder:
    """A mask decoder alone, with fresh weights."""
    transformer = TwoWayTransformer(
        depth=config.decoder_depth,
        embedding_dim=config.channels,
        num_heads=config.decoder_heads,
        mlp_dim=config.decoder_mlp,
    )
    return MaskDecoder(
        transformer_dim=config.channels,
        transformer=transformer,
        iou_head_depth=config.iou_depth,
        iou_head_hidden_dim=config.iou_width,
    )


def load_sam(folder: Path) -> SamModel:
    """The SAM stored in a folder by `save_sam`."""
    model = build_sam(SamConfig.read(folder / CONFIG))
    fill(model, folder / WEIGHTS)
    return model


def save_sam(model: SamModel, config: SamConfig, folder: Path) -> None:
    """Write `config.json` and `model.safetensors`, with upstream's names of the tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(asdict(config), indent=2) + "\n")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS)


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


def on_canvas(prompt: Prompt, canvas: Canvas) -> Prompt:
    """The prompt with its points and box in pixels of the canvas."""
    return replace(
        prompt,
        points=None if prompt.points is None else canvas.from_pixels(prompt.points),
        box=None if prompt.box is None else canvas.from_pixels(prompt.box.reshape(-1, 2, 2)).flatten(1),
    )


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

    weights: a folder with `config.json` and `model.safetensors`. token_decoder: a safetensors file with a second mask
    decoder for prompts that carry a raw token, such as the one fine-tuned inside a LISA checkpoint; the stock decoder
    by default. batch: images encoded together; 4 is ours, as ViT-H holds 1 GB of attention for each at a time.
    """

    def __init__(
        self, weights: str | Path, token_decoder: str | Path | None = None, device: str = "auto", batch: int = 4
    ) -> None:
        folder, decoder, place = Path(weights), None, chosen_device(device)
        if token_decoder is not None:
            decoder = build_decoder(SamConfig.read(folder / CONFIG)).eval()
            fill(decoder, Path(token_decoder))
            decoder.to(place)
        self._seat(load_sam(folder).to(place), decoder, batch)

    @classmethod
    def wrap(cls, model: SamModel, token_decoder: MaskDecoder | None = None, batch: int = 4) -> Sam:
        """A segmenter around live modules, on the device they are on."""
        sam = cls.__new__(cls)
        sam._seat(model, token_decoder, batch)
        return sam

    def _seat(self, model: SamModel, token_decoder: MaskDecoder | None, batch: int) -> None:
        require_positive(batch=batch)
        self.model, self.batch = model, batch
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
        decoder = self.model.mask_decoder if prompt.token is None else self.token_decoder
        prompt = _moved(on_canvas(prompt, embedding.canvas), embedding.features)
        features = embedding.features[None]
        wanted = MULTI if multimask else SINGLE
        lowres, quality = decode_prompts(self.model.prompt_encoder, decoder, features, prompt, wanted)
        return Masks(lowres, quality, embedding.canvas)


def _moved(prompt: Prompt, like: Tensor) -> Prompt:
    """The prompt on the device of `like`; tokens and masks also in its precision, points in their own."""
    moved: dict[str, Any] = {name: part.to(like.device) for name, part in vars(prompt).items() if part is not None}
    moved |= {name: moved[name].to(like.dtype) for name in ("token", "mask") if name in moved}
    return Prompt(**moved)
