"""InternVL as its authors publish it (`InternVLChatModel`) beside transformers' native layout, as one native class.

The original comes with code of its own, which is never run: its config is read by hand, and its tensors get the native
names. Names and defaults are those of OpenGVLab's InternVL and of transformers' conversion script for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration, PreTrainedTokenizerBase, Qwen2Config
from transformers.models.internvl.modeling_internvl import NORM2FN

from rea2seg.checkpoints.stored import KeyMap, stored_tensors
from rea2seg.checkpoints.strict import UNFIT, Blueprint, load_tokenizer, native_blueprint, read_json
from rea2seg.checkpoints.vocabulary import check_vocabulary
from rea2seg.errors import CheckpointError, reason

ORIGINAL = "InternVLChatModel"
IMAGE_SLOT = "<IMG_CONTEXT>"

_FUSED = re.compile(r"(.+\.attn\.)qkv\.(weight|bias)")
_PART = re.compile(r"(.+\.attn\.)([qkv])_proj\.(weight|bias)")
_OUTSIDE_LAYERS = (
    ("vision_model.embeddings.class_embedding", "model.vision_tower.embeddings.cls_token"),
    ("vision_model.embeddings.position_embedding", "model.vision_tower.embeddings.position_embeddings"),
    ("vision_model.embeddings.patch_embedding.", "model.vision_tower.embeddings.patch_embeddings.projection."),
    ("mlp1.0.", "model.multi_modal_projector.layer_norm."),
    ("mlp1.1.", "model.multi_modal_projector.linear_1."),
    ("mlp1.3.", "model.multi_modal_projector.linear_2."),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
)
_IN_LAYER = (
    ("attn.proj.", "attention.projection_layer."),
    ("attn.", "attention."),
    ("norm1.", "layernorm_before."),
    ("norm2.", "layernorm_after."),
    ("ls1", "lambda_1"),
    ("ls2", "lambda_2"),
    ("mlp.", "mlp."),
)

_WHOLE = {"select_layer": (-1, -1), "ps_version": ("v1", "v2")}
"""Of the original config: what is meant where the key is left out, and the only value that the native class knows."""

_LORA = ("use_llm_lora", "use_backbone_lora")
"""Of the original config: the rank of a LoRA that lies apart in the same files, 0 for none."""

_VISION = {
    "hidden_size": ("hidden_size", 3200),
    "num_hidden_layers": ("num_hidden_layers", 48),
    "num_attention_heads": ("num_attention_heads", 25),
    "intermediate_size": ("intermediate_size", 12800),
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 14),
    "num_channels": ("num_channels", 3),
    "hidden_act": ("hidden_act", "gelu"),
    "layer_norm_eps": ("layer_norm_eps", 1e-6),
    "norm_type": ("norm_type", "rms_norm"),
    "qkv_bias": ("attention_bias", False),
    "qk_normalization": ("use_qk_norm", True),
}
"""The vision part of the original config: the native key, and what is meant where the key is left out."""

_LANGUAGE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "hidden_act",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "max_position_embeddings",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
)
"""The language part: keys as in Qwen2's own config, whose defaults hold where they are left out."""


class InternVLPlan(NamedTuple):
    """An InternVL that is described and not loaded, and its tokenizer."""

    model: Blueprint
    tokenizer: PreTrainedTokenizerBase


def internvl_plan(folder: Path) -> InternVLPlan:
    """An InternVL in either layout, which config.json tells apart; nothing but names, shapes and texts is read.

    Raises `CheckpointError` where files are missing, damaged or of another model.
    """
    file = folder / "config.json"
    values = read_json(file)
    if values.get("architectures") != [ORIGINAL]:
        return InternVLPlan(native_blueprint(InternVLForConditionalGeneration, folder), load_tokenizer(folder))
    config, tokenizer = original_config(values, file), load_tokenizer(folder)
    config.image_token_id = tokenizer.get_added_vocab().get(IMAGE_SLOT, -1)
    check_vocabulary(tokenizer, config, (), f"the tokenizer in {folder}", IMAGE_SLOT)
    return InternVLPlan(original_blueprint(config, stored_tensors(folder), folder), tokenizer)


