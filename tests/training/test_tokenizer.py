import numpy as np

from rea2seg.evaluators.replies import ScoreGrammar
from rea2seg.generator.tokens import control_id
from rea2seg.synth.queries import questions
from rea2seg.text import encode_untrusted
from training.mini import load_tokenizer
from training.scenes import sample_scene
from training.tokenizer import CONTROL, train


def test_control_tokens_are_one_id_each_and_cannot_be_spelt(tokenizer):
    ids = {control_id(tokenizer, name) for name in CONTROL}
    assert len(ids) == len(CONTROL)
    assert not ids & {*encode_untrusted(tokenizer, "".join(CONTROL))}


def test_digits_stand_alone_as_the_grammar_of_scores_needs(tokenizer):
    grammar = ScoreGrammar.of(tokenizer)
    assert tokenizer.decode(grammar.scores_ids([0.05, 1.0])) == "Scores: [0.05, 1.00]"
    assert {*encode_untrusted(tokenizer, "2024")} <= {*grammar.digits}


def test_any_text_survives(tokenizer):
    for text in ("the cup", "Ünïcode ✓ 漢字", "  two  spaces\n"):
        assert tokenizer.decode(encode_untrusted(tokenizer, text)) == text


def test_questions_take_about_a_token_a_word():
    tokenizer = train(640, scenes=60, seed=0)
    rng = np.random.default_rng(7)
    texts = [question.text for _ in range(6) for question in questions(rng, *sample_scene(rng), 6)]
    assert sum(len(encode_untrusted(tokenizer, text)) for text in texts) < 1.6 * sum(len(t.split()) for t in texts)


def test_a_tokenizer_that_was_saved_is_the_same(tokenizer, tokenizer_folder):
    assert load_tokenizer(tokenizer_folder).get_vocab() == tokenizer.get_vocab()
