"""LENS's files, and what is refused in their place."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rea2seg.checkpoints import lens
from rea2seg.checkpoints.lens import lens_plan
from rea2seg.devices import ON_CPU
from rea2seg.errors import CheckpointError
from rea2seg.generator.lens import Parts, load
from tests.public.lens import PUBLIC, extra_shapes, qwen_shapes, write_config, write_lens, write_tokenizer

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
AGAIN = "download it again, or name the config that is made for it"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_lens(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Parts, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("lens")
    raw = write_lens(folder)
    return load(folder, ON_CPU), raw


def change(file: Path, **values: object) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | values))


def alter(file: Path, surplus: dict[str, Tensor] | None = None, without: str = "") -> None:
    tensors = {name: tensor for name, tensor in load_file(file).items() if not without or without not in name}
    save_file(tensors | (surplus or {}), file, metadata={"format": "pt"})


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        lens_plan(folder).mllm.check()
    assert "\n" not in str(error.value)
    return str(error.value)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    tensors = other.state_dict()
    return all(torch.equal(tensor, tensors[name]) for name, tensor in one.state_dict().items())


def test_every_tensor_is_put_in_its_place(parts: tuple[Parts, dict[str, Tensor]]) -> None:
    loaded, raw = parts
    assert torch.equal(loaded.mllm.lm_head.weight, raw["model.embed_tokens.weight"].float())
    language, vision = loaded.mllm.model.language_model.state_dict(), loaded.mllm.model.visual.state_dict()
    placed = {f"model.{name}": tensor for name, tensor in language.items()}
    placed |= {f"visual.{name}": tensor for name, tensor in vision.items()}
    placed |= loaded.connector.state_dict()
    assert placed.keys() == raw.keys()
    assert all(torch.equal(tensor, raw[name].float()) for name, tensor in placed.items())
    assert not loaded.mllm.training
    assert not loaded.connector.training


def test_the_nested_layout_in_three_shards_with_a_sam_is_the_same_model(
    parts: tuple[Parts, dict[str, Tensor]], tmp_path: Path
) -> None:
    written = write_lens(tmp_path, 3, "nested", sam={"no_mem_embed": torch.zeros(1, 1, 256)})
    assert "model.language_model.norm.weight" in written
    loaded = load(tmp_path, ON_CPU)
    assert same(loaded.mllm, parts[0].mllm)
    assert same(loaded.connector, parts[0].connector)


def test_the_config_is_read_as_that_of_a_qwen2_5_vl(folder: Path) -> None:
    config = lens_plan(folder).mllm.config
    text, vision = config.text_config, config.vision_config
    assert (text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads) == (36, 16, 2)
    assert (text.rms_norm_eps, text.rope_parameters["rope_theta"]) == (1e-6, 1e6)
    assert text.rope_parameters["mrope_section"] == [1, 1, 2]
    assert (vision.depth, vision.window_size, vision.fullatt_block_indexes) == (32, 112, [7, 15, 23, 31])
    assert (vision.hidden_size, vision.hidden_act, vision.out_hidden_size) == (64, "silu", 128)
    assert config.tie_word_embeddings


def test_a_stored_output_layer_counts_only_where_it_is_not_the_embedding(folder: Path) -> None:
    alter(folder / SECOND, {"lm_head.weight": torch.ones(384, 128)})
    plan = lens_plan(folder).mllm
    assert plan.config.tie_word_embeddings
    assert "lm_head.weight" not in plan.tensors
    change(folder / "config.json", tie_word_embeddings=False)
    untied = load(folder, ON_CPU).mllm
    assert torch.equal(untied.lm_head.weight, torch.ones(384, 128))
    assert not torch.equal(untied.lm_head.weight, untied.get_input_embeddings().weight)


def test_the_public_names_and_shapes_are_exactly_what_is_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At true size on the meta device: 824 tensors of Qwen2.5-VL-3B and LENS's 56."""
    shapes = qwen_shapes(PUBLIC) | extra_shapes(PUBLIC)
    assert (len(qwen_shapes(PUBLIC)), len(extra_shapes(PUBLIC))) == (824, 56)
    stored = {name: torch.empty(shape, dtype=torch.bfloat16, device="meta") for name, shape in shapes.items()}
    write_config(tmp_path, PUBLIC, write_tokenizer(tmp_path))
    monkeypatch.setattr(lens, "stored_tensors", lambda _: stored)
    plan = lens_plan(tmp_path)
    model = plan.mllm.check()
    assert sum(weight.numel() for weight in model.parameters()) == 3_754_622_976
    assert plan.connector.keys() == extra_shapes(PUBLIC).keys()
    assert plan.connector["conv_1d.weight"].shape == (2048, 2048, 64)
    del stored["model.layers.35.self_attn.k_proj.bias"]
    assert "missing tensors: model.layers.35.self_attn.k_proj.bias:" in refusal(tmp_path)


