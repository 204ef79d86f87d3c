"""What every seat's weights go through; the seats' own tests say what each of them refuses."""

import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import InternVLForConditionalGeneration
from transformers.utils import logging

from rea2seg.checkpoints.strict import fill, native_blueprint, quiet
from rea2seg.devices import ON_CPU
from rea2seg.errors import CheckpointError
from rea2seg.evaluators.weights import load_internvl
from tests.evaluators.conftest import byte_level_tokenizer, tiny_internvl


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 3)
    save_file({"weigth": torch.zeros(3, 2), "bias": torch.zeros(1)}, tmp_path / "layer.safetensors")
    with pytest.raises(CheckpointError) as error:
        fill(layer, tmp_path / "layer.safetensors")
    faults = "missing tensors: weight; unexpected tensors: weigth; mismatched tensors: bias [1] instead of [3]"
    told = f"{tmp_path / 'layer.safetensors'} has {faults}: download it again, or name the config that is made for it"
    assert str(error.value) == told


def test_loading_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = byte_level_tokenizer()
    model = tiny_internvl(tokenizer)
    with quiet():
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=r".*language_model.*\.q_proj"))
        adapted.save_pretrained(tmp_path / "adapter")
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_internvl(tmp_path, tmp_path / "adapter")
    assert capfd.readouterr() == ("", "")


def test_a_checkpoint_with_faults_is_told_by_the_error_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = tiny_internvl(byte_level_tokenizer())
    with quiet():
        model.save_pretrained(tmp_path)
    save_file({"surplus": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    capfd.readouterr()
    with pytest.raises(CheckpointError, match=r"missing tensors: .* more; unexpected tensors: surplus"):
        native_blueprint(InternVLForConditionalGeneration, tmp_path).load(ON_CPU)
    assert capfd.readouterr() == ("", "")


def test_quiet_ends_with_its_block() -> None:
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    with quiet():
        assert not logging.is_progress_bar_enabled()
    assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == (bars, verbosity)
