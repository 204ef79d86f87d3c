"""What a folder of weights becomes: quantised or not, with an adapter merged into it or beside it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

from rea2seg.config import load_config, package_path
from rea2seg.devices import Placement
from rea2seg.errors import CheckpointError
from rea2seg.evaluators.internvl import InternVL
from rea2seg.evaluators.prompts import SHORT
from rea2seg.evaluators.weights import load_internvl
from rea2seg.structures import Candidate, Query
from rea2seg.synth import SgdrSynth
from tests.evaluators.conftest import tiny_internvl
from tests.public.internvl import edit_json
from training.evaluator import LANGUAGE_LAYERS

MINI = package_path("rea2seg://mini/v4") / "evaluator"
QUERY_AND_GATE = r".*language_model\.layers\.\d+\.(self_attn\.q_proj|mlp\.gate_proj)"


@pytest.fixture(scope="module")
def base(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    # bitsandbytes quantises blocks of 64 weights; where it computes in bfloat16, a row must hold one.
    tiny_internvl(tokenizer, width=64).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SIDE = load_config("mini").seats["selector"]["init_args"]["evaluator"]["init_args"]["image_side"]
SURE = 2
"""A scene whose answer mini is sure of."""


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], InternVL]:
    """Mini's evaluator in a precision, with an adapter on all language layers that changes little."""
    adapted = get_peft_model(load_internvl(MINI).model, LoraConfig(r=4, target_modules=LANGUAGE_LAYERS))
    torch.manual_seed(5)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=1e-3)
    folder = tmp_path_factory.mktemp("adapter")
    # As `training.evaluator` writes it; otherwise PEFT looks for the embeddings' size on the hub.
    adapted.save_pretrained(folder, save_embedding_layers=False)

    def judge(precision: Any) -> InternVL:
        placement = Placement("cpu", precision)
        return InternVL(MINI, folder, template=SHORT, image_side=SIDE, mask_side=64, placement=placement)

    return judge


def scores_of(judge: InternVL, scene: int = SURE) -> list[float]:
    """The scores of the first five objects of a scene of validation, as masks."""
    sample = SgdrSynth("val").sample(scene)
    group = [Candidate(region.mask, "given", 0.5) for region in sample.instances[:5]]
    [scores] = judge.score(Query(sample.image, sample.query, sample.id), [group])
    return [score.iou or 0.0 for score in scores]


@pytest.fixture(scope="module")
def full(mini: Callable[[Any], InternVL]) -> InternVL:
    return mini("float32")


@pytest.fixture(scope="module")
def rounded(mini: Callable[[Any], InternVL]) -> InternVL:
    return mini("nf4")


def quantised(judge: InternVL, layer: type) -> dict[str, Any]:
    return {name: part for name, part in judge.model.get_base_model().named_modules() if isinstance(part, layer)}


def assert_only_the_language_model_is_quantised(judge: InternVL, layer: type, kind: type) -> None:
    layers = quantised(judge, layer)
    assert len(layers) == 9 * 7
    assert all(name.startswith("model.language_model.layers.") for name in layers)
    assert all(isinstance(part.weight, kind) for part in layers.values())
    base = judge.model.get_base_model()
    for part in (base.model.vision_tower, base.model.multi_modal_projector, base.lm_head):
        assert {weight.dtype for weight in part.parameters()} == {torch.float32}


def test_mini_in_four_bits_scores_nearly_the_same(full: InternVL, rounded: InternVL) -> None:
    """Where mini is unsure, rounding moves a score by more: one in twenty, on 40 scenes, by more than 0.05."""
    assert_only_the_language_model_is_quantised(rounded, bnb.nn.Linear4bit, bnb.nn.Params4bit)
    assert max(scores_of(full)) > 0.5
    assert scores_of(rounded) == pytest.approx(scores_of(full), abs=0.05)


