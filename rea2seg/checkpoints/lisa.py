"""LISA, READ and SESAME as their repositories save them, and our own native layout, described without loading.

The three are one format: a LLaVA of 2023 (dvlab-research/LISA, rui-qian/READ, see-say-segment/sesame) whose LoRA was
merged, with SAM and the connector beside the language model and without the CLIP tower, which comes from its own
checkpoint. LISA's projector is one linear layer, that of the others (LLaVA 1.5) has two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
)

from rea2seg.checkpoints.stored import KeyMap, stored_tensors, under, without
from rea2seg.checkpoints.strict import UNFIT, Blueprint, load_tokenizer, native_blueprint, read_json
from rea2seg.errors import CheckpointError, reason

CONNECTOR, SEGMENTER = "model.text_hidden_fcs.", "model.visual_model."
LANGUAGE, PROJECTOR = "model.language_model.", "model.multi_modal_projector."
LLAVA = KeyMap(
    prefixes=(
        ("model.embed_tokens.", f"{LANGUAGE}embed_tokens."),
        ("model.layers.", f"{LANGUAGE}layers."),
        ("model.norm.", f"{LANGUAGE}norm."),
        ("model.mm_projector.0.", f"{PROJECTOR}linear_1."),
        ("model.mm_projector.2.", f"{PROJECTOR}linear_2."),
        ("model.mm_projector.", f"{PROJECTOR}linear_1."),
        ("vision_model.", "model.vision_tower."),
    ),
    # transformers 4.31 saved the rotary frequencies; LLaVA itself, unlike LISA's merge, its tower.
    unused=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"model\.vision_tower\..*"),
)
CLIP = KeyMap(
    # The text half, and a counter that older versions of transformers saved.
    unused=(r"text_model\..*|text_projection\..*|visual_projection\..*|logit_scale", r".*\.position_ids"),
)
TOWER_SIDES = {"clip-vit-large-patch14": 224, "clip-vit-large-patch14-336": 336}
"""The towers of openai that public checkpoints name, and the pixels they see. Nothing but this number tells them apart.
"""
NO_DELTA = 0.05
"""Ours: what the weights of a norm exceed on average. They multiply, and are of the order of 1 in every Llama; those of
the difference of two models are near 0."""

_SCALARS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_OPTIONS = (
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "bos_token_id",
    "rope_theta",
    "rope_scaling",
)
_OLDEST = ("lm.", "text_hidden_fcs.", "visual_model.")
"""How keys begin in LISA's version 0, whose language model was wrapped otherwise and came from another LLaVA."""


@dataclass(frozen=True, eq=False)
class LisaPlan:
    """The parts of a LISA-like generator, none of them loaded; `connector` has the names of our `Connector`."""

    mllm: Blueprint
    connector: Mapping[str, Tensor]
    source: Path
    tokenizer: PreTrainedTokenizerBase


def lisa_plan(folder: Path, vision_tower: Path | None = None) -> LisaPlan:
    """What a folder holds: our native layout, or a public checkpoint, which needs `vision_tower`, a folder of CLIP.

    Raises `CheckpointError` where files are missing or of another format; whether the tensors fit is for `check`.
    """
    values = read_json(folder / "config.json")
    if "text_config" in values:
        file = folder / "connector.safetensors"
        mllm = native_blueprint(LlavaForConditionalGeneration, folder)
        return LisaPlan(mllm, stored_tensors(file), file, load_tokenizer(folder))
    stored = stored_tensors(folder)
    _refuse_relatives(folder, values.get("architectures"), stored)
    mllm = _llava(folder, values, without((CONNECTOR, SEGMENTER), stored), _tower_of(folder, values, vision_tower))
    connector = {f"text_hidden_fcs.{name}": tensor for name, tensor in under(CONNECTOR, stored).items()}
    return LisaPlan(mllm, connector, folder, load_tokenizer(folder))


def _refuse_relatives(folder: Path, architectures: Any, stored: Mapping[str, Tensor]) -> None:
    """The checkpoints that look like LISA and are not, each with the way out."""
    if oldest := sorted(name for name in stored if name.startswith(_OLDEST)):
        raise CheckpointError(f"{folder} is a LISA of version 0 (it has {oldest[0]}): use one of version 1, LISA-7B-v1")
    if not under(CONNECTOR, stored):
        told = f"{folder} is no LISA (it has no {CONNECTOR}*, and config.json says {architectures})"
        raise CheckpointError(f"{told}: use the weights of LISA, READ or SESAME")
    norm = stored.get("model.norm.weight")
    if norm is not None and float(norm.float().abs().mean()) < NO_DELTA:
        raise CheckpointError(
            f"{folder} holds delta weights (model.norm.weight is near 0): add them to their base first"
        )


def _tower_of(folder: Path, values: Mapping[str, Any], vision_tower: Path | None) -> Path:
    named = values.get("mm_vision_tower") or values.get("vision_tower")
    if vision_tower is None:
        raise CheckpointError(f"{folder} comes without its vision tower: give a folder of {named} as vision_tower")
    side, wanted = _clip_config(vision_tower).image_size, TOWER_SIDES.get(Path(str(named)).name)
    if wanted is not None and side != wanted:
        raise CheckpointError(f"{vision_tower} sees {side} px, and {folder} was trained on {named}: download that one")
    return vision_tower


def _clip_config(tower: Path) -> CLIPVisionConfig:
    try:
        return CLIPVisionConfig.from_pretrained(tower, local_files_only=True)
    except UNFIT as error:
        told = f"{tower / 'config.json'} is not that of a CLIP ({reason(error)})"
        raise CheckpointError(f"{told}: download openai/clip-vit-large-patch14 or -336") from error


def _llava(folder: Path, values: Mapping[str, Any], stored: dict[str, Tensor], tower: Path) -> Blueprint:
    config = _config(folder, values, tower)
    clip = CLIP.native(stored_tensors(tower))
    if not under("vision_model.", clip):
        told = f"{tower} is no CLIP (it has no vision_model.*)"
        raise CheckpointError(f"{told}: download openai/clip-vit-large-patch14 or -336")
    tensors = LLAVA.native(stored) | LLAVA.native(clip)
    if "model.mm_projector.weight" in stored:
        # One linear layer as two: an identity behind it, and no activation between. The class stays LLaVA's own.
        width = config.text_config.hidden_size
        config.projector_hidden_act = "linear"
        tensors[f"{PROJECTOR}linear_2.weight"] = torch.eye(width)
        tensors[f"{PROJECTOR}linear_2.bias"] = torch.zeros(width)
    return Blueprint(LlavaForConditionalGeneration, config, tensors, folder, LLAVA.stored)


def _config(folder: Path, values: Mapping[str, Any], tower: Path) -> LlavaConfig:
    if missing := [name for name in _SCALARS if not isinstance(values.get(name), int)]:
        raise CheckpointError(
            f"{folder / 'config.json'} does not say {', '.join(missing)}: take it from the checkpoint"
        )
    whole = values.get("mm_vision_select_feature") == "cls_patch"
    try:
        return LlavaConfig(
            text_config=LlamaConfig(**{name: values[name] for name in (*_SCALARS, *_OPTIONS) if name in values}),
            vision_config=_clip_config(tower),
            vision_feature_layer=values.get("mm_vision_select_layer", -2),
            vision_feature_select_strategy="full" if whole else "default",
            tie_word_embeddings=False,
        )
    except UNFIT as error:
        told = f"{folder / 'config.json'} is not that of a LLaVA ({reason(error)})"
        raise CheckpointError(f"{told}: take it from the checkpoint") from error
