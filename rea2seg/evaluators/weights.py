"""InternVL's weights from a folder: strict, local and never executing what it reads."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rea2seg.errors import CheckpointError

Precision = Literal["float32", "bfloat16", "float16"]


def load_internvl(folder: Path, adapter: Path | None, precision: Precision) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model in eval mode, an adapter merged into it, and the tokenizer beside it."""
    _check_folder(folder)
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        model, report = InternVLForConditionalGeneration.from_pretrained(
            folder,
            dtype=getattr(torch, precision),
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # so that they are reported below, by name
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be loaded as an InternVL: {_first_line(error)}") from error
    for fault in ("missing", "unexpected", "mismatched"):
        _refuse(folder, fault, [str(key) for key in report[f"{fault}_keys"]])
    return (_merged(model, adapter) if adapter else model).eval(), tokenizer


def _merged(model: Any, adapter: Path) -> Any:
    # Merged rather than kept beside the weights: no extra matrix products, and the model is of the plain class again.
    try:
        with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
            stored = set(file.keys())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # an error below, by name
            adapted = PeftModel.from_pretrained(model, adapter, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{adapter} cannot be loaded as an adapter: {_first_line(error)}") from error
    # Left to itself, PEFT would look for the model the adapter was trained on, in its old place and then on the net.
    wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    _refuse(adapter, "missing", sorted(wanted - stored))
    _refuse(adapter, "unexpected", sorted(stored - wanted))
    return adapted.merge_and_unload()


def _check_folder(folder: Path) -> None:
    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder} holds no readable config.json: give the folder of an evaluator") from error
    if kind != "internvl":
        raise CheckpointError(f"{folder} holds a model of type {kind}, not internvl (transformers' native layout)")
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(f"{folder} holds no tokenizer.json: save the tokenizer beside the model")


def _refuse(folder: Path, fault: str, keys: list[str]) -> None:
    if keys:
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        raise CheckpointError(f"{folder} has {fault} tensors: {', '.join(sorted(keys)[:3])}{more}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