def test_four_bits_round_the_weights_and_change_nothing_else(
    mini: Callable[[Any], InternVL], full: InternVL, rounded: InternVL
) -> None:
    """On a scene where that matters, the same model in full precision, filled with the rounded weights, agrees."""
    # Fresh ones, because bitsandbytes packs the weights in another way when some processors first compute with them.
    again, unused = mini("float32"), mini("nf4")
    base = unused.model.get_base_model()
    with torch.no_grad():
        for name, layer in quantised(unused, bnb.nn.Linear4bit).items():
            weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            adapted = name.removesuffix(".base_layer")
            change = base.get_submodule(adapted).get_delta_weight("default")
            again.model.get_submodule(adapted).weight.copy_(weight + change)
    # On processors with instructions for bfloat16, bitsandbytes computes in it.
    assert scores_of(rounded, 13) == pytest.approx(scores_of(again, 13), abs=0.01)
    assert scores_of(rounded, 13) != pytest.approx(scores_of(full, 13), abs=0.01)


def test_mini_in_eight_bits_scores_nearly_the_same(
    mini: Callable[[Any], InternVL], full: InternVL, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, logger="bitsandbytes")
    judge = mini("int8")
    assert_only_the_language_model_is_quantised(judge, bnb.nn.Linear8bitLt, bnb.nn.Int8Params)
    assert scores_of(judge) == pytest.approx(scores_of(full), abs=0.01)
    assert scores_of(judge) != scores_of(full)


def adapter_of(base: Path, folder: Path, **settings: Any) -> tuple[Path, Any]:
    """A LoRA adapter with weights that matter, in a folder and as a live model."""
    config = LoraConfig(**{"r": 4, "target_modules": QUERY_AND_GATE, "init_lora_weights": False, **settings})
    torch.manual_seed(7)
    adapted = get_peft_model(InternVLForConditionalGeneration.from_pretrained(base), config).eval()
    adapted.save_pretrained(folder)
    return folder, adapted


def renamed(adapter: Path, rename: Callable[[str], str]) -> None:
    """Other names for the tensors of an adapter."""
    file = adapter / "adapter_model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})


def to_original(name: str) -> str:
    return name.replace("base_model.model.model.language_model.", "base_model.model.language_model.model.")


def answers(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=torch.arange(10, 40)[None]).logits
    return found


def test_an_adapter_is_merged_into_full_weights(base: Path, tmp_path: Path) -> None:
    adapter, live = adapter_of(base, tmp_path)
    model = load_internvl(base, adapter).model
    assert type(model) is InternVLForConditionalGeneration
    assert torch.allclose(answers(model), answers(live), atol=1e-4)
    assert (answers(model) - answers(load_internvl(base).model)).abs().max() > 0.1


def test_an_adapter_stays_beside_quantised_weights(base: Path, tmp_path: Path) -> None:
    adapter, _ = adapter_of(base, tmp_path)
    plain = load_internvl(base, None, Placement("cpu", "nf4")).model
    adapted = load_internvl(base, adapter, Placement("cpu", "nf4")).model
    assert isinstance(adapted, PeftModel)
    assert not any(weight.requires_grad for weight in adapted.parameters())
    with adapted.disable_adapter():
        assert torch.equal(answers(adapted), answers(plain))
    assert (answers(adapted) - answers(plain)).abs().max() > 0.1


@pytest.mark.parametrize("targets", [["q_proj", "gate_proj"], ["self_attn.q_proj", "mlp.gate_proj"]])
def test_an_adapter_of_the_original_layout_finds_the_same_modules(
    base: Path, tmp_path: Path, targets: list[str]
) -> None:
    adapter, live = adapter_of(base, tmp_path)
    renamed(adapter, to_original)
    edit_json(adapter / "adapter_config.json", lambda values: values.update(target_modules=targets))
    model = load_internvl(base, adapter).model
    assert type(model) is InternVLForConditionalGeneration
    assert torch.allclose(answers(model), answers(live), atol=1e-4)


def test_an_adapter_of_the_original_layout_may_hold_a_whole_head(base: Path, tmp_path: Path) -> None:
    adapter, live = adapter_of(base, tmp_path, modules_to_save=["lm_head"])
    nn.init.normal_(live.base_model.model.lm_head.modules_to_save["default"].weight)
    live.save_pretrained(adapter)
    renamed(adapter, lambda name: to_original(name).replace("model.lm_head", "model.language_model.lm_head"))
    assert torch.allclose(answers(load_internvl(base, adapter).model), answers(live), atol=1e-3)


