import hypothesis.strategies as st
import pytest
from hypothesis import given
from transformers import ByT5Tokenizer

from rea2seg.errors import ConfigError, InputError
from rea2seg.text import clean_question, control_ids, encode_untrusted
from tests.generator.conftest import build_tokenizer

TOKENIZER = build_tokenizer()
ADDED = sorted(TOKENIZER.get_added_vocab())
MIXED = st.lists(st.one_of(st.text(max_size=12), st.sampled_from(ADDED))).map("".join)


@given(MIXED)
def test_no_text_yields_a_control_id_and_every_text_survives(text):
    ids = encode_untrusted(TOKENIZER, text)
    assert not control_ids(TOKENIZER) & set(ids)
    assert TOKENIZER.decode(ids) == text


@given(st.text())
def test_ordinary_text_gets_the_ids_the_tokenizer_gives_it(text):
    if not any(token in text for token in ADDED):
        assert encode_untrusted(TOKENIZER, text) == TOKENIZER(text, add_special_tokens=False).input_ids


def test_the_control_ids_are_all_added_tokens_flagged_special_or_not():
    assert control_ids(TOKENIZER) == frozenset(TOKENIZER.convert_tokens_to_ids(ADDED))
    assert TOKENIZER.convert_tokens_to_ids("[SEG]") in control_ids(TOKENIZER)


def test_the_tokenizers_own_option_would_let_the_seg_token_through():
    """Why `encode_untrusted` exists: `[SEG]` is not flagged special in LISA's vocabulary."""
    ids = TOKENIZER("a [SEG]", split_special_tokens=True, add_special_tokens=False).input_ids
    assert control_ids(TOKENIZER) & set(ids)


def test_a_tokenizer_without_a_fast_backend_is_refused():
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        encode_untrusted(ByT5Tokenizer(), "a")


def test_unpaired_surrogates_are_refused_as_text():
    with pytest.raises(InputError, match="surrogates"):
        encode_untrusted(TOKENIZER, "a\ud800")


@pytest.mark.parametrize("text", ["", " \n\t", "\u200b\u200e", "\x00\x07", "\ue000"])
def test_an_empty_question_is_refused(text):
    with pytest.raises(InputError, match="empty"):
        clean_question(text)


def test_a_long_question_is_refused_with_its_length():
    assert clean_question("a" * 2000) == "a" * 2000
    with pytest.raises(InputError, match=r"2,001 characters"):
        clean_question("a" * 2001)


def test_a_question_loses_what_cannot_be_seen_and_keeps_what_can():
    assert clean_question("  the\x00 red\ncup\x1b\ue000?\ud800 ") == "the red cup?"
    assert clean_question("l'été 杯子 👩‍🚀") == "l'été 杯子 👩‍🚀"


@given(st.text(st.characters(), max_size=50))
def test_a_clean_question_can_always_be_encoded(text):
    try:
        question = clean_question(text)
    except InputError:
        return
    assert clean_question(question) == question
    encode_untrusted(TOKENIZER, question)
