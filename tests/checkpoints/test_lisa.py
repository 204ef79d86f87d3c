"""What a LISA, READ or SESAME on disk must be, name by name at true size, and what is said of one that is not."""

# First: it makes torchvision, which transformers imports, usable beside a CPU-only torch.
import rea2seg  # noqa: F401

# isort: split
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from rea2seg.checkpoints.lisa import CONNECTOR, SEGMENTER, lisa_plan
from rea2seg.checkpoints.stored import stored_tensors, under, without
from rea2seg.devices import ON_CPU
from rea2seg.errors import CheckpointError
from rea2seg.findings import Finding
from rea2seg.generator.lisa import Lisa
from tests.public.lisa import LISA_7B, READ_7B, TRUE, lisa_config, true_tensors, write_clip, write_lisa
from tests.public.llama import write_tokenizer
from tests.public.shards import write_shards


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lisa")
    return folder, write_lisa(folder, LISA_7B), write_clip(folder / "clip", 224)


@pytest.fixture
def copy(written, tmp_path):
    """A checkpoint to spoil; files are linked until they are written anew."""
    folder = tmp_path / "LISA-7B-v1"
    shutil.copytree(written[0], folder, copy_function=lambda source, target: Path(target).symlink_to(source))
    return folder


def replace(file: Path, content: str | bytes) -> None:
    file.unlink()
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        examined(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def examined(folder: Path) -> list[Finding]:
    found = list(Lisa.examine(str(folder), vision_tower=str(folder / "clip")))
    return [one for one in found if isinstance(one, Finding)]


# True size


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        (TRUE["LISA-7B-v1"], 891),
        (TRUE["LISA-13B-llama2-v1"], 963),
        (TRUE["READ-7B"], 893),  # and SESAME-7B
        (TRUE["READ-13B"], 965),
    ],
)
def test_at_true_size_every_name_and_shape_is_what_the_loader_expects(sizes, count, tmp_path, monkeypatch):
    stored, clip, text, vision = true_tensors(sizes)
    assert len(stored) == count
    assert len(under(SEGMENTER, stored)) == 457 + 17 + 120
    stored["model.norm.weight"] = torch.ones(text.hidden_size)  # whose values are looked at
    config = lisa_config(READ_7B) | text.to_dict() | {"vision_tower": "", "mm_vision_tower": ""}
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_tokenizer(tmp_path, list(READ_7B.added))
    (tmp_path / "clip").mkdir()
    clip_config = {"model_type": "clip", "vision_config": vision.to_dict()}
    (tmp_path / "clip" / "config.json").write_text(json.dumps(clip_config))
    monkeypatch.setattr("rea2seg.checkpoints.lisa.stored_tensors", {tmp_path: stored, tmp_path / "clip": clip}.get)
    assert examined(tmp_path)[0].check == "tensors"
    # And nothing else will do.
    del stored["model.layers.31.mlp.down_proj.weight"]
    assert "missing tensors: model.layers.31.mlp.down_proj.weight:" in refusal(tmp_path)


# What is not as it should be


def test_a_whole_checkpoint_passes(copy):
    told = {found.check: found.detail for found in examined(copy)}
    assert told["ids"] == "[SEG] is 32003 of 32004"
    assert told["image"] == "224 px become 256 tokens"
    assert told["tensors"].endswith("all fit")


def test_what_the_conversation_needs_is_looked_for_before_anything_loads(copy):
    for name in ("added_tokens.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model"):
        (copy / name).unlink()
    write_tokenizer(copy, ["<im_patch>", "<start>", "<im_end>", "[SEG]"])
    told = "the tokenizer has no added token '<im_start>': use the template it was trained with"
    assert refusal(copy) == told
    with pytest.raises(CheckpointError) as caught:
        Lisa(copy, vision_tower=copy / "clip", placement=ON_CPU)
    assert str(caught.value) == told


def test_a_missing_shard_is_named(copy):
    (copy / "pytorch_model-00002-of-00002.bin").unlink()
    told = "which pytorch_model.bin.index.json names: download what is missing"
    assert refusal(copy) == f"{copy} lacks pytorch_model-00002-of-00002.bin, {told}"