def refusal(base: Path, adapter: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_internvl(base, adapter)
    return str(error.value)


def test_an_adapter_without_its_config_is_told(base: Path, tmp_path: Path) -> None:
    assert (
        refusal(base, tmp_path)
        == f"{tmp_path} has no adapter_config.json: name a folder that PEFT's `save_pretrained` wrote"
    )


def test_an_adapter_without_its_weights_is_told(base: Path, tmp_path: Path) -> None:
    file = adapter_of(base, tmp_path)[0] / "adapter_model.safetensors"
    file.unlink()
    assert refusal(base, tmp_path) == f"{file} does not exist: name a folder with weights, or a file of them"


def test_another_kind_of_adapter_is_told(base: Path, tmp_path: Path) -> None:
    file = adapter_of(base, tmp_path)[0] / "adapter_config.json"
    edit_json(file, lambda values: values.update(peft_type="IA3"))
    assert refusal(base, tmp_path) == f"{file} is for peft_type 'IA3', where only 'LORA' is known: train a LoRA adapter"


def test_an_adapter_for_layers_that_the_model_has_not_is_told(base: Path, tmp_path: Path) -> None:
    adapter, _ = adapter_of(base, tmp_path)
    renamed(adapter, lambda name: name.replace("layers.1.mlp", "layers.7.mlp"))
    place = "base_model.model.model.language_model.layers.{}.mlp.gate_proj.lora_{}.weight"
    missing, surplus = (", ".join(place.format(layer, letter) for letter in "AB") for layer in (1, 7))
    faults = f"missing tensors: {missing}; unexpected tensors: {surplus}"
    assert (
        refusal(base, adapter) == f"{adapter} has {faults}: download it again, or name the config that is made for it"
    )


def test_an_adapter_of_another_width_is_told(base: Path, tmp_path: Path) -> None:
    adapter, _ = adapter_of(base, tmp_path, r=8)
    edit_json(adapter / "adapter_config.json", lambda values: values.update(r=4))
    with pytest.raises(CheckpointError, match=r"mismatched tensors: .*lora_A\.weight \[8, 64\] instead of \[4, 64\]"):
        load_internvl(base, adapter)


def test_an_adapter_for_modules_of_no_such_name_is_told(base: Path, tmp_path: Path) -> None:
    adapter, _ = adapter_of(base, tmp_path)
    edit_json(adapter / "adapter_config.json", lambda values: values.update(target_modules=["wqkv"]))
    with pytest.raises(CheckpointError) as error:
        load_internvl(base, adapter)
    assert str(error.value).startswith(f"{adapter} cannot be loaded as an adapter (Target modules {{'wqkv'}} not found")
    assert str(error.value).endswith("): name one that was trained on this model")


def test_an_adapter_s_config_that_contradicts_itself_is_told(base: Path, tmp_path: Path) -> None:
    file = adapter_of(base, tmp_path)[0] / "adapter_config.json"
    edit_json(file, lambda values: values.update(layers_pattern=["layers"], layers_to_transform=None))
    with pytest.raises(CheckpointError) as error:
        load_internvl(base, tmp_path)
    told = "`layers_pattern` cannot be used when `target_modules` is a str."
    assert str(error.value) == f"{file} cannot be read as an adapter's config ({told}): download it again"


def test_an_original_adapter_on_the_vision_part_is_told(base: Path, tmp_path: Path) -> None:
    adapter, _ = adapter_of(base, tmp_path)
    fused = "base_model.model.vision_model.encoder.layers.0.attn.qkv"
    language = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
    renamed(adapter, lambda name: to_original(name.replace(language, fused)))
    with pytest.raises(CheckpointError, match=rf"unexpected tensors: {fused}\.lora_A\.weight, {fused}\.lora_B"):
        load_internvl(base, adapter)


def test_ranks_by_original_names_are_told(base: Path, tmp_path: Path) -> None:
    adapter, _ = adapter_of(base, tmp_path)
    renamed(adapter, to_original)
    file = adapter / "adapter_config.json"
    edit_json(file, lambda values: values.update(alpha_pattern={"layers.0": 3}))
    why = "a rank_pattern or alpha_pattern for module names of InternVL's original layout"
    assert refusal(base, adapter) == f"{file} has {why}: merge the adapter into that checkpoint, and name the result"
