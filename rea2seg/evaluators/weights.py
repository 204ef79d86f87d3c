"""InternVL's weights from a folder, with an adapter merged into them, or beside them where they are quantised."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rea2seg.checkpoints.internvl import InternVLPlan, internvl_plan
from rea2seg.checkpoints.stored import KeyMap, stored_tensors
from rea2seg.checkpoints.strict import UNFIT, UNREADABLE, check_fit, quiet, read_json
from rea2seg.devices import ON_CPU, Placement, is_out_of_memory
from rea2seg.errors import CheckpointError, reason

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_BASE = "base_model.model."
_ORIGINAL = KeyMap(
    ((f"{_BASE}language_model.model.", f"{_BASE}model.language_model."), (f"{_BASE}language_model.", _BASE))
)
"""Names of adapters that were trained on InternVL's original layout; only the language model's are the same modules."""


class Parts(NamedTuple):
    """The live modules of an evaluator: an InternVL, or a PEFT wrapper of one, and its tokenizer."""

    model: Any
    tokenizer: PreTrainedTokenizerBase


def load_internvl(folder: Path, adapter: Path | None = None, placement: Placement = ON_CPU) -> Parts:
    """The model of a folder in either layout and its tokenizer, as `build` makes them. Raises `CheckpointError`."""
    return build(internvl_plan(folder), adapter, placement)


def build(plan: InternVLPlan, adapter: Path | None, placement: Placement) -> Parts:
    """The live modules of a plan, in eval mode.

    An adapter is merged into the weights, unless these are quantised: then it stays beside them, as merging would round
    the sum again. Raises `CheckpointError` where anything does not fit.
    """
    model = plan.model.load(placement)
    if adapter is not None:
        adapted = _adapted(model, adapter)
        # Merged where it can be: no extra matrix products, and the model is of the plain class again.
        model = adapted if placement.quantised else adapted.merge_and_unload()
    return Parts(model.eval(), plan.tokenizer)


def _adapted(model: Any, adapter: Path) -> PeftModel:
    adapted, stored = with_fresh_adapter(model, adapter)
    set_peft_model_state_dict(adapted, stored)
    return adapted


def with_fresh_adapter(model: Any, adapter: Path) -> tuple[PeftModel, dict[str, Tensor]]:
    """A model, which may lie on the meta device, wrapped with a fresh adapter, and the tensors on disk that fit this.

    The model is changed: its adapted layers are replaced. Raises `CheckpointError` where the adapter does not fit it.
    """
    config, stored = _adapter_config(adapter), stored_tensors(adapter / WEIGHTS)
    if any(name.startswith(f"{_BASE}language_model.") for name in stored):
        config, stored = _of_original(config, adapter), _ORIGINAL.native(stored)
        config.target_modules = _adapted_modules(stored)
    try:
        with quiet():
            adapted = PeftModel(model, config)
            # Left to itself, PEFT would look for the model of the training, in its old place and then on the net.
            own = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    except UNREADABLE as error:
        if is_out_of_memory(error):  # no fault of the adapter
            raise
        told = f"{adapter} cannot be loaded as an adapter ({reason(error)})"
        raise CheckpointError(f"{told}: name one that was trained on this model") from error
    check_fit(own, adapter, stored)
    return adapted, stored


def _adapter_config(adapter: Path) -> LoraConfig:
    file = adapter / CONFIG
    if not file.is_file():
        raise CheckpointError(f"{adapter} has no {CONFIG}: name a folder that PEFT's `save_pretrained` wrote")
    if (kind := read_json(file).get("peft_type")) != "LORA":
        raise CheckpointError(f"{file} is for peft_type {kind!r}, where only 'LORA' is known: train a LoRA adapter")
    try:
        with quiet():
            config = PeftConfig.from_pretrained(adapter, local_files_only=True)
    except UNFIT as error:
        told = f"{file} cannot be read as an adapter's config ({reason(error)})"
        raise CheckpointError(f"{told}: download it again") from error
    config.inference_mode = True
    return config


def _of_original(config: LoraConfig, adapter: Path) -> LoraConfig:
    """The config without what selects modules by their original names; the stored tensors say which are adapted."""
    if config.alpha_pattern or config.rank_pattern:
        raise CheckpointError(
            f"{adapter / CONFIG} has a rank_pattern or alpha_pattern for module names of InternVL's original layout: "
            "merge the adapter into that checkpoint, and name the result"
        )
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    return config


def _adapted_modules(stored: Mapping[str, Tensor]) -> set[str]:
    return {name.removeprefix(_BASE).split(".lora_")[0] for name in stored if ".lora_" in name}
