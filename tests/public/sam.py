"""SAM as segment-anything publishes it: a pickle of plain float32 tensors."""

# First: it makes torchvision usable beside a CPU-only torch.
import rea2seg  # noqa: F401

# isort: split
from pathlib import Path

import torch
from segment_anything.build_sam import _build_sam
from segment_anything.modeling import Sam as SamModel


def narrow_sam(seed: int = 0) -> SamModel:
    """ViT-H in small: 32 blocks, 1024 pixels, the public decoder; an encoder 32 wide with 2 heads."""
    torch.manual_seed(seed)
    model = _build_sam(32, 32, 2, [7, 15, 23, 31])
    with torch.no_grad():
        # Upstream starts these at zero, where a wrong one would not show.
        model.image_encoder.pos_embed.normal_()
        for name, weight in model.image_encoder.named_parameters():
            if "rel_pos" in name:
                weight.normal_(std=0.3)
        for weight in model.mask_decoder.parameters():
            if weight.ndim == 2:
                weight.mul_(2)
    return model.eval()


def write_sam(file: Path, seed: int = 0) -> dict[str, torch.Tensor]:
    """Such a file; returns what is in it."""
    state = narrow_sam(seed).state_dict()
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, file)
    return state
