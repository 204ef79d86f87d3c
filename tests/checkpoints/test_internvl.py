"""InternVL's original layout: every public size fits by name and shape, and what does not fit is told in one line."""

# First: it makes torchvision usable beside a CPU-only torch.
import rea2seg  # noqa: F401

# isort: split
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import InternVLForConditionalGeneration

from rea2seg.checkpoints.internvl import internvl_plan, original_blueprint, original_config
from rea2seg.checkpoints.strict import load_tokenizer
from rea2seg.devices import ON_CPU
from rea2seg.errors import CheckpointError
from rea2seg.text import control_ids, encode_untrusted
from tests.public import internvl as public
from tests.public.internvl import ADDED, ID, NARROW, TRUE, edit_json, write_internvl

FAULTY = "download it again, or name the config that is made for it"


@pytest.mark.parametrize("size", ["1B", "2B", "8B", "38B"])
def test_every_tensor_of_a_public_model_has_its_place(size: str) -> None:
    sizes = TRUE[size]
    stored = {name: torch.empty(shape, device="meta") for name, shape in public.original_shapes(sizes).items()}
    config = original_config(public.original_config(sizes), Path("config.json"))
    model = original_blueprint(config, stored, Path(size)).check()
    assert isinstance(model, InternVLForConditionalGeneration)
    assert sum(value.numel() for value in model.parameters()) == sum(value.numel() for value in stored.values())
    assert round(sum(value.numel() for value in model.parameters()) / 1e9) == int(size[:-1])
    assert config.text_config.rope_parameters["rope_theta"] == 1e6
    assert model.model.vision_tower.layernorm.__class__ is torch.nn.Identity


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_internvl(tmp_path)


@pytest.mark.parametrize("layout", ["original", "native"])
def test_a_description_holds_the_image_token_and_no_weights(layout: public.Layout, tmp_path: Path) -> None:
    blueprint = internvl_plan(write_internvl(tmp_path, layout)).model
    assert blueprint.config.image_token_id == ID["<IMG_CONTEXT>"]
    assert {value.device.type for value in blueprint.check().parameters()} == {"meta"}


@pytest.mark.parametrize("head", [True, False])
def test_tied_embeddings_need_no_head_of_their_own(head: bool, tmp_path: Path) -> None:
    stored = public.original_tensors(head=False)
    words = stored["language_model.model.embed_tokens.weight"]
    if head:
        stored["language_model.lm_head.weight"] = words.clone()
    model = internvl_plan(write_internvl(tmp_path, tensors=stored, tied=True)).model.load(ON_CPU)
    assert model.lm_head.weight.equal(words)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_a_head_of_its_own_is_kept_where_the_config_says_tied(tmp_path: Path) -> None:
    stored = public.original_tensors()
    model = internvl_plan(write_internvl(tmp_path, tensors=stored, tied=True)).model.load(ON_CPU)
    assert model.lm_head.weight.equal(stored["language_model.lm_head.weight"])
    assert model.get_input_embeddings().weight.equal(stored["language_model.model.embed_tokens.weight"])


def test_a_pickle_of_tensors_is_read(tmp_path: Path) -> None:
    for file in write_internvl(tmp_path).glob("*.safetensors*"):
        file.unlink()
    torch.save(public.original_tensors(), tmp_path / "pytorch_model.bin")
    read = internvl_plan(tmp_path).model.load(ON_CPU)
    assert read.lm_head.weight.equal(public.original_tensors()["language_model.lm_head.weight"])


@pytest.mark.parametrize("files", ["slow", "added", "fast"])
def test_the_tokenizer_is_the_same_from_any_of_its_files(files: public.TokenizerFiles, tmp_path: Path) -> None:
    public.write_tokenizer(tmp_path, files)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.get_added_vocab() == ID
    assert control_ids(tokenizer) == frozenset(ID.values())
    assert tokenizer.convert_tokens_to_ids(list(ADDED)) == [ID[name] for name in ADDED]
    assert tokenizer.eos_token_id == ID["<|im_end|>"]
    assert len(tokenizer) == NARROW.vocabulary
    text = "Scores: [0.91]\n\n  What's the  question's mask, Äpfel 好?"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    plain = public.letters().encode(text).ids
    assert tokenizer.encode(text) == plain == encode_untrusted(tokenizer, text)
    spoken = f"<|im_start|>{text}<img><IMG_CONTEXT><IMG_CONTEXT></img><|im_end|>"
    slots = [ID["<IMG_CONTEXT>"]] * 2
    wanted = [ID["<|im_start|>"], *plain, ID["<img>"], *slots, ID["</img>"], ID["<|im_end|>"]]
    assert tokenizer.encode(spoken) == wanted
    assert not control_ids(tokenizer).intersection(encode_untrusted(tokenizer, spoken))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        internvl_plan(folder).model.check()
    return str(error.value)


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()
    index = "model.safetensors.index.json"
    lacking = "model-00002-of-00002.safetensors"
    assert refusal(folder) == f"{folder} lacks {lacking}, which {index} names: download what is missing"


def test_a_file_that_was_cut_off_is_named(folder: Path) -> None:
    file = folder / "model-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(file))} is damaged or cut off: download it again \("):
        internvl_plan(folder)


