"""A Llama tokenizer as transformers 4.31 saved the slow one: a SentencePiece model and tables of added tokens."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

PIECES = 32_000
TEXT = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions. USER: Which cup is the smallest in this image? Please output "
    "segmentation mask. ASSISTANT: Sure, it is . Sure, the segmentation result is . the red door of the house"
)


@cache
def sentencepiece_model() -> bytes:
    """Few real pieces, bytes for all else as in Llama's, and fillers up to Llama's 32,000."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 20),
        model_writer=written,
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto.FromString(written.getvalue())
    for number in range(len(model.pieces), PIECES):
        model.pieces.add(piece=f"\u2603{number}", score=-float(number))
    return model.SerializeToString()


def write_tokenizer(folder: Path, added: list[str]) -> None:
    """The four files; `added` are the tokens after the 32,000 pieces, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    numbered = {token: PIECES + place for place, token in enumerate(added)}
    plain = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    control = {
        name: {"__type": "AddedToken", "content": token} | plain
        for name, token in [("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")]
    }
    tables = {
        "added_tokens.json": numbered,
        "special_tokens_map.json": {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<unk>",
        },
        "tokenizer_config.json": control
        | {
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "legacy": True,
            "model_max_length": 512,
            "pad_token": None,
            "padding_side": "right",
            "sp_model_kwargs": {},
            "tokenizer_class": "LlamaTokenizer",
        },
    }
    for name, content in tables.items():
        (folder / name).write_text(json.dumps(content))