def test_a_shard_that_is_cut_off_is_named(copy, written):
    file = copy / "pytorch_model-00002-of-00002.bin"
    whole = (written[0] / file.name).read_bytes()
    replace(file, whole[: len(whole) // 2])
    assert refusal(copy).startswith(f"{file} is damaged or cut off: download it again (")


def test_a_pickle_of_more_than_tensors_is_not_read(copy):
    file = copy / "pytorch_model-00001-of-00002.bin"
    replace(file, pickle.dumps({"model.norm.weight": Path("anything")}))
    told = "is a pickle of more than tensors, or damaged, and is not read: get the weights as safetensors"
    assert refusal(copy) == f"{file} {told}"


def rewritten(copy, state):
    for file in copy.glob("pytorch_model*"):
        file.unlink()
    write_shards(copy, state, ending="bin")


DO = "download it again, or name the config that is made for it"


def test_surplus_and_missing_keys_are_named_as_the_checkpoint_names_them(copy, written):
    state = dict(written[1])
    state["model.surplus.weight"] = state.pop("model.layers.17.mlp.up_proj.weight")
    rewritten(copy, state)
    faults = "missing tensors: model.layers.17.mlp.up_proj.weight; unexpected tensors: model.surplus.weight"
    assert refusal(copy) == f"{copy} has {faults}: {DO}"


def test_a_vocabulary_of_another_size_is_told_by_the_shapes(copy):
    config = json.loads((copy / "config.json").read_text())
    replace(copy / "config.json", json.dumps(config | {"vocab_size": 32_010}))
    rows = "[32004, 64] instead of [32010, 64]"
    faults = f"mismatched tensors: lm_head.weight {rows}, model.embed_tokens.weight {rows}"
    assert refusal(copy) == f"{copy} has {faults}: {DO}"


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(copy):
    for name in ("added_tokens.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model"):
        (copy / name).unlink()
    write_tokenizer(copy, [*LISA_7B.added, "<one more>"])
    told = "has 32005 tokens, the model only 32004: take both from one checkpoint"
    assert refusal(copy) == f"the tokenizer in {copy} {told}"


def test_a_tokenizer_without_seg_is_refused(copy):
    (copy / "added_tokens.json").unlink()
    told = "has no [SEG]: take the tokenizer's files from the checkpoint"
    assert refusal(copy) == f"the tokenizer in {copy} {told}"


def test_version_0_is_refused(copy, written):
    rewritten(copy, {f"lm.{name}": weight for name, weight in written[1].items()})
    told = "is a LISA of version 0 (it has lm.lm_head.weight): use one of version 1, LISA-7B-v1"
    assert refusal(copy) == f"{copy} {told}"


def test_delta_weights_are_refused(copy, written):
    delta = {name: weight - 1 if "norm" in name else weight for name, weight in written[1].items()}
    delta["model.norm.weight"] = 0.01 * delta["model.norm.weight"]
    rewritten(copy, delta)
    told = "holds delta weights (model.norm.weight is near 0): add them to their base first"
    assert refusal(copy) == f"{copy} {told}"


def test_a_llava_without_connector_is_refused(copy, written):
    rewritten(copy, without((CONNECTOR,), written[1]))
    told = "is no LISA (it has no model.text_hidden_fcs.*, and config.json says ['LISAForCausalLM'])"
    assert refusal(copy) == f"{copy} {told}: use the weights of LISA, READ or SESAME"


def test_the_vision_tower_must_be_given_and_be_the_one_of_the_training(copy, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        lisa_plan(copy)
    told = "comes without its vision tower: give a folder of openai/clip-vit-large-patch14 as vision_tower"
    assert str(caught.value) == f"{copy} {told}"
    write_clip(tmp_path / "other", 336)
    with pytest.raises(CheckpointError) as caught:
        lisa_plan(copy, tmp_path / "other")
    told = f"sees 336 px, and {copy} was trained on openai/clip-vit-large-patch14: download that one"
    assert str(caught.value) == f"{tmp_path / 'other'} {told}"


@pytest.mark.parametrize("named", ["./vision/openai/clip-vit-large-patch14", "openai/clip-vit-large-patch14"])
def test_a_tower_that_is_named_by_a_path_is_known_too(copy, tmp_path, named):
    config = json.loads((copy / "config.json").read_text())
    replace(copy / "config.json", json.dumps(config | {"mm_vision_tower": named}))
    write_clip(tmp_path / "other", 336)
    with pytest.raises(CheckpointError, match="sees 336 px"):
        lisa_plan(copy, tmp_path / "other")


def test_a_lisa_given_as_the_tower_is_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    replace(copy / "config.json", json.dumps(config | {"mm_vision_tower": "", "vision_tower": ""}))
    with pytest.raises(CheckpointError) as caught:
        lisa_plan(copy, copy)
    told = "is no CLIP (it has no vision_model.*): download openai/clip-vit-large-patch14 or -336"
    assert str(caught.value) == f"{copy} {told}"


def test_a_folder_that_is_no_clip_is_refused(copy, tmp_path):
    (tmp_path / "config.json").write_text('{"vision_config": null}')
    with pytest.raises(CheckpointError) as caught:
        lisa_plan(copy, tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'} is not that of a CLIP (")
    assert str(caught.value).endswith("): download openai/clip-vit-large-patch14 or -336")


@pytest.mark.parametrize("wrong", [{"rms_norm_eps": "1e-6"}, {"mm_vision_select_layer": "-2"}])
def test_values_of_another_type_are_refused_in_a_line(copy, wrong):
    config = json.loads((copy / "config.json").read_text())
    replace(copy / "config.json", json.dumps(config | wrong))
    assert refusal(copy).startswith(f"{copy / 'config.json'} is not that of a LLaVA (")
    assert refusal(copy).endswith("): take it from the checkpoint")


def test_positions_of_a_longer_context_are_taken_over(copy):
    config = json.loads((copy / "config.json").read_text())
    replace(copy / "config.json", json.dumps(config | {"rope_theta": 5e5}))
    text = lisa_plan(copy, copy / "clip").mllm.config.text_config
    assert text.rope_parameters["rope_theta"] == 5e5


def test_a_config_without_its_numbers_is_refused(copy):
    replace(copy / "config.json", json.dumps({"architectures": ["LISAForCausalLM"], "vision_tower": "x"}))
    missing = "hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, vocab_size"
    assert refusal(copy) == f"{copy / 'config.json'} does not say {missing}: take it from the checkpoint"


def test_safetensors_in_shards_without_an_index_are_found_and_counted(tmp_path):
    state = write_lisa(tmp_path, READ_7B)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert stored_tensors(tmp_path).keys() == state.keys()
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        stored_tensors(tmp_path)
    told = "which the names of the others count: download what is missing"
    assert str(caught.value) == f"{tmp_path} lacks model-00001-of-00002.safetensors, {told}"
