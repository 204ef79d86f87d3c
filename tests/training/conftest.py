"""Models of mini's classes, too small to learn anything and random enough that every mistake shows."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from rea2seg.checkpoints.sam import SamConfig
from rea2seg.generator.tokens import Conversation
from training.evaluator import EvaluatorStage
from training.guidance import GuidedLayers
from training.mini import Language, Tower, small_internvl
from training.tokenizer import train

CONVERSATION = Conversation(
    prompt="<s><im_start><image><im_end>{question}\n", reply="{answer}</s>", stripped=("<im_start>", "<im_end>")
)
"""Mini's: see configs/mini.yaml."""
CLIP = Tower(side=64, patch=16, width=32, depth=2, heads=2)
VIT = Tower(side=64, patch=8, width=32, depth=2, heads=2)
LANGUAGE = Language(width=32, mlp=64, depth=2, heads=4, kv_heads=2)
TWO_LAYERS = GuidedLayers(
    look_layers=(0, 0), mention_layers=(0, 0), point_layers=(0, 1), match_after=1, cover_after=2, read_layers=(1, 1)
)
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


def evaluator_stage(tokenizer: PreTrainedTokenizerBase, folder: Path, **options: Any) -> EvaluatorStage:
    """Stage 1 on a small model of two layers, written to a folder."""
    roughen(small_internvl(VIT, LANGUAGE, tokenizer, 0.5)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    options = {"guided": TWO_LAYERS} | options
    return EvaluatorStage(str(folder), str(folder / "export"), **options).eval()


def small_tokenizer() -> PreTrainedTokenizerBase:
    """No larger than needed for words for IoUs that are one token each."""
    return train(480, scenes=20, seed=0)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return small_tokenizer()


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def work(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all stages were trained for two steps, and what lies between them was done."""
    from tests.training.stages import train_everything  # The stages are made of the small models above.

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The '.*' does not have many workers")
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
        return train_everything(tmp_path_factory.mktemp("work"), tokenizer)
