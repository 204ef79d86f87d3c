"""Fresh small models of the classes that the large ones have, and the shared tokenizer. Mini only."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    CLIPVisionConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from rea2seg.generator.llava import Connector, Parts
from rea2seg.text import control_id


@dataclass(frozen=True)
class Tower:
    """A vision transformer: pixels a side, pixels a patch, width, depth and heads."""

    side: int
    patch: int
    width: int
    depth: int
    heads: int


@dataclass(frozen=True)
class Language:
    """A decoder-only transformer: width, width of the gated MLP, depth, query heads and key-value heads."""

    width: int
    mlp: int
    depth: int
    heads: int
    kv_heads: int

    def fields(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
        """What Llama's and Qwen2's configs have in common."""
        return {
            "vocab_size": len(tokenizer),
            "hidden_size": self.width,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.depth,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer that `training.tokenizer` wrote."""
    return PreTrainedTokenizerFast.from_pretrained(str(Path(folder).resolve()), local_files_only=True)


def small_llava(tower: Tower, language: Language, tokenizer: PreTrainedTokenizerBase, prompt_width: int) -> Parts:
    """An untrained LISA: LLaVA on a CLIP tower and Llama, and a connector to prompts of `prompt_width`."""
    vision = CLIPVisionConfig(
        image_size=tower.side,
        patch_size=tower.patch,
        hidden_size=tower.width,
        intermediate_size=4 * tower.width,
        num_hidden_layers=tower.depth,
        num_attention_heads=tower.heads,
        projection_dim=tower.width,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**language.fields(tokenizer)),
        image_token_index=control_id(tokenizer, "<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(tower.side // tower.patch) ** 2,
        tie_word_embeddings=True,
    )
    return Parts(LlavaForConditionalGeneration(config), Connector(language.width, prompt_width), tokenizer)


def small_internvl(
    tower: Tower, language: Language, tokenizer: PreTrainedTokenizerBase, downsample: float
) -> InternVLForConditionalGeneration:
    """An untrained InternVL: its own tower, pixel shuffle to `downsample` of the patches a side, and Qwen2."""
    vision = InternVLVisionConfig(
        image_size=(tower.side, tower.side),
        patch_size=(tower.patch, tower.patch),
        hidden_size=tower.width,
        intermediate_size=4 * tower.width,
        num_hidden_layers=tower.depth,
        num_attention_heads=tower.heads,
        use_mean_pooling=False,
        attention_bias=True,
    )
    config = InternVLConfig(
        vision_config=vision,
        text_config=Qwen2Config(**language.fields(tokenizer)),
        image_token_id=control_id(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=round(tower.side / tower.patch * downsample) ** 2,
        downsample_ratio=downsample,
        tie_word_embeddings=True,
    )
    return InternVLForConditionalGeneration(config)


def save_internvl(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the folder that the evaluator loads."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
