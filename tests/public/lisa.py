"""LISA, READ and SESAME as their merge scripts save them, and the CLIP tower that they leave out."""

# First: it makes torchvision, which transformers imports, usable beside a CPU-only torch.
import rea2seg  # noqa: F401

# isort: split
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from segment_anything import sam_model_registry
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, LlamaConfig, LlamaForCausalLM

from tests.public.llama import PIECES, write_tokenizer
from tests.public.sam import narrow_sam
from tests.public.shards import write_shards

State = dict[str, Tensor]
Sizes = tuple[int, int, int, int, int, int, bool]
TRUE: dict[str, Sizes] = {
    "LISA-7B-v1": (32_004, 4096, 11_008, 32, 32, 224, False),
    "LISA-13B-llama2-v1": (32_003, 5120, 13_824, 40, 40, 224, False),
    "READ-7B": (32_003, 4096, 11_008, 32, 32, 336, True),
    "READ-13B": (32_003, 5120, 13_824, 40, 40, 336, True),
}
"""Vocabulary, width, inner width, layers, heads, pixels of CLIP, and whether the projector has two layers."""


@dataclass(frozen=True)
class Family:
    """What differs between the public checkpoints of this layout; `width` and `heads` are ours."""

    architecture: str
    added: tuple[str, ...]
    tower: str
    side: int
    layers: int = 32
    heads: int = 4
    width: int = 64
    two_linears: bool = True
    safetensors: bool = False
    frequencies: bool = False


LISA_7B = Family(
    "LISAForCausalLM",
    ("<im_patch>", "<im_start>", "<im_end>", "[SEG]"),
    "openai/clip-vit-large-patch14",
    224,
    two_linears=False,
    frequencies=True,
)
LISA_13B = replace(LISA_7B, added=("[SEG]", "<im_start>", "<im_end>"), layers=40, heads=5, width=80)
READ_7B = Family("READForCausalLM", LISA_13B.added, "openai/clip-vit-large-patch14-336", 336, safetensors=True)
SESAME_7B = replace(READ_7B, architecture="SESAMEForCausalLM", safetensors=False, frequencies=True)


def text_config(family: Family) -> LlamaConfig:
    """The language model; its weights are large enough that a wrong layer, row or position shows."""
    return LlamaConfig(
        vocab_size=PIECES + len(family.added),
        hidden_size=family.width,
        intermediate_size=2 * family.width,
        num_hidden_layers=family.layers,
        num_attention_heads=family.heads,
        rms_norm_eps=1e-6,
        max_position_embeddings=2048,
        initializer_range=0.2,
    )


def language_state(family: Family) -> State:
    """The language model's tensors, whose names of today are those of 4.31."""
    torch.manual_seed(1)
    state = LlamaForCausalLM(text_config(family)).state_dict()
    generator = torch.Generator().manual_seed(2)
    for name, weight in state.items():
        if "norm" in name:
            weight.copy_(1 + 0.3 * torch.randn(weight.shape, generator=generator))
    return state


def projector_state(family: Family) -> State:
    """The projector from 32 channels of the narrow tower."""
    torch.manual_seed(3)
    width = family.width
    if not family.two_linears:
        layer = torch.nn.Linear(32, width)
        return {"model.mm_projector.weight": 4 * layer.weight.data, "model.mm_projector.bias": layer.bias.data}
    first, second = torch.nn.Linear(32, width), torch.nn.Linear(width, width)
    return {
        "model.mm_projector.0.weight": 4 * first.weight.data,
        "model.mm_projector.0.bias": first.bias.data,
        "model.mm_projector.2.weight": 4 * second.weight.data,
        "model.mm_projector.2.bias": second.bias.data,
    }


def connector_state(family: Family) -> State:
    """Linear, ReLU, Linear, as text_hidden_fcs."""
    torch.manual_seed(4)
    first, second = torch.nn.Linear(family.width, family.width), torch.nn.Linear(family.width, 256)
    prefix = "model.text_hidden_fcs.0"
    return {
        f"{prefix}.0.weight": first.weight.data,
        f"{prefix}.0.bias": first.bias.data,
        f"{prefix}.2.weight": second.weight.data,
        f"{prefix}.2.bias": second.bias.data,
    }


def write_lisa(folder: Path, family: Family) -> State:
    """A checkpoint of that family; returns what is in its shards."""
    halves = language_state(family) | projector_state(family)
    state = {name: weight.bfloat16() for name, weight in halves.items()}
    if family.frequencies:
        state |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(1) for i in range(family.layers)}
    # These two are built after the cast to half precision, and stay in full.
    state |= connector_state(family)
    state |= {f"model.visual_model.{name}": weight for name, weight in narrow_sam(seed=5).state_dict().items()}
    write_tokenizer(folder, list(family.added))
    write_shards(folder, state, ending="safetensors" if family.safetensors else "bin")
    (folder / "config.json").write_text(json.dumps(lisa_config(family)))
    return state


def lisa_config(family: Family) -> dict[str, object]:
    """config.json: flat, and of a model type that means something else today."""
    text = text_config(family)
    return {
        "architectures": [family.architecture],
        "model_type": "llava",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "vocab_size": text.vocab_size,
        "rms_norm_eps": text.rms_norm_eps,
        "max_position_embeddings": text.max_position_embeddings,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "mm_hidden_size": 1024,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": True,
        "mm_use_im_patch_token": False,
        "mm_vision_tower": family.tower,
        "vision_tower": family.tower,
        "image_aspect_ratio": "square",
        "out_dim": 256,
        "train_mask_decoder": True,
        "tie_word_embeddings": False,
        "use_cache": False,
        "transformers_version": "4.31.0",
    }


def write_clip(folder: Path, side: int) -> State:
    """openai/clip-vit-large-patch14 or -336 in small: both halves, 24 layers, patches of 14 pixels."""
    torch.manual_seed(6)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": side,
        "patch_size": 14,
        "initializer_factor": 8.0,
    }
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    state = CLIPModel(config).state_dict()
    # Files of 2022 hold these counters, too.
    state["vision_model.embeddings.position_ids"] = torch.arange((side // 14) ** 2 + 1)[None]
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(
        json.dumps({"model_type": "clip", "text_config": text, "vision_config": vision})
    )
    return state


def true_tensors(sizes: Sizes) -> tuple[State, State, LlamaConfig, CLIPVisionConfig]:
    """Names and shapes of a whole public checkpoint and of its CLIP, from upstream classes on the meta device."""
    vocabulary, hidden, inner, layers, heads, side, two_linears = sizes
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=side,
        patch_size=14,
    )
    with torch.device("meta"):
        language = LlamaForCausalLM(text).state_dict()
        segmenter = sam_model_registry["vit_h"]().state_dict()
        clip = CLIPModel(CLIPModel.config_class(vision_config=vision.to_dict())).state_dict()
        projector = [torch.nn.Linear(1024, hidden), *([torch.nn.Linear(hidden, hidden)] if two_linears else [])]
        fcs = torch.nn.Sequential(torch.nn.Linear(hidden, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 256))
    stored = dict(language) | {f"model.visual_model.{name}": weight for name, weight in segmenter.items()}
    places = ["0.", "2."] if two_linears else [""]
    for place, layer in zip(places, projector, strict=True):
        stored |= {f"model.mm_projector.{place}{name}": weight for name, weight in layer.state_dict().items()}
    stored |= {f"model.text_hidden_fcs.0.{name}": weight for name, weight in fcs.state_dict().items()}
    return stored, clip, text, vision