def test_surplus_and_missing_tensors_are_named_as_they_are_stored(tmp_path: Path) -> None:
    stored = public.original_tensors()
    del stored["vision_model.encoder.layers.7.attn.qkv.bias"], stored["language_model.lm_head.weight"]
    stored |= {"vision_model.encoder.layers.24.ls1": torch.zeros(32), "language_model.model.rotary": torch.zeros(1)}
    stored["vision_model.encoder.layers.23.ls2"] = torch.zeros(31)
    write_internvl(tmp_path, tensors=stored)
    missing = "language_model.lm_head.weight, " + ", ".join(
        f"vision_model.encoder.layers.7.attn.qkv.bias[{letter}]" for letter in "kq"
    )
    surplus = "language_model.model.rotary, vision_model.encoder.layers.24.ls1"
    misshapen = "vision_model.encoder.layers.23.ls2 [31] instead of [32]"
    faults = f"missing tensors: {missing} and 1 more; unexpected tensors: {surplus}; mismatched tensors: {misshapen}"
    assert refusal(tmp_path) == f"{tmp_path} has {faults}: {FAULTY}"


def test_another_vocabulary_than_the_config_s_is_told(folder: Path) -> None:
    edit_json(folder / "config.json", lambda values: values["llm_config"].update(vocab_size=400))
    shape = f"[{NARROW.vocabulary}, 32] instead of [400, 32]"
    names = f"language_model.lm_head.weight {shape}, language_model.model.embed_tokens.weight {shape}"
    assert refusal(folder) == f"{folder} has mismatched tensors: {names}: {FAULTY}"


def test_a_tokenizer_of_another_model_is_told(folder: Path) -> None:
    public.write_tokenizer(folder, left_out="<IMG_CONTEXT>")
    told = "has no <IMG_CONTEXT>: take the tokenizer's files from the checkpoint"
    assert refusal(folder) == f"the tokenizer in {folder} {told}"
    public.write_tokenizer(folder)
    edit_json(folder / "config.json", lambda values: values["llm_config"].update(vocab_size=ID["<IMG_CONTEXT>"]))
    told = f"has {NARROW.vocabulary} tokens, the model only {ID['<IMG_CONTEXT>']}: take both from one checkpoint"
    assert refusal(folder) == f"the tokenizer in {folder} {told}"


QWEN_ONLY = "where only ['Qwen2ForCausalLM'] is known: take an InternVL3 of 1B, 2B, 8B or 14B"


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        (
            "llm_config",
            {"architectures": ["InternLM2ForCausalLM"]},
            "a language model of ['InternLM2ForCausalLM'], " + QWEN_ONLY,
        ),
        ("llm_config", {"architectures": None}, "a language model of None, " + QWEN_ONLY),
        (None, {"vision_config": None}, "no vision_config: download it again"),
        (None, {"ps_version": "v1"}, "ps_version 'v1', where only 'v2' is known: take another InternVL3"),
        (None, {"select_layer": -4}, "select_layer -4, where only -1 is known: take another InternVL3"),
        (
            None,
            {"use_llm_lora": 16},
            "use_llm_lora 16, a LoRA that is not merged: merge it first with InternVL's tools/merge_lora.py",
        ),
        (
            None,
            {"use_backbone_lora": 8},
            "use_backbone_lora 8, a LoRA that is not merged: merge it first with InternVL's tools/merge_lora.py",
        ),
        (
            None,
            {"force_image_size": 224},
            "force_image_size 224, and vision_config.image_size 448: take another InternVL3, where they agree",
        ),
        (
            "vision_config",
            {"norm_type": "batch_norm"},
            "norm_type 'batch_norm', where only layer_norm and rms_norm are known: take another InternVL3",
        ),
    ],
)
def test_a_config_of_another_model_is_told(folder: Path, part: str | None, change: dict[str, Any], told: str) -> None:
    edit_json(folder / "config.json", lambda values: (values[part] if part else values).update(change))
    assert refusal(folder) == f"{folder / 'config.json'} has {told}"


def test_a_config_with_values_of_another_kind_is_told(folder: Path) -> None:
    edit_json(folder / "config.json", lambda values: values["llm_config"].update(hidden_size="wide"))
    file = re.escape(str(folder / "config.json"))
    with pytest.raises(
        CheckpointError, match=rf"^{file} does not fit InternVLForConditionalGeneration \(.*hidden_size"
    ) as told:
        internvl_plan(folder)
    assert "\n" not in str(told.value)
    assert str(told.value).endswith("): take it from the checkpoint")


@pytest.mark.parametrize("size", [None, 0, 448])
def test_an_image_size_that_is_not_forced_or_agrees_is_welcome(folder: Path, size: int | None) -> None:
    edit_json(folder / "config.json", lambda values: values.update(force_image_size=size))
    assert internvl_plan(folder).model.config.vision_config.image_size == (448, 448)


def test_another_architecture_is_told(folder: Path) -> None:
    edit_json(folder / "config.json", lambda values: values.update(architectures=["LlavaLlamaForCausalLM"]))
    kind = "not for InternVLForConditionalGeneration in transformers' native layout"
    mend = "name the folder of such a model, or the config that is made for this one"
    assert refusal(folder) == f"{folder / 'config.json'} is made for ['LlavaLlamaForCausalLM'], {kind}: {mend}"


class Trap:
    """A pickle of it would run code."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("run",)


def test_a_pickle_of_more_than_tensors_is_not_read(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    file = folder / "pytorch_model.bin"
    torch.save({"weight": torch.zeros(1), "more": Trap()}, file)
    assert (
        refusal(folder)
        == f"{file} is a pickle of more than tensors, or damaged, and is not read: get the weights as safetensors"
    )
    torch.save({"weight": torch.zeros(1), "step": 3}, file)
    assert refusal(folder) == f"{file} is not a table of tensors: name the weights of a model, not of a training"
    assert capfd.readouterr() == ("", "")
