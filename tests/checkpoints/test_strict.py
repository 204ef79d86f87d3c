"""What every seat's weights go through; the seats' own tests say what each of them refuses."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import InternVLForConditionalGeneration, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from rea2seg.checkpoints.strict import Blueprint, fill, load_tokenizer, native_blueprint, quiet, read_json
from rea2seg.config import package_path
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


# What is said of files beside the weights


def told_by(read, *given) -> str:
    with pytest.raises(CheckpointError) as error:
        read(*given)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_table_that_is_not_there_is_told_from_one_that_is_damaged(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for folder in (tmp_path / "nowhere", Path(__file__)):
        told = f"{folder} is no folder that exists: name one with config.json"
        assert told_by(read_json, folder / "config.json") == told
    assert told_by(read_json, file) == f"{file} does not exist: download it, or name the folder of a whole model"
    again = "download it again"
    for content, fault in (
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b'{"a": ', "Expecting value: line 1 column 7 (char 6)"),
        (b"\xff", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b"[1]", "it is not a table of values"),
    ):
        file.write_bytes(content)
        assert told_by(read_json, file) == f"{file} is damaged ({fault}): {again}"
    file.write_text("[" * 100_000)
    assert told_by(read_json, file).startswith(f"{file} is damaged (maximum recursion depth exceeded")
    file.unlink()
    file.mkdir()
    told = f"{file} cannot be read (Is a directory): change its permissions, or {again}"
    assert told_by(read_json, file) == told


@pytest.mark.parametrize("content", [b"", b"3", b"{}", b"[1]", b'{"model": '])
@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "tokenizer_config.json"])
def test_a_tokenizer_that_is_damaged_is_told(tmp_path: Path, name: str, content: bytes) -> None:
    with quiet():
        byte_level_tokenizer().save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(content)
    if name == "vocab.json":
        (tmp_path / "tokenizer.json").unlink()
        (tmp_path / "merges.txt").write_text("a b\n")
    if (name, content) == ("tokenizer_config.json", b"{}"):
        assert len(load_tokenizer(tmp_path)) > 0
        return
    told = told_by(load_tokenizer, tmp_path)
    assert told.startswith(f"the tokenizer in {tmp_path} cannot be loaded (")
    assert told.endswith("): download its files again")


def test_a_config_of_another_kind_or_with_other_values_is_told(tmp_path: Path) -> None:
    values = json.loads((package_path("rea2seg://mini/v4/evaluator") / "config.json").read_text())
    file = tmp_path / "config.json"
    for change, told in (
        ({"architectures": ["Other"]}, "is made for ['Other'], not for InternVLForConditionalGeneration in "),
        ({"dtype": "strange"}, "does not fit InternVLForConditionalGeneration (module 'torch' has no attribute 'str"),
        ({"image_token_id": "x"}, "does not fit InternVLForConditionalGeneration (Validation error for field"),
    ):
        file.write_text(json.dumps(values | change))
        message = told_by(native_blueprint, InternVLForConditionalGeneration, tmp_path)
        assert message.startswith(f"{file} {told}")
        mend = "name the folder of such a model, or the config that is made for this one"
        fits = "download it again, or name the config that is made for it"
        assert message.endswith(f": {mend if 'architectures' in change else fits}")


class Failing(LlamaForCausalLM):
    """A model whose loading fails."""

    fault: Exception = RuntimeError()

    @classmethod
    def from_pretrained(cls, *_: object, **__: object) -> None:
        raise cls.fault


def too_large() -> Exception:
    """What PyTorch itself raises where the computer's memory does not suffice."""
    with pytest.raises(RuntimeError) as told:
        torch.empty(1 << 50)
    return told.value


def test_a_model_that_cannot_be_loaded_is_told_and_running_out_of_memory_is_not_its_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blueprint = Blueprint(Failing, LlamaConfig(), {}, tmp_path)
    monkeypatch.setattr(Failing, "fault", RuntimeError("size 3\nis odd"))
    mend = "download it again, or name the config that is made for it"
    assert told_by(blueprint.check) == f"{tmp_path} cannot be loaded as Failing (size 3 is odd): {mend}"
    for fault in (torch.OutOfMemoryError("CUDA out of memory"), too_large()):
        monkeypatch.setattr(Failing, "fault", fault)
        with pytest.raises(type(fault), match=r"out of memory|allocate memory"):
            blueprint.check()
