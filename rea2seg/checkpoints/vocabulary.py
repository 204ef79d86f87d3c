"""Whether a tokenizer is that of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from rea2seg.errors import CheckpointError


def check_vocabulary(
    tokenizer: PreTrainedTokenizerBase, config: Any, needed: Sequence[str], source: str, image_token: str = ""
) -> None:
    """An error unless the added tokens of a tokenizer hold all that are `needed`, and its ids are those of the model.

    config: the model's own, of transformers. source: what messages call the tokenizer. image_token: the one that the
    config has by its id. Raises `CheckpointError`.
    """
    added, rows = tokenizer.get_added_vocab(), config.text_config.vocab_size
    wanted = dict.fromkeys((image_token, *needed) if image_token else needed)
    if missing := [token for token in wanted if token not in added]:
        raise CheckpointError(f"{source} has no {', '.join(missing)}: take the tokenizer's files from the checkpoint")
    if len(tokenizer) > rows:
        told = f"{len(tokenizer)} tokens, the model only {rows}"
        raise CheckpointError(f"{source} has {told}: take both from one checkpoint")
    if image_token and added[image_token] != config.image_token_id:
        told = f"{added[image_token]}, to the model it is {config.image_token_id}"
        raise CheckpointError(f"to {source} {image_token} is {told}: take both from one checkpoint")
