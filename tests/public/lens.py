"""LENS as hustvl/LENS saves it with transformers 4.51: 36 and 32 layers, 64 queries, and few channels."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tests.public.shards import write_shards

Layout = Literal["flat", "nested"]

SPECIAL = (
    *("endoftext", "im_start", "im_end"),
    *("object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start", "quad_end"),
    *("vision_start", "vision_end", "vision_pad", "image_pad", "video_pad"),
)
PLAIN = ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")
WORDS = "Output the bounding box of the red cup left of the blue box in the image. Locate it. <think> </think> 12, 340"
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Size:
    """The widths of a LENS; everything else is public."""

    hidden: int = 128
    inner: int = 96
    vision: int = 64
    vision_inner: int = 48
    vocab: int = 384
    sections: tuple[int, int, int] = (1, 1, 2)


PUBLIC = Size(hidden=2048, inner=11008, vision=1280, vision_inner=3420, vocab=151936, sections=(16, 24, 24))


def qwen_shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a Qwen2.5-VL-3B, in the flat layout."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (size.vocab, size.hidden)}
    groups = size.hidden // 16 * 2
    for layer in range(36):
        at = f"model.layers.{layer}"
        for name, rows in (("q", size.hidden), ("k", groups), ("v", groups)):
            shapes |= _linear(f"{at}.self_attn.{name}_proj", rows, size.hidden)
        shapes[f"{at}.self_attn.o_proj.weight"] = (size.hidden, size.hidden)
        for name in ("gate", "up"):
            shapes[f"{at}.mlp.{name}_proj.weight"] = (size.inner, size.hidden)
        shapes[f"{at}.mlp.down_proj.weight"] = (size.hidden, size.inner)
        shapes |= {f"{at}.{name}_layernorm.weight": (size.hidden,) for name in ("input", "post_attention")}
    shapes["model.norm.weight"] = (size.hidden,)
    return shapes | _vision_shapes(size)


def _vision_shapes(size: Size) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"visual.patch_embed.proj.weight": (size.vision, 3, 2, 14, 14)}
    for block in range(32):
        at = f"visual.blocks.{block}"
        shapes |= {f"{at}.{name}.weight": (size.vision,) for name in ("norm1", "norm2")}
        shapes |= _linear(f"{at}.attn.qkv", 3 * size.vision, size.vision)
        shapes |= _linear(f"{at}.attn.proj", size.vision, size.vision)
        for name in ("gate", "up"):
            shapes |= _linear(f"{at}.mlp.{name}_proj", size.vision_inner, size.vision)
        shapes |= _linear(f"{at}.mlp.down_proj", size.vision, size.vision_inner)
    shapes["visual.merger.ln_q.weight"] = (size.vision,)
    shapes |= _linear("visual.merger.mlp.0", 4 * size.vision, 4 * size.vision)
    return shapes | _linear("visual.merger.mlp.2", size.hidden, 4 * size.vision)


def extra_shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """Name and shape of what LENS adds to it, SAM 2 aside."""
    width = size.hidden
    shapes: dict[str, tuple[int, ...]] = {"learnable_query": (1, 64, width), "connector.pos_embed": (1, 64, width)}
    for block in range(4):
        at = f"connector.blocks.{block}"
        shapes |= {f"{at}.{name}.{kind}": (width,) for name in ("norm1", "norm2") for kind in ("weight", "bias")}
        shapes |= _linear(f"{at}.attn.qkv", 3 * width, width) | _linear(f"{at}.attn.proj", width, width)
        shapes |= _linear(f"{at}.mlp.fc1", 4 * width, width) | _linear(f"{at}.mlp.fc2", width, 4 * width)
    shapes |= {"conv_1d.weight": (width, width, 64), "conv_1d.bias": (width,)}
    return shapes | _linear("proj_to_sam.0", width, width) | _linear("proj_to_sam.2", 256, width)


def write_lens(
    folder: Path,
    shards: int = 2,
    layout: Layout = "flat",
    sam: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    brief: bool = False,
) -> dict[str, Tensor]:
    """Writes all files of a checkpoint with random weights; returns the tensors under the names they were written as.

    `sam`: tensors that are stored under `sam.` beside LENS's own. `brief`: the token that ends an answer stands out, so
    that answers are short.
    """
    size, generator = Size(), torch.Generator().manual_seed(seed)
    shapes = qwen_shapes(size) | extra_shapes(size)
    tensors = {name: _random(name, shape, generator).to(dtype) for name, shape in shapes.items()}
    if layout == "nested":
        tensors = {_nested(name): tensor for name, tensor in tensors.items()}
    tensors |= {f"sam.{name}": tensor for name, tensor in (sam or {}).items()}
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(folder)
    write_config(folder, size, tokenizer, layout)
    if brief:
        tensors["model.embed_tokens.weight"][tokenizer.convert_tokens_to_ids("<|im_end|>")] *= 20
    write_shards(folder, tensors, shards)
    return tensors


def write_config(folder: Path, size: Size, tokenizer: PreTrainedTokenizerFast, layout: Layout = "flat") -> None:
    """config.json, generation_config.json, preprocessor_config.json and chat_template.json."""
    _write(folder / "config.json", config(size, tokenizer, layout))
    generation = {"bos_token_id": 1, "do_sample": True, "repetition_penalty": 1.05, "temperature": 1e-06}
    _write(folder / "generation_config.json", {**generation, "transformers_version": "4.51.3"})
    pixels = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    kinds = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    _write(folder / "preprocessor_config.json", pixels | kinds)
    _write(folder / "chat_template.json", {"chat_template": CHAT})


def config(size: Size, tokenizer: PreTrainedTokenizerFast, layout: Layout = "flat") -> dict[str, Any]:
    """What config.json says: a Qwen2-VL by its model type, of another class, with the fields of Qwen2.5-VL."""
    text = {
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": size.hidden,
        "initializer_range": 0.02,
        "intermediate_size": size.inner,
        "max_position_embeddings": 128000,
        "max_window_layers": 70,
        "num_attention_heads": 16,
        "num_hidden_layers": 36,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_section": list(size.sections), "rope_type": "default", "type": "default"},
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "use_cache": False,
        "use_sliding_window": False,
        "vocab_size": size.vocab,
    }
    vision = {
        "depth": 32,
        "embed_dim": 1280,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "hidden_act": "silu",
        "hidden_size": size.vision,
        "in_chans": 3,
        "in_channels": 3,
        "intermediate_size": size.vision_inner,
        "mlp_ratio": 4,
        "model_type": "qwen2_vl",
        "num_heads": 16,
        "out_hidden_size": size.hidden,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
    }
    tokens = {f"{name}_token_id": f"<|{name}_pad|>" for name in ("image", "video", "vision")}
    tokens |= {"bos_token_id": "<|endoftext|>", "eos_token_id": "<|im_end|>"}
    tokens |= {f"vision_{end}_token_id": f"<|vision_{end}|>" for end in ("start", "end")}
    return {
        "architectures": ["SAMR1ForConditionalGeneration_qwen2p5"],
        "model_type": "qwen2_vl",
        "num_of_query": 64,
        "if_use_qwen_connector": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.3",
        "vision_config": vision,
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()},
        **(text if layout == "flat" else {"text_config": text}),
    }


def write_tokenizer(folder: Path, without: str = "", more: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A small byte-level BPE with Qwen's rules and control tokens, but for the one named `without`, and `more`."""
    backend = Tokenizer(models.BPE())
    pieces = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pieces), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [WORDS] * 10, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    special = [AddedToken(f"<|{name}|>", special=True, normalized=False) for name in SPECIAL if name != without]
    tokenizer.add_tokens(special)
    tokenizer.add_tokens(["<tool_call>", "</tool_call>", *(f"<|{name}|>" for name in PLAIN), *more])
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    backend.model.save(str(folder))
    return tokenizer


def _linear(name: str, rows: int, cols: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, cols), f"{name}.bias": (rows,)}


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Weights at which the outputs of different inputs differ visibly."""
    noise = torch.randn(shape, generator=generator)
    if name.endswith((".bias", "norm.weight", "norm1.weight", "norm2.weight", "ln_q.weight")):
        return noise * 0.2 + (0 if name.endswith(".bias") else 1)
    if name.endswith(("embed_tokens.weight", "pos_embed", "learnable_query")):
        return noise * 0.2
    # Sharp attention, and residual layers so soft that rounding does not grow through 36 of them.
    gain = 1.5 if name.endswith(("q_proj.weight", "k_proj.weight", "qkv.weight")) else 1.0
    gain = 0.3 if name.endswith(("o_proj.weight", "attn.proj.weight", "down_proj.weight", "fc2.weight")) else gain
    return noise * gain / math.sqrt(math.prod(shape[1:]))


def _nested(name: str) -> str:
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


def _write(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2))
