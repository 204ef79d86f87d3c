"""InternVL3 as it lies on the hub, in its original layout and in transformers' native one: all layers, but narrow.

The names, files and values of config.json are those of OpenGVLab/InternVL3-8B and InternVL3-8B-hf; the widths are not,
nor is the vocabulary of letters and a few pairs.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from tests.public.shards import write_shards

Layout = Literal["original", "native"]
TokenizerFiles = Literal["slow", "added", "fast"]

PLAIN = ("<tool_call>", "</tool_call>")
QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *PLAIN)
OWN = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
ADDED = (*QWEN, *OWN)
"""After the vocabulary, in this order. Those in `PLAIN` are not flagged special."""

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LETTERS = 300
ID = {name: LETTERS + place for place, name in enumerate(ADDED)}


@dataclass(frozen=True)
class Sizes:
    """Widths and depths; those of the public models where they are known by name, else narrow ones."""

    vision: int = 32
    vision_inner: int = 48
    vision_layers: int = 24
    vision_heads: int = 2
    language: int = 32
    language_inner: int = 48
    language_layers: int = 28
    heads: int = 4
    key_heads: int = 2
    vocabulary: int = LETTERS + len(ADDED)
    big_vision: bool = False

    @property
    def vision_name(self) -> str:
        return "OpenGVLab/InternViT-6B-448px-V2_5" if self.big_vision else "OpenGVLab/InternViT-300M-448px-V2_5"


_VIT = {"vision": 1024, "vision_inner": 4096, "vision_heads": 16, "vocabulary": 151674}
TRUE = {
    "1B": Sizes(language=896, language_inner=4864, language_layers=24, heads=14, key_heads=2, **_VIT),
    "2B": Sizes(language=1536, language_inner=8960, language_layers=28, heads=12, key_heads=2, **_VIT),
    "8B": Sizes(language=3584, language_inner=18944, language_layers=28, heads=28, key_heads=4, **_VIT),
    "14B": Sizes(language=5120, language_inner=13824, language_layers=48, heads=40, key_heads=8, **_VIT),
    "38B": Sizes(
        vision=3200,
        vision_inner=12800,
        vision_layers=45,
        vision_heads=25,
        language=5120,
        language_inner=27648,
        language_layers=64,
        heads=40,
        key_heads=8,
        vocabulary=151674,
        big_vision=True,
    ),
}
NARROW = Sizes()
SHALLOW = Sizes(vision_layers=3, language_layers=4)
"""For those who want to go through a whole pipeline quickly: of the files only config.json and the counts differ."""


def original_shapes(sizes: Sizes, head: bool = True) -> dict[str, tuple[int, ...]]:
    """Every tensor of the original layout, by name."""
    width, inner, words = sizes.vision, sizes.vision_inner, sizes.language
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (1, 1, width),
        "vision_model.embeddings.position_embedding": (1, 1025, width),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, 14, 14),
        "vision_model.embeddings.patch_embedding.bias": (width,),
        "mlp1.0.weight": (4 * width,),
        "mlp1.0.bias": (4 * width,),
        "mlp1.1.weight": (words, 4 * width),
        "mlp1.1.bias": (words,),
        "mlp1.3.weight": (words, words),
        "mlp1.3.bias": (words,),
        "language_model.model.embed_tokens.weight": (sizes.vocabulary, words),
        "language_model.model.norm.weight": (words,),
    }
    if head:
        shapes["language_model.lm_head.weight"] = (sizes.vocabulary, words)
    for layer in range(sizes.vision_layers):
        block = {
            "attn.qkv.weight": (3 * width, width),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "ls1": (width,),
            "ls2": (width,),
            "mlp.fc1.weight": (inner, width),
            "mlp.fc1.bias": (inner,),
            "mlp.fc2.weight": (width, inner),
            "mlp.fc2.bias": (width,),
            "norm1.weight": (width,),
            "norm2.weight": (width,),
        }
        own = ("attn.q_norm.weight", "attn.k_norm.weight") if sizes.big_vision else ("norm1.bias", "norm2.bias")
        block |= dict.fromkeys(own, (width,))
        block |= {} if sizes.big_vision else {"attn.qkv.bias": (3 * width,)}
        shapes |= {f"vision_model.encoder.layers.{layer}.{name}": shape for name, shape in block.items()}
    keys = sizes.key_heads * words // sizes.heads
    for layer in range(sizes.language_layers):
        place = f"language_model.model.layers.{layer}"
        for name, rows in (("q", words), ("k", keys), ("v", keys)):
            shapes[f"{place}.self_attn.{name}_proj.weight"] = (rows, words)
            shapes[f"{place}.self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{place}.self_attn.o_proj.weight"] = (words, words)
        shapes[f"{place}.mlp.gate_proj.weight"] = (sizes.language_inner, words)
        shapes[f"{place}.mlp.up_proj.weight"] = (sizes.language_inner, words)
        shapes[f"{place}.mlp.down_proj.weight"] = (words, sizes.language_inner)
        shapes[f"{place}.input_layernorm.weight"] = (words,)
        shapes[f"{place}.post_attention_layernorm.weight"] = (words,)
    return shapes


def original_tensors(sizes: Sizes = NARROW, head: bool = True, seed: int = 0) -> dict[str, Tensor]:
    """Random weights, so large that outputs differ visibly from token to token."""
    generator = torch.Generator().manual_seed(seed)
    return {name: _drawn(name, shape, generator) for name, shape in original_shapes(sizes, head).items()}


def _drawn(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if re.search(r"norm\d?\.weight|layernorm\.weight|mlp1\.0\.weight", name):
        return 1 + 0.2 * noise
    if re.search(r"\.ls[12]$", name):
        return 0.3 + 0.1 * noise
    return 0.2 * noise


def native_tensors(original: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the names of the hub's `-hf` repositories, which transformers itself converts further."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in original.items():
        if ".qkv." in name:
            for letter, rows in zip("qkv", tensor.chunk(3), strict=True):
                tensors[_native(name).replace(".qkv.", f".{letter}_proj.")] = rows.clone()
        else:
            tensors[_native(name)] = tensor
    return tensors


def _native(name: str) -> str:
    for theirs, own in (
        ("vision_model.embeddings.class_embedding", "vision_tower.embeddings.cls_token"),
        ("vision_model.embeddings.position_embedding", "vision_tower.embeddings.position_embeddings"),
        ("vision_model.embeddings.patch_embedding", "vision_tower.embeddings.patch_embeddings.projection"),
        ("vision_model.encoder.layers", "vision_tower.encoder.layer"),
        (".attn.proj.", ".attention.projection_layer."),
        (".attn.", ".attention."),
        (".norm1.", ".layernorm_before."),
        (".norm2.", ".layernorm_after."),
        (".ls1", ".lambda_1"),
        (".ls2", ".lambda_2"),
        ("mlp1.0.", "multi_modal_projector.layer_norm."),
        ("mlp1.1.", "multi_modal_projector.linear_1."),
        ("mlp1.3.", "multi_modal_projector.linear_2."),
    ):
        name = name.replace(theirs, own)
    return name


def original_config(sizes: Sizes = NARROW, tied: bool = False) -> dict[str, Any]:
    """config.json of the original layout."""
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": {
            "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
            "AutoModel": "modeling_internvl_chat.InternVLChatModel",
            "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
        },
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": 448,
        "llm_config": _language(sizes, tied) | {"torch_dtype": "bfloat16", "use_bfloat16": True, "moe_config": None},
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "transformers_version": None,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": {
            "_name_or_path": sizes.vision_name,
            "architectures": ["InternVisionModel"],
            "attention_dropout": 0.0,
            "drop_path_rate": 0.1,
            "dropout": 0.0,
            "hidden_act": "gelu",
            "hidden_size": sizes.vision,
            "image_size": 448,
            "initializer_factor": 0.1,
            "initializer_range": 1e-10,
            "intermediate_size": sizes.vision_inner,
            "layer_norm_eps": 1e-6,
            "model_type": "intern_vit_6b",
            "norm_type": "rms_norm" if sizes.big_vision else "layer_norm",
            "num_attention_heads": sizes.vision_heads,
            "num_channels": 3,
            "num_hidden_layers": sizes.vision_layers,
            "patch_size": 14,
            "qk_normalization": sizes.big_vision,
            "qkv_bias": not sizes.big_vision,
            "torch_dtype": "bfloat16",
            "use_flash_attn": True,
        },
    }


def native_config(sizes: Sizes = NARROW, tied: bool = False) -> dict[str, Any]:
    """config.json of a `-hf` repository."""
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "downsample_ratio": 0.5,
        "image_seq_length": 256,
        "image_token_id": ID["<IMG_CONTEXT>"],
        "model_type": "internvl",
        "projector_hidden_act": "gelu",
        "text_config": _language(sizes, tied),
        "torch_dtype": "bfloat16",
        "transformers_version": "4.52.0.dev0",
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "attention_bias": True,
            "hidden_act": "gelu",
            "hidden_size": sizes.vision,
            "image_size": [448, 448],
            "intermediate_size": sizes.vision_inner,
            "layer_norm_eps": 1e-6,
            "model_type": "internvl_vision",
            "norm_type": "layer_norm",
            "num_attention_heads": sizes.vision_heads,
            "num_channels": 3,
            "num_hidden_layers": sizes.vision_layers,
            "patch_size": [14, 14],
            "use_absolute_position_embeddings": True,
            "use_mask_token": False,
            "use_mean_pooling": True,
            "use_qk_norm": False,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }


def _language(sizes: Sizes, tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": ID["<|endoftext|>"],
        "eos_token_id": ID["<|im_end|>"],
        "hidden_act": "silu",
        "hidden_size": sizes.language,
        "initializer_range": 0.02,
        "intermediate_size": sizes.language_inner,
        "max_position_embeddings": 32768,
        "max_window_layers": 70,
        "model_type": "qwen2",
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.language_layers,
        "num_key_value_heads": sizes.key_heads,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": tied,
        "use_cache": False,
        "use_sliding_window": False,
        "vocab_size": sizes.vocabulary,
    }


def write_internvl(
    folder: Path,
    layout: Layout = "original",
    shards: int = 2,
    tensors: Mapping[str, Tensor] | None = None,
    tied: bool = False,
    tokenizer: TokenizerFiles | None = None,
    sizes: Sizes = NARROW,
) -> Path:
    """A whole checkpoint; `tensors` have original names. By default the tokenizer's files are those of the layout."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = original_tensors(sizes, head=not tied) if tensors is None else tensors
    native = layout == "native"
    config = native_config(sizes, tied) if native else original_config(sizes, tied)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_shards(folder, native_tensors(tensors) if native else tensors, shards)
    write_tokenizer(folder, tokenizer or ("fast" if native else "slow"))
    return folder


