"""Whether a tokenizer is that of a model which sees images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from rea2seg.errors import CheckpointError


def check_vocabulary(
    tokenizer: PreTrainedTokenizerBase, config: Any, image_token: str, controls: Sequence[str], source: str
) -> None:
    """An error unless the added tokens of a tokenizer hold all `controls`, and its ids are those of the model.

    config: the model's own, of transformers. source: what messages call the tokenizer. Raises `CheckpointError`.
    """
    added, rows = tokenizer.get_added_vocab(), config.text_config.vocab_size
    if missing := [token for token in dict.fromkeys((image_token, *controls)) if token not in added]:
        raise CheckpointError(f"{source} has no {', '.join(missing)}: take the tokenizer's files from the checkpoint")
    if len(tokenizer) > rows:
        told = f"{len(tokenizer)} tokens, the model only {rows}"
        raise CheckpointError(f"{source} has {told}: take both from one checkpoint")
    if added[image_token] != config.image_token_id:
        told = f"{added[image_token]}, to the model it is {config.image_token_id}"
        raise CheckpointError(f"to {source} {image_token} is {told}: take both from one checkpoint")
