"""SAM 2 as its authors publish it, in small: `sam2_hiera_large.pt` and the like, with their tensors for video."""

# First: it makes torchvision usable beside a CPU-only torch.
import rea2seg  # noqa: F401

# isort: split
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from hydra import compose
from hydra.utils import instantiate
from safetensors.torch import save_file
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam2_base import SAM2Base

YAML = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}
"""Upstream's letters for the sizes."""

DYNAMIC = "++model.sam_mask_decoder_extra_args.dynamic_multimask_via_stability"
"""What upstream's `build_sam2` sets in every config."""


def public_sam2(size: str, version: str) -> SAM2Base:
    """Upstream's model in its true size, without memory for its weights."""
    with shapes_only():
        return _built(size, version, [])


def narrow_sam2(
    size: str, version: str, width: int = 8, channels: int = 64, side: int = 1024, dynamic: bool = True
) -> SAM2Base:
    """Upstream's model of the public depth with random weights, in eval mode. width: of the first stage."""
    changes = [*_narrower(width, channels, memory=16), f"model.image_size={side}", f"{DYNAMIC}={dynamic}"]
    model = _built(size, version, changes).eval()
    _randomise(model)
    return model


def write_sam2(path: Path, size: str = "large", version: str = "2.0", width: int = 8, channels: int = 64) -> SAM2Base:
    """Writes a narrow model as upstream's pickle, or as safetensors if the path says so, and returns it."""
    model = narrow_sam2(size, version, width, channels)
    if path.suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save({"model": model.state_dict()}, path)
    return model


@contextmanager
def shapes_only() -> Iterator[None]:
    """Models built in the block lie on the meta device, all but a linspace, which the trunk reads numbers off."""
    linspace = torch.linspace

    def readable(*numbers: float) -> torch.Tensor:
        return linspace(*numbers, device="cpu")

    with torch.device("meta"), patch("torch.linspace", readable):
        yield


def _built(size: str, version: str, changes: list[str]) -> SAM2Base:
    name = {"2.0": "sam2", "2.1": "sam2.1"}[version]
    config = compose(config_name=f"configs/{name}/{name}_hiera_{YAML[size]}.yaml", overrides=changes)
    return instantiate(config.model, _recursive_=True)


def _narrower(width: int, channels: int, memory: int) -> list[str]:
    attention, encoder = "model.memory_attention", "++model.memory_encoder"
    wide = [
        "model.image_encoder.neck.d_model",
        "model.image_encoder.neck.position_encoding.num_pos_feats",
        f"{attention}.d_model",
        f"{attention}.layer.d_model",
        f"{attention}.layer.self_attention.embedding_dim",
        f"{attention}.layer.cross_attention.embedding_dim",
        f"{encoder}.in_dim",
        f"{encoder}.mask_downsampler.embed_dim",
        f"{encoder}.fuser.layer.dim",
    ]
    slim = [f"{encoder}.out_dim", f"{encoder}.position_encoding.num_pos_feats"]
    return [
        f"model.image_encoder.trunk.embed_dim={width}",
        f"model.image_encoder.neck.backbone_channel_list={[width * 8, width * 4, width * 2, width]}",
        f"{attention}.layer.cross_attention.kv_in_dim={memory}",
        *(f"{name}={channels}" for name in wide),
        *(f"{name}={memory}" for name in slim),
    ]


@torch.no_grad()
def _randomise(model: SAM2Base) -> None:
    """Nothing stays 0 or 1, and outputs differ visibly between images and between prompts."""
    generator = torch.Generator().manual_seed(1)
    for name, value in sorted(model.state_dict().items()):
        noise = torch.randn(value.shape, generator=generator)
        if "gaussian" in name:
            value.copy_(noise)
        elif value.ndim < 2:
            value.copy_(0.1 * noise + float("norm" in name and name.endswith("weight")))
        elif "embed" in name and "proj" not in name:
            value.copy_((0.02 if "window" in name else 1) * noise)
        else:
            value.copy_(noise * value[0].numel() ** -0.5)
    _shape_masks(model.sam_mask_decoder)


def _shape_masks(decoder: MaskDecoder) -> None:
    """Makes masks smooth, of many sizes and stabilities, so that every filter has work to do."""
    for weight in (value for value in decoder.transformer.parameters() if value.ndim == 2):
        weight.mul_(2)
    coarse, fine = decoder.output_upscaling[0], decoder.output_upscaling[3]
    for layer in (coarse, fine):
        layer.weight.copy_(10 * layer.weight.mean((2, 3), keepdim=True).expand_as(layer.weight))
    for layer in (decoder.conv_s0, decoder.conv_s1):
        layer.weight.mul_(0.5)
    for layer in (layer for kernel in decoder.output_hypernetworks_mlps for layer in kernel.layers):
        layer.weight.mul_(3)
        layer.bias.zero_()
    # The first channel is constant and takes 30 off every logit: masks become spots.
    for weight in (fine.weight[:, 0], decoder.conv_s0.weight[0], decoder.conv_s0.bias[:1]):
        weight.zero_()
    fine.bias[0] = 10
    for kernel in decoder.output_hypernetworks_mlps:
        kernel.layers[-1].weight[0] = 0
        kernel.layers[-1].bias[0] = -3
    decoder.iou_prediction_head.layers[-1].weight.mul_(3)
