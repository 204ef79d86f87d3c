"""Weights from a folder: local, nothing in them executed, and every tensor must fit."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging

from rea2seg.errors import CheckpointError, reason

Precision = Literal["float32", "bfloat16", "float16"]

UNREADABLE = (OSError, RuntimeError, SafetensorError, StrictDataclassError, ValueError)
"""What transformers, PEFT and safetensors raise on missing and damaged files."""


def load_model(kind: Any, folder: Path, precision: Precision) -> Any:
    """A model of a transformers class, as `save_pretrained` wrote it, in eval mode."""
    _check_kind(kind.__name__, folder / "config.json")
    try:
        with quiet():
            model, report = kind.from_pretrained(
                folder,
                dtype=getattr(torch, precision),
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # so that they are reported below, by name
                output_loading_info=True,
            )
    except UNREADABLE as error:
        raise CheckpointError(f"{folder} cannot be loaded as {kind.__name__}: {reason(error)}") from error
    refuse_misfits(folder, report["missing_keys"], report["unexpected_keys"], report["mismatched_keys"])
    return model.eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The fast tokenizer beside a model."""
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(f"{folder} has no tokenizer.json: save the tokenizer beside the model")
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except UNREADABLE as error:
        raise CheckpointError(f"the tokenizer in {folder} cannot be loaded: {reason(error)}") from error


def load_tensors(file: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file."""
    try:
        tensors: dict[str, torch.Tensor] = load_file(file)
    except UNREADABLE as error:
        raise CheckpointError(f"{file} cannot be read as safetensors: {reason(error)}") from error
    return tensors


def fill(module: nn.Module, file: Path) -> None:
    """Put the tensors of a safetensors file into a module, whose own they must be by name and shape."""
    own, stored = module.state_dict(), load_tensors(file)
    shared = own.keys() & stored.keys()
    misshapen = [name for name in shared if own[name].shape != stored[name].shape]
    refuse_misfits(file, own.keys() - shared, stored.keys() - shared, misshapen)
    module.load_state_dict(stored)


def refuse_misfits(
    source: Path, missing: Iterable[Any], unexpected: Iterable[Any], mismatched: Iterable[Any] = ()
) -> None:
    """An error that names the first few tensors that are missing, surplus or of another shape, if there are any."""
    faults = []
    for fault, names in (("missing", missing), ("unexpected", unexpected), ("mismatched", mismatched)):
        if listed := sorted(map(str, names)):
            more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
            faults.append(f"{fault} tensors: {', '.join(listed[:3])}{more}")
    if faults:
        raise CheckpointError(f"{source} has {'; '.join(faults)}")


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps progress bars and what libraries tell their own developers off the screen."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _check_kind(name: str, file: Path) -> None:
    try:
        built_for = json.loads(file.read_text(encoding="utf-8")).get("architectures")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file} is not the config of a model: {reason(error)}") from error
    if built_for != [name]:
        raise CheckpointError(f"{file} is made for {built_for}, not for {name} in transformers' native layout")
