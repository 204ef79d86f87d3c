"""A LISA small enough to build in a test: random weights, a byte-level tokenizer trained on one sentence."""

# First: it makes torchvision, which transformers imports, usable beside a CPU-only torch.
import rea2seg  # noqa: F401

# isort: split
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from rea2seg.generator.llava import Connector, Parts
from rea2seg.generator.tokens import Conversation

SHORT = Conversation(prompt="<s><im_start><image><im_end>{question}", reply="\n{answer}</s>")


def build_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["the red cup left of the blue box, and the door of the house"] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    # As in LISA: `[SEG]` is added without the special flag, the others with it.
    tokenizer.add_tokens(["[SEG]"])
    tokenizer.add_tokens(
        [AddedToken(name, special=True) for name in ("<im_start>", "<im_end>", "<image>", "<|im_end|>")]
    )
    return tokenizer


def build_mllm(tokens: int, key_heads: int = 2, **vision: object) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=tokens,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=key_heads,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        # Sharp enough that a wrong row, layer or mask shows.
        initializer_range=0.3,
    )
    tower = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8
    )
    config = LlavaConfig(vision_config=tower, text_config=text, image_token_id=tokens - 1, **vision)
    return LlavaForConditionalGeneration(config).eval()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture
def parts(tokenizer: PreTrainedTokenizerFast) -> Parts:
    mllm = build_mllm(len(tokenizer))
    return Parts(mllm, Connector(32, 16).eval(), tokenizer)
