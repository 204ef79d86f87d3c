"""InternVL from its files: what is saved scores as before, and what does not fit is named."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

from rea2seg.checkpoints.strict import Blueprint
from rea2seg.devices import Placement
from rea2seg.errors import CheckpointError, ConfigError
from rea2seg.evaluators.internvl import InternVL
from rea2seg.evaluators.prompts import SHORT, EvaluatorTemplate
from tests.evaluators.asking import QUERY, assert_same, evaluator, group
from tests.evaluators.conftest import tiny_internvl
from tests.public.internvl import edit_json


@pytest.fixture(scope="module")
def saved_once(model: Any, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(model, tokenizer, tmp_path_factory.mktemp("evaluator"))


def saved(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_saved_evaluator_scores_as_before(model: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    loaded = InternVL(str(saved(model, tokenizer, tmp_path)), image_side=32, mask_side=32)
    assert not loaded.model.training
    assert_same(loaded.score(QUERY, [group(3)])[0], evaluator(model, tokenizer).score(QUERY, [group(3)])[0])


def test_half_precision_scores_nearly_the_same(model: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    folder = saved(model, tokenizer, tmp_path)
    loaded = InternVL(folder, image_side=32, mask_side=32, placement=Placement("cpu", "bfloat16"))
    assert loaded.model.dtype == torch.bfloat16
    assert not any(score.fallback for score in loaded.score(QUERY, [group(3)])[0])


def test_an_adapter_is_merged(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    base = tiny_internvl(tokenizer)
    folder = saved(base, tokenizer, tmp_path / "base")
    targets = r".*language_model\.layers\.\d+\.self_attn\.[qv]_proj"
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=targets, init_lora_weights=False)).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = InternVL(folder, adapter=str(tmp_path / "adapter"), image_side=32, mask_side=32)
    with_adapter = loaded.score(QUERY, [group(3)])[0]
    assert_same(with_adapter, evaluator(adapted, tokenizer).score(QUERY, [group(3)])[0])
    without = InternVL(folder, image_side=32, mask_side=32).score(QUERY, [group(3)])[0]
    assert [score.iou for score in with_adapter] != [score.iou for score in without]


def edited(folder: Path, name: str, value: Tensor | None) -> None:
    """Replace, add or (None) remove one tensor of a safetensors file."""
    tensors = load_file(folder)
    tensors.pop(name, None)
    save_file(tensors | ({} if value is None else {name: value}), folder, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("value", "name", "told"),
    [
        (None, "language_model.lm_head.weight", "missing tensors: lm_head.weight"),
        (torch.zeros(2), "surprise", "unexpected tensors: surprise"),
        (torch.zeros(2, 2), "language_model.lm_head.weight", "mismatched tensors: .*lm_head.weight"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    model: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, value: Tensor | None, name: str, told: str
) -> None:
    edited(saved(model, tokenizer, tmp_path) / "model.safetensors", name, value)
    with pytest.raises(CheckpointError, match=told):
        InternVL(tmp_path, image_side=32, mask_side=32)


def test_an_adapter_that_does_not_fit_is_named(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    base = tiny_internvl(tokenizer)
    folder = saved(base, tokenizer, tmp_path / "base")
    targets = r".*language_model\.layers\.\d+\.self_attn\.[qv]_proj"
    get_peft_model(base, LoraConfig(r=4, target_modules=targets)).save_pretrained(tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    edited(weights, "surprise", torch.zeros(2))
    with pytest.raises(CheckpointError, match="unexpected tensors: surprise"):
        InternVL(folder, tmp_path / "adapter", image_side=32, mask_side=32)
    edited(weights, "surprise", None)
    edited(weights, sorted(load_file(weights))[0], None)
    with pytest.raises(CheckpointError, match=r"missing tensors: .*lora_A"):
        InternVL(folder, tmp_path / "adapter", image_side=32, mask_side=32)


def test_a_folder_that_is_no_evaluator_is_refused(
    model: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        InternVL(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"architectures": ["LlavaForConditionalGeneration"]}')
    with pytest.raises(CheckpointError, match=r"made for .*LlavaFor.*, not for InternVLForCond"):
        InternVL(tmp_path)
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"no tokenizer \(tokenizer\.json"):
        InternVL(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors"):
        InternVL(tmp_path)


class Moving(Placement):
    """A placement that brings every weight from elsewhere, as one does that offloads to a GPU."""

    @contextmanager
    def present(self, *models: torch.nn.Module) -> Iterator[None]:
        for model in models:
            model._apply(torch.clone)
        yield


def test_weights_that_move_for_a_call_can_be_trained_afterwards(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_internvl(tokenizer)
    for placement in (Placement("cpu", offload=True), Moving()):
        assert evaluator(model, tokenizer, placement=placement).score(QUERY, [group(2)])
        assert not any(weight.is_inference() for weight in (*model.parameters(), *model.buffers()))
    model(input_ids=torch.arange(10, 20)[None]).logits.sum().backward()
    assert model.lm_head.weight.grad is not None


def spoil(folder: Path, fault: str) -> None:
    """Gives a saved evaluator one fault in its words."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    if fault == "too many":
        tokenizer.add_tokens(["<more>"])
    elif fault == "no eos":
        tokenizer.eos_token = None
    elif fault == "another image token":
        edit_json(folder / "config.json", lambda values: values.update(image_token_id=3))
    elif fault == "digits":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.save_pretrained(folder)


