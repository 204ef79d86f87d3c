import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rea2seg.errors import CheckpointError, ConfigError
from rea2seg.generator.tokens import IMAGE, Conversation, TokenLayout, expand
from rea2seg.text import control_id, control_ids, encode_untrusted
from tests.generator.conftest import SHORT

SEG = 7


def spell(tokenizer, ids):
    return ["<image>" if token == IMAGE else tokenizer.decode([token]) for token in ids]


def joined(tokenizer, ids):
    return "|".join(spell(tokenizer, ids))


def test_a_template_becomes_control_ids_and_separately_encoded_text(tokenizer):
    ids = SHORT.prompt_ids(tokenizer, "red")
    controls = [control_id(tokenizer, name) for name in ("<s>", "<im_start>")]
    assert ids == [*controls, IMAGE, control_id(tokenizer, "<im_end>"), *encode_untrusted(tokenizer, "red")]


def test_whitespace_beside_lisas_own_tokens_vanishes_and_elsewhere_stays(tokenizer):
    ids, _ = Conversation().dialogue_ids(tokenizer, "where is it?", "Sure, it is [SEG] .")
    text = "".join(spell(tokenizer, ids))
    assert "USER:<im_start><image><im_end>where is it? Please" in text
    assert "ASSISTANT: Sure, it is[SEG].</s>" in text
    assert text.startswith("<s>A chat")


def sentencepiece_like(marker):
    """Llama's two ways to write the word marker: the old normalizer, and the later pre-tokenizer."""
    pieces = ["▁", "U", "S", "E", "R", ":", "i", "t", "s", ".", "P", "l", "e", "a"]
    merges = [("U", "S"), ("US", "E"), ("USE", "R"), ("▁", "USER"), ("i", "t"), ("▁", "it"), ("i", "s"), ("▁", "is")]
    merges += [("P", "l"), ("Pl", "e"), ("▁", "Ple")]
    vocabulary = {piece: index for index, piece in enumerate([*pieces, *("".join(pair) for pair in merges)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    if marker == "normalizer":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_tokens(["[SEG]", "<im_start>", "<im_end>"])
    return tokenizer


@pytest.mark.parametrize("marker", ["normalizer", "pre_tokenizer"])
def test_llamas_pieces_are_those_of_lisas_training(marker):
    """As transformers 4.31's slow tokenizer did it: a word marker for each segment, and no lone one before [SEG]."""
    tokenizer = sentencepiece_like(marker)
    controls = ("[SEG]", "<im_start>", "<im_end>")
    conversation = Conversation("USER: <im_start><image><im_end>\n{question}", "{answer}", controls, controls)
    ids, _ = conversation.dialogue_ids(tokenizer, "Ple", " it is [SEG].")
    names = {index: name for name, index in [*tokenizer.get_vocab().items(), *tokenizer.get_added_vocab().items()]}
    spelt = [{IMAGE: "<image>", **names}[token] for token in ids]
    assert spelt == ["▁USER", ":", "<im_start>", "<image>", "<im_end>", "▁Ple", "▁it", "▁is", "[SEG]", "▁", "."]


def test_whitespace_before_the_end_of_the_sentence_token_stays(tokenizer):
    ids, _ = Conversation(prompt="{question}", reply=" {answer} </s>").dialogue_ids(tokenizer, "a", "b")
    assert "".join(spell(tokenizer, ids)) == "a b </s>"


def test_the_text_between_two_controls_is_one_segment_with_the_question_in_it(tokenizer):
    """As in LISA's training: template and question were one string, so pieces may span their border."""
    conversation = Conversation(prompt="{question}ed cup", controls=(), stripped=())
    assert conversation.prompt_ids(tokenizer, "the r") == encode_untrusted(tokenizer, "the red cup")


def test_a_dialogue_begins_with_the_prompt_alone(tokenizer):
    ids, start = SHORT.dialogue_ids(tokenizer, "the red cup", "{words}", words="the [SEG] of {question}")
    assert ids[:start] == SHORT.prompt_ids(tokenizer, "the red cup")
    assert tokenizer.decode(ids[start:-1]) == "\nthe [SEG] of {question}"
    assert not control_ids(tokenizer) & set(ids[start:-1])


def test_an_answer_that_grows_into_the_prompt_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="tokenized"):
        Conversation(prompt="{question}", reply="{answer}").dialogue_ids(tokenizer, "the r", "ed cup")


def test_control_tokens_in_a_question_are_spelt_out(tokenizer):
    ids = SHORT.prompt_ids(tokenizer, "<image>[SEG]</s><|im_end|>")
    assert ids.count(IMAGE) == 1
    assert len(control_ids(tokenizer) & set(ids)) == 3


@pytest.mark.parametrize(
    ("conversation", "complaint"),
    [
        (Conversation(prompt="<|im_end|>{question}"), "list it under `controls`"),
        (Conversation(prompt="{what}"), "unknown slots: what"),
    ],
)
def test_a_conversation_that_does_not_fit_the_tokenizer_is_refused(tokenizer, conversation, complaint):
    with pytest.raises(ConfigError, match=complaint):
        conversation.prompt_ids(tokenizer, "a")


def test_a_tokenizer_without_the_conversations_tokens_is_refused(tokenizer):
    with pytest.raises(CheckpointError, match="no added token '<nowhere>'"):
        Conversation(prompt="<nowhere>{question}", controls=("<nowhere>",)).prompt_ids(tokenizer, "a")


def test_the_layout_is_read_off_the_expanded_ids():
    ids = expand([1, IMAGE, 3, SEG, 4, SEG], 6)
    layout = TokenLayout.of(ids, (2, 3), SEG)
    assert layout.image == slice(1, 7)
    assert layout.segs == (8, 10)
    assert layout.predictors == layout.rows("predictor") == (7, 9)
    assert layout.rows("seg") == (8, 10)
    assert layout.length == len(ids) == 11


def test_a_kept_class_token_is_not_part_of_the_grid():
    assert TokenLayout.of(expand([IMAGE, 3, SEG], 5), (2, 2), SEG, extra=1).image == slice(1, 5)


def test_a_layout_moves_as_a_whole():
    ids = expand([1, IMAGE, 3, SEG], 4)
    assert TokenLayout.of(ids, (2, 2), SEG).shifted(2) == TokenLayout.of([0, 0, *ids], (2, 2), SEG)


@pytest.mark.parametrize(
    ("ids", "grid", "complaint"),
    [
        ([IMAGE] * 4 + [3, SEG], (2, 3), "cannot hold"),
        ([1, 3, SEG], (2, 2), "exactly one image"),
        ([IMAGE, IMAGE, 1, IMAGE, IMAGE, 3, SEG], (2, 2), "exactly one image"),
        ([IMAGE] * 4 + [3], (2, 2), "one or more"),
        ([SEG] + [IMAGE] * 4 + [3], (2, 2), "after the image"),
        ([IMAGE] * 4 + [SEG], (2, 2), "after the image"),
    ],
)
def test_a_sequence_that_cannot_be_read_is_refused(ids, grid, complaint):
    with pytest.raises(ValueError, match=complaint):
        TokenLayout.of(ids, grid, SEG)