def write_tokenizer(folder: Path, files: TokenizerFiles = "slow", left_out: str = "") -> None:
    """A small Qwen2 tokenizer.

    slow: vocab.json, merges.txt and the added tokens in both of their files, as in the original repositories. added:
    the added tokens in added_tokens.json alone. fast: tokenizer.json, as in the `-hf` ones. `left_out` is not added.
    """
    names = [name for name in ADDED if name != left_out]
    added = [AddedToken(name, normalized=False, special=name not in PLAIN) for name in names]
    tokenizer = letters()
    settings: dict[str, Any] = {
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 8192,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    if files == "fast":
        tokenizer.add_tokens(added)
        tokenizer.save(str(folder / "tokenizer.json"))
    else:
        tokenizer.model.save(str(folder))
        ids = {name: LETTERS + place for place, name in enumerate(names)}
        (folder / "added_tokens.json").write_text(json.dumps(ids, indent=2, sort_keys=True))
        special = {
            "additional_special_tokens": [name for name in names if name not in PLAIN],
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
        }
        (folder / "special_tokens_map.json").write_text(json.dumps(special))
    if files == "slow":
        settings["added_tokens_decoder"] = {
            str(LETTERS + place): {
                "content": name,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": name not in PLAIN,
            }
            for place, name in enumerate(names)
        }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def letters() -> Tokenizer:
    """Bytes and a few merges, cut into words as Qwen2 does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=LETTERS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    text = "Scores: [0.91, 0.10, 0.00] For each mask, estimate its IoU with the region that answers the question. "
    tokenizer.train_from_iterator([text, "Candidate masks of the image, white where the mask is:"] * 5, trainer)
    return tokenizer


def edit_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Let `change` work on the table in a file."""
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))