def test_a_qwen2_vl_is_refused(folder: Path) -> None:
    alter(folder / SECOND, {"visual.blocks.0.mlp.fc1.weight": torch.zeros(4, 4)})
    told = f"{folder} is built on Qwen2-VL (it has visual.blocks.0.mlp.fc1.weight)"
    assert refusal(folder) == f"{told}: use the weights of LENS that are built on Qwen2.5-VL"


def test_the_norms_of_a_qwen2_vl_are_refused_too(tmp_path: Path) -> None:
    write_lens(tmp_path, layout="nested")
    alter(tmp_path / SECOND, {"model.visual.blocks.31.norm1.bias": torch.zeros(64)})
    assert "is built on Qwen2-VL (it has model.visual.blocks.31.norm1.bias)" in refusal(tmp_path)


def test_a_plain_qwen2_5_vl_is_refused(folder: Path) -> None:
    alter(folder / SECOND, without="learnable_query")
    told = "it is not a LENS, but perhaps the Qwen2.5-VL it began with; use LENS's weights"
    assert refusal(folder) == f"{folder} has no learnable_query: {told}"


def test_a_missing_shard_is_told(folder: Path) -> None:
    (folder / SECOND).unlink()
    told = f"{folder} lacks {SECOND}, which model.safetensors.index.json names"
    assert refusal(folder) == f"{told}: download what is missing"


