"""SAM's checkpoints: upstream's files, the SAM inside a LISA checkpoint, and our own folder with a config."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling import Sam as SamModel
from torch import Tensor, nn

from rea2seg.checkpoints.lisa import SEGMENTER
from rea2seg.checkpoints.stored import only_file, stored_tensors, under
from rea2seg.checkpoints.strict import fill, read_json
from rea2seg.errors import CheckpointError

CONFIG, WEIGHTS = "config.json", "model.safetensors"


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
        values = read_json(path)
        if wrong := values.keys() ^ {field.name for field in fields(cls)}:
            names = ", ".join(sorted(wrong))
            raise CheckpointError(f"{path} has missing or unknown keys ({names}): save the model again")
        blocks = values.pop("encoder_global_blocks")
        numbers = [*values.values(), *(blocks if isinstance(blocks, list) else [blocks])]
        if not all(type(number) is int for number in numbers):
            raise CheckpointError(f"{path} holds other things than whole numbers: save the model again")
        return cls(**values, encoder_global_blocks=tuple(blocks))

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], source: Path) -> SamConfig:
        """The architecture of a checkpoint without a config: of ViT-B, L, H or another encoder, as its shapes tell.

        Prompt encoder and decoder are those of all public ones.
        """
        try:
            patches, place = tensors["image_encoder.patch_embed.proj.weight"], tensors["image_encoder.pos_embed"]
            relative = [tensors[f"image_encoder.blocks.{i}.attn.rel_pos_h"] for i in range(_blocks(tensors))]
            grid, width = place.shape[1], place.shape[-1]
            # A block's offsets reach across its window, those of a global block across the whole image.
            reach = [(len(offsets) + 1) // 2 for offsets in relative]
            return cls(
                image_size=grid * patches.shape[-1],
                patch_size=patches.shape[-1],
                encoder_width=width,
                encoder_depth=len(relative),
                encoder_heads=width // relative[0].shape[1],
                encoder_window=min(reach),
                encoder_global_blocks=tuple(block for block, cells in enumerate(reach) if cells == grid),
            )
        except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
            told = f"{source} is not a SAM with the names and shapes of segment-anything"
            raise CheckpointError(f"{told}: use sam_vit_h_4b8939.pth or the like") from error


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


@dataclass(frozen=True, eq=False)
class SamPlan:
    """A SAM on disk, not loaded: its architecture, and its tensors under upstream's names."""

    config: SamConfig
    tensors: Mapping[str, Tensor]
    source: Path

    def load(self) -> SamModel:
        """The model on the CPU, in eval mode. Raises `CheckpointError` where a tensor does not fit."""
        model = build_sam(self.config)
        fill(model, self.source, self.tensors)
        return model


def sam_plan(place: Path) -> SamPlan:
    """A SAM from disk: a folder of `save_sam`; a file as segment-anything publishes; the SAM in a LISA checkpoint.

    Raises `CheckpointError` where there is none.
    """
    file = place / CONFIG
    stored = stored_tensors(place if file.is_file() else only_file(place))
    tensors = under(SEGMENTER, stored) or stored
    own = file.is_file() and "encoder_width" in read_json(file)
    return SamPlan(SamConfig.read(file) if own else SamConfig.of(tensors, place), tensors, place)


def load_sam(place: Path) -> SamModel:
    """The model of `sam_plan`."""
    return sam_plan(place).load()


def load_decoder(place: Path, sam: SamPlan) -> MaskDecoder:
    """The mask decoder of `decoder_tensors`, in eval mode."""
    decoder = build_decoder(sam.config).eval()
    fill(decoder, place, decoder_tensors(place, sam))
    return decoder


def decoder_tensors(place: Path, sam: SamPlan) -> dict[str, Tensor]:
    """Those of a mask decoder for the embeddings of `sam`: from a file of its own, a SAM, or a LISA checkpoint.

    Raises `CheckpointError` where there is none, or beside another encoder, whose embeddings it was trained on.
    """
    stored = stored_tensors(place)
    tensors = under(SEGMENTER, stored) or stored
    decoder = under("mask_decoder.", tensors) or tensors
    if "iou_token.weight" not in decoder:
        told = f"{place} holds no decoder of a SAM"
        raise CheckpointError(f"{told}: name a checkpoint of LISA, or leave token_decoder out of the config")
    for name in (name for name in tensors if name.startswith("image_encoder.neck.")):
        if not _alike(tensors[name], sam.tensors.get(name)):
            told = f"{place} was trained with another SAM than {sam.source} ({name} differs)"
            raise CheckpointError(f"{told}: name the SAM it began with, or itself, as the segmenter's weights")
    return decoder


def _alike(one: Tensor, other: Tensor | None) -> bool:
    """Whether two tensors are the same but for the rounding to bfloat16 that one of them went through."""
    if other is None or one.shape != other.shape:
        return False
    return torch.allclose(one.float(), other.float(), rtol=1e-2, atol=1e-3)  # ours


def save_sam(model: SamModel, config: SamConfig, folder: Path) -> None:
    """Write `config.json` and `model.safetensors`, with upstream's names of the tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(asdict(config), indent=2) + "\n")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS)


def _blocks(tensors: Mapping[str, Tensor]) -> int:
    pattern = r"image_encoder\.blocks\.(\d+)\."
    return len({found[1] for name in tensors if (found := re.match(pattern, name))})
