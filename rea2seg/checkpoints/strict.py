"""Models from tensors on disk: nothing in them executed, and every tensor must fit."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    BitsAndBytesConfig,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)
from transformers.utils import logging

from rea2seg.checkpoints.stored import stored_tensors
from rea2seg.devices import Placement, chosen_device, is_out_of_memory
from rea2seg.errors import CheckpointError, ConfigError, reason

UNREADABLE = (KeyError, OSError, RuntimeError, SafetensorError, StrictDataclassError, ValueError)
"""What transformers, PEFT and safetensors raise on missing and damaged files."""
UNFIT = (*UNREADABLE, AttributeError, TypeError)
"""What transformers' and PEFT's configs raise on values of another type, too."""

FULL = ["model.vision_tower", "model.multi_modal_projector", "model.visual", "lm_head"]
"""The parts of LLaVA, InternVL and Qwen2.5-VL that stay in full precision where the language model is quantised."""

_AGAIN = "download it again, or name the config that is made for it"


@dataclass(frozen=True, eq=False)
class Blueprint:
    """A transformers model that is described and not yet loaded: its config, and the tensors on disk that fill it.

    `tensors` have the names of the model, or any that transformers itself converts; `stored_name` turns the model's
    into those of the checkpoint, for messages.
    """

    kind: Any
    config: Any
    tensors: Mapping[str, Tensor]
    source: Path
    stored_name: Callable[[str], str] = str

    def check(self) -> Any:
        """The model without its weights (on the meta device), after every name and shape was found to fit."""
        shapes = {name: tensor.to("meta") for name, tensor in self.tensors.items()}
        return self._filled(shapes, device_map={"": "meta"})

    def load(self, placement: Placement) -> Any:
        """The model in eval mode, where and as precise as the placement says."""
        self.check()  # before gigabytes are read
        place = chosen_device(placement.device)
        settings: dict[str, Any] = {"dtype": placement.dtype}
        if placement.quantised:
            settings["quantization_config"] = _quantisation(placement)
        if placement.device_map is not None:
            settings["device_map"] = placement.device_map
        elif placement.quantised or not placement.offload:
            settings["device_map"] = {"": place}
        model = self._filled(self.tensors, **settings)
        return model.to("cpu") if placement.offload else model

    def _filled(self, tensors: Mapping[str, Tensor], **settings: Any) -> Any:
        try:
            with quiet():
                model, report = self.kind.from_pretrained(
                    None,
                    config=self.config,
                    state_dict=dict(tensors),
                    ignore_mismatched_sizes=True,  # so that they are reported below, by name
                    output_loading_info=True,
                    **settings,
                )
        except UNREADABLE as error:
            if is_out_of_memory(error):  # no fault of the checkpoint
                raise
            told = f"{self.source} cannot be loaded as {self.kind.__name__} ({reason(error)})"
            raise CheckpointError(f"{told}: {_AGAIN}") from error
        refuse_misfits(
            self.source,
            map(self.stored_name, report["missing_keys"]),
            map(self.stored_name, report["unexpected_keys"]),
            [_misshapen(self.stored_name(name), *shapes) for name, *shapes in report["mismatched_keys"]],
        )
        return model.eval()


def native_blueprint(kind: Any, folder: Path) -> Blueprint:
    """A model of a transformers class as `save_pretrained` wrote it."""
    _check_kind(kind.__name__, folder / "config.json")
    try:
        config = kind.config_class.from_pretrained(folder, local_files_only=True)
    except UNFIT as error:
        told = f"{folder / 'config.json'} does not fit {kind.__name__} ({reason(error)})"
        raise CheckpointError(f"{told}: {_AGAIN}") from error
    return Blueprint(kind, config, stored_tensors(folder), folder)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model: `tokenizer.json`, or the files of older ones, from which a fast one is made."""
    kinds: list[tuple[str, Any]] = [
        ("tokenizer.json", PreTrainedTokenizerFast),
        ("tokenizer.model", LlamaTokenizer),
        ("vocab.json", Qwen2Tokenizer),
    ]
    kind = next((kind for file, kind in kinds if (folder / file).is_file()), None)
    if kind is None:
        names = ", ".join(file for file, _ in kinds)
        raise CheckpointError(f"{folder} has no tokenizer ({names}): save the tokenizer beside the model")
    try:
        with quiet():
            return kind.from_pretrained(folder, local_files_only=True)
    except ImportError as error:
        raise ConfigError(f"the tokenizer in {folder} needs {reason(error)}") from error
    except Exception as error:  # the tokenizers package raises nothing more special
        told = f"the tokenizer in {folder} cannot be loaded ({reason(error)})"
        raise CheckpointError(f"{told}: download its files again") from error


def read_json(file: Path) -> dict[str, Any]:
    """The table in a JSON file, such as a model's config. Raises `CheckpointError` where there is none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        if not file.parent.is_dir():
            raise CheckpointError(f"{file.parent} is no folder that exists: name one with {file.name}") from error
        raise CheckpointError(f"{file} does not exist: download it, or name the folder of a whole model") from error
    except OSError as error:
        told = f"{file} cannot be read ({reason(error)})"
        raise CheckpointError(f"{told}: change its permissions, or download it again") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged ({reason(error)}): download it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} is damaged (it is not a table of values): download it again")
    return values


def fill(module: nn.Module, source: Path, tensors: Mapping[str, Tensor] | None = None) -> None:
    """Load tensors, by default all of `source`, into a module. Names and shapes must match exactly."""
    stored = stored_tensors(source) if tensors is None else tensors
    check_fit(module.state_dict(), source, stored)
    module.load_state_dict(stored)


def check_fit(own: Mapping[str, Tensor], source: Path, stored: Mapping[str, Tensor]) -> None:
    """An error unless the tensors on disk are, by name and shape, a module's own, which may lie on the meta device."""
    shared = own.keys() & stored.keys()
    misshapen = [
        _misshapen(name, stored[name].shape, own[name].shape)
        for name in shared
        if own[name].shape != stored[name].shape
    ]
    refuse_misfits(source, own.keys() - shared, stored.keys() - shared, misshapen)


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
        raise CheckpointError(f"{source} has {'; '.join(faults)}: {_AGAIN}")


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


def _quantisation(placement: Placement) -> BitsAndBytesConfig:
    # It reports every cast of every layer.
    getLogger("bitsandbytes").setLevel(ERROR)
    if placement.precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=FULL)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=placement.dtype,
        llm_int8_skip_modules=FULL,
    )


def _misshapen(name: str, found: Iterable[int], wanted: Iterable[int]) -> str:
    return f"{name} {list(found)} instead of {list(wanted)}"


def _check_kind(name: str, file: Path) -> None:
    built_for = read_json(file).get("architectures")
    if built_for != [name]:
        told = f"{file} is made for {built_for}, not for {name} in transformers' native layout"
        raise CheckpointError(f"{told}: name the folder of such a model, or the config that is made for this one")