def test_a_cut_off_file_is_told(folder: Path) -> None:
    whole = (folder / FIRST).read_bytes()
    (folder / FIRST).write_bytes(whole[: len(whole) // 2])
    assert refusal(folder).startswith(f"{folder / FIRST} is damaged or cut off: download it again (")


def test_missing_and_surplus_tensors_are_told_under_their_stored_names(folder: Path) -> None:
    alter(folder / FIRST, without="model.layers.7.input_layernorm")
    alter(folder / SECOND, {"model.layers.36.extra": torch.zeros(1), "visual.merger.mlp.3.bias": torch.zeros(1)})
    missing, surplus = "model.layers.7.input_layernorm.weight", "model.layers.36.extra, visual.merger.mlp.3.bias"
    assert refusal(folder) == f"{folder} has missing tensors: {missing}; unexpected tensors: {surplus}: {AGAIN}"


def test_a_connector_that_lacks_a_block_or_has_one_too_many_is_told(folder: Path) -> None:
    alter(folder / SECOND, {"connector.blocks.4.norm1.bias": torch.zeros(128)}, without="connector.blocks.2.norm1.bias")
    missing, surplus = "connector.blocks.2.norm1.bias", "connector.blocks.4.norm1.bias"
    assert refusal(folder) == f"{folder} has missing tensors: {missing}; unexpected tensors: {surplus}: {AGAIN}"


@pytest.mark.parametrize("said", [32, "64", True, [64]])
def test_another_number_of_queries_than_is_stored_is_told(folder: Path, said: object) -> None:
    change(folder / "config.json", num_of_query=said)
    told = f"{folder / 'config.json'} says num_of_query {said!r}, where learnable_query holds 64"
    assert refusal(folder) == f"{told}: take it from the checkpoint"


def test_the_number_of_queries_is_that_of_the_stored_ones(folder: Path) -> None:
    change(folder / "config.json", num_of_query=None)
    assert lens_plan(folder).queries == 64


def test_queries_of_another_shape_are_told(folder: Path) -> None:
    alter(folder / SECOND, {"learnable_query": torch.zeros(64, 128)})
    told = f"{folder} has learnable_query of shape [64, 128] instead of [1, queries, width]"
    assert refusal(folder) == f"{told}: download it again"


@pytest.mark.parametrize(
    ("scaling", "found"),
    [
        (None, None),
        ({"type": "default"}, None),
        ({"type": "mrope", "mrope_section": [16, 24, 24]}, [16, 24, 24]),
        ({"type": "mrope", "mrope_section": [2, 2]}, [2, 2]),
        ({"type": "mrope", "mrope_section": "112"}, "112"),
    ],
)
def test_positions_that_do_not_share_half_a_head_are_told(folder: Path, scaling: object, found: object) -> None:
    change(folder / "config.json", rope_scaling=scaling)
    told = f"mrope_section {found!r} under rope_scaling, not three whole numbers that sum to half a head's width"
    assert refusal(folder) == f"{folder / 'config.json'} has {told}: take it from the checkpoint"


def test_the_sections_are_also_read_where_newer_versions_write_them(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    rope = {"rope_type": "default", "rope_theta": values.pop("rope_theta"), **values.pop("rope_scaling")}
    (folder / "config.json").write_text(json.dumps(values | {"rope_parameters": rope}))
    found = lens_plan(folder).mllm.config.text_config.rope_parameters
    assert (found["mrope_section"], found["rope_theta"]) == ([1, 1, 2], 1e6)


def test_a_vocabulary_of_another_size_is_told(folder: Path) -> None:
    change(folder / "config.json", vocab_size=400)
    wrong = "model.embed_tokens.weight [384, 128] instead of [400, 128]"
    assert refusal(folder) == f"{folder} has mismatched tensors: {wrong}: {AGAIN}"


def test_a_tokenizer_with_more_tokens_than_the_model_is_told(folder: Path) -> None:
    change(folder / "config.json", vocab_size=300)
    told = f"the tokenizer in {folder} has 326 tokens, the model only 300"
    assert refusal(folder) == f"{told}: take both from one checkpoint"


def test_a_tokenizer_without_the_image_token_is_told(folder: Path) -> None:
    write_tokenizer(folder, without="image_pad")
    told = f"the tokenizer in {folder} has no <|image_pad|>"
    assert refusal(folder) == f"{told}: take the tokenizer's files from the checkpoint"


def test_a_tokenizer_that_gives_the_image_token_another_id_is_told(folder: Path) -> None:
    write_tokenizer(folder, without="quad_end")
    told = f"to the tokenizer in {folder} <|image_pad|> is 315, to the model it is 316"
    assert refusal(folder) == f"{told}: take both from one checkpoint"


def test_a_config_that_says_too_little_is_told(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    del values["rms_norm_eps"], values["vision_config"]["out_hidden_size"]
    (folder / "config.json").write_text(json.dumps(values))
    told = f"{folder / 'config.json'} does not say rms_norm_eps, vision_config.out_hidden_size"
    assert refusal(folder) == f"{told}: take it from the checkpoint"


@pytest.mark.parametrize("wrong", [{"num_hidden_layers": "many"}, {"rope_scaling": 3}, {"vision_config": 3}])
def test_a_config_with_nonsense_in_it_is_refused_in_one_line(folder: Path, wrong: dict[str, object]) -> None:
    change(folder / "config.json", **wrong)
    told = refusal(folder)
    assert str(folder / "config.json") in told
    assert told.endswith(": take it from the checkpoint")
