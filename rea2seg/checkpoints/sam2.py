"""SAM 2's checkpoints, 2.0 and 2.1 in all four sizes: which tensors of them an image needs, and which architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from rea2seg.checkpoints.stored import KeyMap, only_file, stored_tensors, under
from rea2seg.checkpoints.strict import refuse_misfits
from rea2seg.errors import CheckpointError

DECODER_HEADS, DOWNSAMPLING = 8, 2
"""Of the attention in the mask decoder: they leave no trace in the shapes of its tensors."""

IN_LENS = "sam."
"""What the names of a SAM 2 begin with in a LENS checkpoint."""
IMAGE_HALF = KeyMap(
    unused=(
        r"memory_(attention|encoder)\..+",
        r"maskmem_tpos_enc|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial",
        r"mask_downsample\.(weight|bias)",
        r"obj_ptr_proj\.layers\.[0-2]\.(weight|bias)",
        r"obj_ptr_tpos_proj\.(weight|bias)",
    )
)
"""Leaves out what the files hold for video alone."""


@dataclass(frozen=True)
class Sam2Config:
    """The numbers of SAM 2's architecture; the defaults are upstream's base_plus.

    stages: blocks of each stage of the trunk. windows: side of the attention windows in each. global_blocks: those that
    attend everywhere. heads, width: of the first stage; both double with each. background: side of the coarse position
    embedding.
    """

    stages: tuple[int, ...] = (2, 3, 16, 3)
    windows: tuple[int, ...] = (8, 4, 14, 7)
    global_blocks: tuple[int, ...] = (12, 16, 20)
    heads: int = 2
    background: int = 14
    width: int = 112
    channels: int = 256
    mask_channels: int = 16
    decoder_mlp: int = 2048
    iou_width: int = 256
    image_size: int = 1024

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], source: Path) -> Sam2Config:
        """The architecture of a checkpoint, which holds no config: known by the trunk's depth, its widths by shapes.

        Raises `CheckpointError` where it is none of SAM 2's.
        """
        place = "image_encoder.trunk.blocks."
        depth = len({name.split(".")[3] for name in tensors if name.startswith(place)})
        if depth not in BY_DEPTH:
            known = ", ".join(map(str, BY_DEPTH))
            told = f"{source} is not a SAM 2 with the names of the sam2 package: {depth} blocks {place}*, not {known}"
            raise CheckpointError(f"{told}: use sam2_hiera_large.pt or the like")
        config = replace(
            BY_DEPTH[depth],
            width=_rows(tensors, "image_encoder.trunk.patch_embed.proj.weight", source),
            channels=_rows(tensors, "image_encoder.neck.convs.0.conv.weight", source),
            mask_channels=_rows(tensors, "sam_prompt_encoder.mask_downscaling.3.weight", source),
            decoder_mlp=_rows(tensors, "sam_mask_decoder.transformer.layers.0.mlp.layers.0.weight", source),
            iou_width=_rows(tensors, "sam_mask_decoder.iou_prediction_head.layers.0.weight", source),
        )
        if config.channels % (DECODER_HEADS * DOWNSAMPLING) or config.width % config.heads:
            raise CheckpointError(
                f"{source} has widths that attention heads do not divide ({config.width}, {config.channels}): "
                "use sam2_hiera_large.pt or the like"
            )
        return config


BASE_PLUS = Sam2Config()
TINY = replace(BASE_PLUS, stages=(1, 2, 7, 2), global_blocks=(5, 7, 9), heads=1, background=7, width=96)
SMALL = replace(TINY, stages=(1, 2, 11, 2), global_blocks=(7, 10, 13))
LARGE = Sam2Config((2, 6, 36, 4), (8, 4, 16, 8), (23, 33, 43), background=7, width=144)
BY_DEPTH = {sum(config.stages): config for config in (TINY, SMALL, BASE_PLUS, LARGE)}


def sam2_tensors(place: Path) -> dict[str, Tensor]:
    """The tensors of a SAM 2, under upstream's names: of a file as its authors publish, of a folder with one such file,
    or of the SAM 2 in a LENS checkpoint. Raises `CheckpointError` where they cannot be read."""
    tensors = stored_tensors(place if (place / "config.json").is_file() else only_file(place))
    return under(IN_LENS, tensors) or tensors


def _rows(tensors: Mapping[str, Tensor], name: str, source: Path) -> int:
    if name not in tensors or not tensors[name].ndim:
        refuse_misfits(source, [name], ())
    return len(tensors[name])
