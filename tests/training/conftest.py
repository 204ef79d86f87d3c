"""Models of mini's classes, too small to learn anything and random enough that every mistake shows."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from rea2seg.generator.tokens import Conversation
from rea2seg.segmenters.sam import SamConfig
from training.mini import Language, Tower
from training.tokenizer import train

CONVERSATION = Conversation(
    prompt="<s><im_start><image><im_end>{question}\n", reply="{answer}</s>", stripped=("<im_start>", "<im_end>")
)
"""Mini's: see configs/mini.yaml."""
CLIP = Tower(side=64, patch=16, width=32, depth=2, heads=2)
VIT = Tower(side=64, patch=8, width=32, depth=2, heads=2)
LANGUAGE = Language(width=32, mlp=64, depth=2, heads=4, kv_heads=2)
SAM = SamConfig(
    image_size=64,
    patch_size=8,
    encoder_width=32,
    encoder_depth=2,
    encoder_heads=2,
    encoder_window=4,
    encoder_global_blocks=(1,),
    channels=32,
    mask_channels=4,
    decoder_heads=2,
    decoder_mlp=64,
    iou_depth=2,
    iou_width=32,
)


def roughen(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights so large that a wrong position, mask or picture changes the outcome."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return train(400, scenes=20, seed=0)


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder
