"""A tiny tokenizer and a tiny random InternVL, built in memory."""

# First, because it makes torchvision importable beside a CPU-only torch, and transformers imports torchvision.
import rea2seg  # noqa: F401

# isort: split
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, PreTrainedTokenizerFast
from transformers import Qwen2Config as TextConfig

from rea2seg.evaluators.prompts import EvaluatorTemplate

CONTROLS = [*EvaluatorTemplate().controls, "<|endoftext|>"]
CORPUS = [
    "Scores: [0.91, 0.10, 0.00]",
    "Which of the masks is the red cup left of the tree?",
    "Mask 1: Question: Image: ",
]


def byte_level_tokenizer(prefix_space: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which every digit stands alone, as in Qwen2's; with a space before every piece if wanted."""
    backend = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r"\p{N}"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=CONTROLS,
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 10, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def tiny_internvl(
    tokenizer: PreTrainedTokenizerFast, seed: int = 4, width: int = 32
) -> InternVLForConditionalGeneration:
    """Two layers, tiles of 32 pixels in patches of 4; random weights, so large that the masks matter."""
    torch.manual_seed(seed)
    size = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 2 * width}
    vision = InternVLVisionConfig(**size, image_size=32, patch_size=4, layer_scale_init_value=1.0)
    text = TextConfig(**size, num_key_value_heads=2, vocab_size=len(tokenizer), max_position_embeddings=1024)
    slot = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    config = InternVLConfig(
        vision_config=vision, text_config=text, image_token_id=slot, image_seq_length=16, tie_word_embeddings=False
    )
    model = InternVLForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.3)
    return model.eval()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer()


@pytest.fixture(scope="session")
def model(tokenizer: PreTrainedTokenizerFast) -> InternVLForConditionalGeneration:
    return tiny_internvl(tokenizer)