def original_config(values: Mapping[str, Any], file: Path) -> InternVLConfig:
    """The native config that means the same as an original one; only the image token is not recorded there.

    Raises `CheckpointError`, with the key of `file`, where there is none.
    """
    vision, language = (_section(values, name, file) for name in ("vision_config", "llm_config"))
    if (built_for := language.get("architectures")) != ["Qwen2ForCausalLM"]:
        raise CheckpointError(
            f"{file} has a language model of {built_for}, where only ['Qwen2ForCausalLM'] is known: "
            "take an InternVL3 of 1B, 2B, 8B or 14B"
        )
    _check_whole(values, file)
    taken = _vision(vision, file)
    # Where they differ, the authors' code stretches the position embeddings, which the native class leaves as they are.
    if (forced := values.get("force_image_size")) and forced != taken["image_size"]:
        told = f"force_image_size {forced!r}, and vision_config.image_size {taken['image_size']!r}"
        raise CheckpointError(f"{file} has {told}: take another InternVL3, where they agree")
    try:
        return InternVLConfig(
            vision_config=taken,
            text_config=Qwen2Config(**{key: language[key] for key in _LANGUAGE if key in language}),
            downsample_ratio=values.get("downsample_ratio", 0.5),
            tie_word_embeddings=language.get("tie_word_embeddings", False),
        )
    except UNFIT as error:
        told = f"{file} does not fit InternVLForConditionalGeneration ({reason(error)})"
        raise CheckpointError(f"{told}: take it from the checkpoint") from error


def original_blueprint(config: InternVLConfig, stored: Mapping[str, Tensor], source: Path) -> Blueprint:
    """The native class filled with tensors of the original names; the fused q, k and v are taken apart as views."""
    names = key_map(config.vision_config.num_hidden_layers)
    tensors = names.native(_unfused(stored))
    return Blueprint(
        InternVLForConditionalGeneration, config, tensors, source, lambda native: _fused_name(names.stored(native))
    )


def key_map(vision_layers: int) -> KeyMap:
    """Original names onto native ones, q, k and v being apart already."""
    layers = (
        (f"vision_model.encoder.layers.{place}.{theirs}", f"model.vision_tower.encoder.layer.{place}.{own}")
        for place in range(vision_layers)
        for theirs, own in _IN_LAYER
    )
    return KeyMap((*_OUTSIDE_LAYERS, *layers), unused=(r".*\.rotary_emb\.inv_freq",))


def _unfused(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The rows of a fused tensor are those of q, then k, then v."""
    parted: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if found := _FUSED.fullmatch(name):
            before, kind = found.groups()
            parts = zip("qkv", tensor.tensor_split(3), strict=True)
            parted |= {f"{before}{letter}_proj.{kind}": part for letter, part in parts}
        else:
            parted[name] = tensor
    return parted


def _fused_name(name: str) -> str:
    return _PART.sub(r"\1qkv.\3[\2]", name)


def _check_whole(values: Mapping[str, Any], file: Path) -> None:
    for key, (default, known) in _WHOLE.items():
        if (found := values.get(key, default)) != known:
            raise CheckpointError(f"{file} has {key} {found!r}, where only {known!r} is known: take another InternVL3")
    for key in _LORA:
        if rank := values.get(key):
            told = f"{key} {rank!r}, a LoRA that is not merged"
            raise CheckpointError(f"{file} has {told}: merge it first with InternVL's tools/merge_lora.py")


def _section(values: Mapping[str, Any], name: str, file: Path) -> dict[str, Any]:
    section = values.get(name)
    if not isinstance(section, dict):
        raise CheckpointError(f"{file} has no {name}: download it again")
    return section


def _vision(values: Mapping[str, Any], file: Path) -> dict[str, Any]:
    # The features are those before any last norm, which the native class leaves out where it pools by the mean.
    taken = {own: values.get(theirs, default) for theirs, (own, default) in _VISION.items()}
    if (norm := taken["norm_type"]) not in NORM2FN:
        told = f"norm_type {norm!r}, where only {' and '.join(NORM2FN)} are known"
        raise CheckpointError(f"{file} has {told}: take another InternVL3")
    return taken | {"use_absolute_position_embeddings": True, "use_mean_pooling": True}
