"""InternVL's weights from a folder, with an adapter merged into them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerBase

from rea2seg.checkpoints.strict import UNREADABLE, load_tokenizer, native_blueprint, quiet, refuse_misfits
from rea2seg.devices import ON_CPU, Placement
from rea2seg.errors import CheckpointError, reason


class Parts(NamedTuple):
    """The live modules of an evaluator: an InternVL, or a PEFT wrapper of one, and its tokenizer."""

    model: Any
    tokenizer: PreTrainedTokenizerBase


def load_internvl(folder: Path, adapter: Path | None = None, placement: Placement = ON_CPU) -> Parts:
    """The model in eval mode, an adapter merged into it, and the tokenizer beside it."""
    model = native_blueprint(InternVLForConditionalGeneration, folder).load(placement)
    tokenizer = load_tokenizer(folder)
    return Parts((_merged(model, adapter) if adapter else model).eval(), tokenizer)


def _merged(model: Any, adapter: Path) -> Any:
    # Merged rather than kept beside the weights: no extra matrix products, and the model is of the plain class again.
    try:
        with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
            stored = set(file.keys())
        with quiet():
            adapted = PeftModel.from_pretrained(model, adapter, local_files_only=True)
    except UNREADABLE as error:
        raise CheckpointError(f"{adapter} cannot be loaded as an adapter: {reason(error)}") from error
    # Left to itself, PEFT would look for the model the adapter was trained on, in its old place and then on the net.
    wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    refuse_misfits(adapter, wanted - stored, stored - wanted)
    return adapted.merge_and_unload()
