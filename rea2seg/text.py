"""Text from outside: cleaned once at the border, and encoded so that it never speaks a model's control language."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from rea2seg.errors import CheckpointError, ConfigError, InputError

QUESTION_LIMIT = 2000
"""Characters. Ours: some 500 tokens, well inside the shortest context (2,048) beside 576 image tokens."""


def clean_question(text: str) -> str:
    """The question, trimmed, without control, private-use and surrogate characters; line breaks become spaces."""
    spaced = "".join(" " if char.isspace() else char for char in text)
    cleaned = "".join(char for char in spaced if unicodedata.category(char) not in {"Cc", "Co", "Cs"}).strip()
    if not any(_is_visible(char) for char in cleaned):
        raise InputError("the question is empty: write what to look for in the image")
    if len(cleaned) > QUESTION_LIMIT:
        told = f"{len(cleaned):,} characters, more than the limit of {QUESTION_LIMIT:,}"
        raise InputError(f"the question has {told}: shorten it")
    return cleaned


def control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids of all added tokens, flagged special or not: `[SEG]`, `<image>`, `</s>`, `<|im_end|>`, ..."""
    return frozenset(tokenizer.added_tokens_decoder)


def cut(template: str, names: Collection[str]) -> list[str]:
    """The template in pieces: each of the names where it occurs, and what lies between them."""
    longest_first = sorted(names, key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, longest_first))})", template) if names else [template]
    return [piece for piece in pieces if piece]


def control_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of an added token, which tokenizing its name does not reliably give (LISA issue 55)."""
    added: dict[str, int] = tokenizer.get_added_vocab()
    if token not in added:
        raise CheckpointError(f"the tokenizer has no added token {token!r}: use the template it was trained with")
    return added[token]


def refuse_undeclared(tokenizer: PreTrainedTokenizerBase, piece: str) -> None:
    """An error if a template's plain text names added tokens, which would silently be spelt out in letters."""
    if named := [token for token in tokenizer.get_added_vocab() if token.strip() and token in piece]:
        raise ConfigError(f"the template holds {', '.join(sorted(named))}: list it under `controls`")


def encode_untrusted(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of text in which nothing is a control token; a literal `[SEG]` becomes its letters.

    Ordinary text gets the ids that the tokenizer itself gives it, without BOS or EOS.
    """
    try:
        ids: list[int] = _without_added_tokens(tokenizer).encode(text, add_special_tokens=False).ids
    except (UnicodeEncodeError, TypeError) as error:
        raise InputError("the text holds unpaired surrogates, which are not characters") from error
    if forbidden := control_ids(tokenizer).intersection(ids):
        names = ", ".join(sorted(map(str, tokenizer.convert_ids_to_tokens(sorted(forbidden)))))
        raise InputError(f"the text cannot be written without the model's control tokens ({names})")
    return ids


def _without_added_tokens(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    # `split_special_tokens=True` still matches added tokens that are not flagged special, LISA's `[SEG]` among them. A
    # pipeline that shares the vocabulary but was never told of added tokens has nothing to match them with.
    whole = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(whole, Tokenizer):
        raise ConfigError(f"{type(tokenizer).__name__} has no fast backend: save it with its tokenizer.json")
    bare = Tokenizer(whole.model)
    if whole.normalizer is not None:
        bare.normalizer = whole.normalizer
    if whole.pre_tokenizer is not None:
        bare.pre_tokenizer = whole.pre_tokenizer
    return bare


def _is_visible(char: str) -> bool:
    # Zero-width and direction marks (Cf) belong in some scripts and emoji, but alone they ask nothing.
    return not char.isspace() and unicodedata.category(char) != "Cf"