ADDED = EvaluatorTemplate().controls


@pytest.mark.parametrize(
    ("fault", "settings", "told"),
    [
        ("too many", {}, "{0} has 310 tokens, the model only 309: take both from one checkpoint"),
        ("no eos", {}, "{0} has no eos_token: take its files from the checkpoint"),
        (
            "another image token",
            {},
            "to {0} <IMG_CONTEXT> is 4, to the model it is 3: take both from one checkpoint",
        ),
        (
            "",
            {"template": EvaluatorTemplate(image_slot="<slot>", controls=(*ADDED, "<slot>"))},
            "{0} has no <slot>: take the tokenizer's files from the checkpoint",
        ),
        (
            "",
            {"template": EvaluatorTemplate(user="<|user|>", controls=(*ADDED, "<|user|>"))},
            "the tokenizer has no added token '<|user|>': use the template it was trained with",
        ),
        (
            "",
            {"template": EvaluatorTemplate(reasoned="<|endoftext|>"), "reasoning": True},
            "the template holds <|endoftext|>: list it under `controls`",
        ),
        (
            "",
            {"template": EvaluatorTemplate(end="")},
            "the template's `end` is empty: name the token that ends a reply",
        ),
        ("digits", {}, "the tokenizer does not write each digit as one token of its own: scores need that"),
    ],
)
def test_words_that_do_not_fit_are_told_before_weights_are_loaded(
    saved_once: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    settings: dict[str, Any],
    told: str,
) -> None:
    folder = tmp_path / "evaluator"
    shutil.copytree(saved_once, folder)
    spoil(folder, fault)
    monkeypatch.setattr(Blueprint, "load", lambda *_: pytest.fail("the weights were loaded"))
    in_a_config = {name: asdict(value) if name == "template" else value for name, value in settings.items()}
    sides = {"image_side": 32, "mask_side": 32}
    for ask in (
        lambda: InternVL(folder, **settings, **sides),
        lambda: list(InternVL.examine(str(folder), **in_a_config, **sides)),
    ):
        with pytest.raises((CheckpointError, ConfigError)) as error:
            ask()
        assert str(error.value) == told.format(f"the tokenizer in {folder}")


def test_live_modules_of_two_models_are_refused(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    template = EvaluatorTemplate(image_slot="<|endoftext|>", controls=(*ADDED, "<|endoftext|>"))
    with pytest.raises(CheckpointError, match=r"^to the tokenizer <\|endoftext\|> is 5, to the model it is 4: take"):
        evaluator(model, tokenizer, template=template)


@pytest.mark.parametrize(("precision", "size"), [("float32", 4), ("bfloat16", 2), ("int8", 2)])
def test_an_examination_finds_what_there_is_and_estimates_the_memory(
    saved_once: Path, precision: str, size: int
) -> None:
    settings = {"image_side": 32, "mask_side": 16, "image_tiles": 6, "placement": {"precision": precision}}
    *findings, needed = InternVL.examine(str(saved_once), template=asdict(SHORT), reasoning=True, **settings)
    assert [finding.detail for finding in findings[1:]] == [
        "2 layers of width 32",
        "<IMG_CONTEXT> is 4 of 309, digits are single tokens",
        "at most 112 tokens of the picture, 4 of each mask",
    ]
    # Two layers, keys and values, two heads of 8; three groups of five masks of 4 tokens.
    assert needed.working == 2 * (2 * 2 * 2 * 8 * 3 * (112 + 5 * 4)) * size


def test_an_adapter_is_examined_after_the_memory_is_counted(saved_once: Path, tmp_path: Path) -> None:
    base = InternVLForConditionalGeneration.from_pretrained(saved_once)
    get_peft_model(base, LoraConfig(r=4, target_modules=r".*language_model.*q_proj")).save_pretrained(tmp_path)
    plain, adapted = (
        list(InternVL.examine(str(saved_once), adapter, image_side=32, mask_side=32))
        for adapter in (None, str(tmp_path))
    )
    assert adapted[:-2] == plain[:-1]
    assert adapted[-2].detail == "all tensors fit"
    assert adapted[-1] == plain[-1]
