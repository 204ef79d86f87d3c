"""LENS (hustvl/LENS) as its repository saves it, described without loading.

One set of files holds a Qwen2.5-VL in the flat layout of transformers 4.51, the queries and their connector under plain
names, and a SAM 2 under `sam.`, which is the segmenter's affair. The config calls itself a Qwen2-VL, and is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import (
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from rea2seg.checkpoints.sam2 import IN_LENS
from rea2seg.checkpoints.stored import KeyMap, stored_tensors, without
from rea2seg.checkpoints.strict import UNFIT, Blueprint, check_fit, load_tokenizer, read_json
from rea2seg.checkpoints.vocabulary import check_vocabulary
from rea2seg.errors import CheckpointError, reason
from rea2seg.generator.queries import QueryConnector

QUERY = "learnable_query"
EXTRAS = (QUERY, "connector.", "conv_1d.", "proj_to_sam.")
FLAT = KeyMap((("visual.", "model.visual."), ("model.", "model.language_model.")))
NESTED = KeyMap()
"""The layouts of transformers before 4.52 and since then."""

IMAGE_TOKEN, END, PADDING = "<|image_pad|>", "<|im_end|>", "<|endoftext|>"
CONTROLS = ("<|im_start|>", END, "<|vision_start|>", "<|vision_end|>", PADDING)

_TEXT = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
)
_TEXT_OPTIONS = (
    "hidden_act",
    "max_position_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "bos_token_id",
    "eos_token_id",
)
_VISION = ("hidden_size", "intermediate_size", "out_hidden_size")
_VISION_OPTIONS = (
    "depth",
    "num_heads",
    "hidden_act",
    "patch_size",
    "spatial_merge_size",
    "temporal_patch_size",
    "tokens_per_second",
    "window_size",
    "fullatt_block_indexes",
)
"""What a config says of the two models; what is optional is the same in all sizes of Qwen2.5-VL."""


@dataclass(frozen=True, eq=False)
class LensPlan:
    """The parts of a LENS, none of them loaded; `connector` has the names of our `QueryConnector`, which they fit."""

    mllm: Blueprint
    connector: Mapping[str, Tensor]
    queries: int
    source: Path
    tokenizer: PreTrainedTokenizerBase

    def described_connector(self) -> QueryConnector:
        """The connector without its weights, on the meta device."""
        return QueryConnector.described(self.mllm.config.text_config.hidden_size, self.queries)


def lens_plan(folder: Path) -> LensPlan:
    """What a folder of LENS holds; `mllm.check()` compares the MLLM's names and shapes, the connector's fit.

    Raises `CheckpointError` where files are missing, damaged, or of another model.
    """
    file = folder / "config.json"
    values, stored = read_json(file), stored_tensors(folder)
    _refuse_relatives(folder, stored)
    extras = {name: tensor for name, tensor in stored.items() if name.startswith(EXTRAS)}
    mllm = _qwen(folder, values, without((*EXTRAS, IN_LENS), stored))
    tokenizer = load_tokenizer(folder)
    check_vocabulary(tokenizer, mllm.config, CONTROLS, f"the tokenizer in {folder}", IMAGE_TOKEN)
    plan = LensPlan(mllm, extras, _queries(file, values, stored[QUERY]), folder, tokenizer)
    check_fit(plan.described_connector().state_dict(), folder, extras)
    return plan


def _refuse_relatives(folder: Path, stored: Mapping[str, Tensor]) -> None:
    """The checkpoints that look like LENS and are not, each with the way out."""
    older = [name for name in sorted(stored) if name.endswith((".mlp.fc1.weight", ".norm1.bias"))]
    if older := [name for name in older if name.startswith(("visual.blocks.", "model.visual.blocks."))]:
        raise CheckpointError(
            f"{folder} is built on Qwen2-VL (it has {older[0]}): use the weights of LENS that are built on Qwen2.5-VL"
        )
    if QUERY not in stored:
        raise CheckpointError(
            f"{folder} has no {QUERY}: it is not a LENS, but perhaps the Qwen2.5-VL it began with; use LENS's weights"
        )


def _queries(file: Path, values: Mapping[str, Any], learnt: Tensor) -> int:
    """How many queries are stored, which the config may not contradict."""
    if learnt.ndim != 3:
        told = f"{QUERY} of shape {list(learnt.shape)} instead of [1, queries, width]"
        raise CheckpointError(f"{file.parent} has {told}: download it again")
    stored, said = learnt.shape[1], values.get("num_of_query")
    if said is not None and said != stored:
        told = f"num_of_query {said!r}, where {QUERY} holds {stored}"
        raise CheckpointError(f"{file} says {told}: take it from the checkpoint")
    return stored


def _qwen(folder: Path, values: Mapping[str, Any], stored: dict[str, Tensor]) -> Blueprint:
    keys = NESTED if any(name.startswith("model.language_model.") for name in stored) else FLAT
    nested = values.get("text_config")
    text = {**values, **(nested if isinstance(nested, dict) else {})}
    # Where the output layer is the embedding, a copy of it may be stored all the same; training never used it.
    tied = bool(text.get("tie_word_embeddings")) or "lm_head.weight" not in stored
    if tied:
        stored = without(("lm_head.",), stored)
    config = _config(folder / "config.json", values, text, tied)
    return Blueprint(Qwen2_5_VLForConditionalGeneration, config, keys.native(stored), folder, keys.stored)


def _config(file: Path, values: Mapping[str, Any], text: Mapping[str, Any], tied: bool) -> Qwen2_5_VLConfig:
    vision = values.get("vision_config")
    vision = vision if isinstance(vision, dict) else {}
    missing = [name for name in _TEXT if name not in text]
    missing += [f"vision_config.{name}" for name in _VISION if name not in vision]
    if missing:
        raise CheckpointError(f"{file} does not say {', '.join(missing)}: take it from the checkpoint")
    try:
        config = Qwen2_5_VLConfig(
            text_config={name: text[name] for name in (*_TEXT, *_TEXT_OPTIONS) if name in text},
            vision_config={name: vision[name] for name in (*_VISION, *_VISION_OPTIONS) if name in vision},
            tie_word_embeddings=tied,
            **{name: values[name] for name in ("image_token_id", "video_token_id") if name in values},
        )
    except UNFIT as error:
        told = f"{file} is not the config of a Qwen2.5-VL ({reason(error)})"
        raise CheckpointError(f"{told}: take it from the checkpoint") from error
    _check_sections(file, config.text_config)
    return config


def _check_sections(file: Path, text: Any) -> None:
    """The positions along time, height and width share half of a head; left out, transformers takes those of a 3B."""
    found = text.rope_parameters.get("mrope_section")
    three = isinstance(found, list) and len(found) == 3 and all(isinstance(part, int) for part in found)
    if not three or 2 * sum(found) * text.num_attention_heads != text.hidden_size:
        told = f"mrope_section {found!r} under rope_scaling, not three whole numbers that sum to half a head's width"
        raise CheckpointError(f"{file} has {told}: take it from the checkpoint")
