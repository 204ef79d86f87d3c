"""The reply's format: written, parsed, and generated under a grammar that cannot miscount."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from rea2seg.errors import CheckpointError
from rea2seg.evaluators.prompts import EvaluatorTemplate
from rea2seg.evaluators.replies import (
    Choice,
    ScoreGrammar,
    choose,
    confidence,
    expected_value,
    format_scores,
    parse_scores,
    reply_ids,
    split_numbers,
)
from tests.evaluators.conftest import byte_level_tokenizer

IOUS = st.lists(st.integers(0, 100).map(lambda percent: percent / 100), min_size=1, max_size=7)


@given(IOUS, st.sampled_from(["", "The cup is red.\n", "Scores: [0.10]\nNo: "]))
def test_what_is_written_is_read_back(scores: list[float], before: str) -> None:
    assert parse_scores(before + format_scores(scores), len(scores)) == tuple(scores)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "0.91, 0.10",
        "Scores: [0.91]",
        "Scores: [0.91, 0.10, 0.20]",
        "Scores: [0.91, 1.01]",
        "Scores: [0.91, -0.1]",
        "Scores: [0.91, nan]",
        "Scores: [0.91, 10]",
        "Scores: [0.91, ]",
        "Scores: [0.91, 0.1",
        "Scores: [[0.91, 0.10]]",
        "Scores: [0.91, 0.٣]",
    ],
)
def test_a_reply_that_breaks_the_format_is_none(reply: str) -> None:
    assert parse_scores(reply, 2) is None


def test_forms_that_other_writers_use_are_read() -> None:
    assert parse_scores("so\nScores:[1, 0.5 , 0.333]\n", 3) == (1.0, 0.5, 0.333)


def test_iou_is_written_with_two_decimals_inside_the_unit_interval() -> None:
    assert format_scores([0.914, 1.2, -0.1, 0.999]) == "Scores: [0.91, 1.00, 0.00, 1.00]"


@given(st.integers(1, 6), st.randoms(use_true_random=False))
def test_no_logits_can_make_the_grammar_miscount(tokenizer: PreTrainedTokenizerFast, count: int, rng: object) -> None:
    seed = rng.getrandbits(32)  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(seed)
    grammar, written = ScoreGrammar.of(tokenizer), list[int]()
    while allowed := grammar.allowed(written, count):
        logits = torch.randn(len(tokenizer), generator=generator) * 9
        written.append(allowed[choose(logits, allowed).chosen])
    text = tokenizer.decode([*grammar.opening, *written])
    scores = parse_scores(text, count)
    assert scores is not None
    assert format_scores(scores) == text


@given(IOUS)
def test_training_replies_are_what_the_grammar_writes(tokenizer: PreTrainedTokenizerFast, scores: list[float]) -> None:
    grammar = ScoreGrammar.of(tokenizer)
    ids = grammar.scores_ids(scores)
    assert tokenizer.decode(ids) == format_scores(scores)
    written = ids[len(grammar.opening) :]
    for place, token in enumerate(written):
        assert token in grammar.allowed(written[:place], len(scores))
    assert grammar.allowed(written, len(scores)) == ()
    with pytest.raises(ValueError, match="grammar"):
        grammar.allowed([*written, written[-1]], len(scores))


def test_a_training_reply_reasons_then_scores_then_ends(tokenizer: PreTrainedTokenizerFast) -> None:
    template = EvaluatorTemplate()
    assert tokenizer.decode(reply_ids(tokenizer, template, [1.0, 0.05], " It is red. \n")) == (
        "It is red.\nScores: [1.00, 0.05]<|im_end|>"
    )
    assert tokenizer.decode(reply_ids(tokenizer, template, [0.5])) == "Scores: [0.50]<|im_end|>"


def test_a_tokenizer_that_glues_spaces_to_digits_is_refused() -> None:
    with pytest.raises(CheckpointError, match="each digit"):
        ScoreGrammar.of(byte_level_tokenizer(prefix_space=True))


def test_the_expectation_weighs_every_digit() -> None:
    grammar_digits = range(10)
    first = choose(torch.tensor([0.8, 0.2, 0.0]).log(), (0, 1))
    tenth = choose(torch.tensor([0.0] * 8 + [0.25, 0.75]).log(), grammar_digits)
    last = choose(torch.tensor([1.0] + [0.0] * 9).log(), grammar_digits)
    assert (first.chosen, tenth.chosen, last.chosen) == (0, 9, 0)
    assert expected_value((first, tenth, last)) == pytest.approx(0.2 + 0.8 * 0.875)
    assert confidence((first, tenth, last)) == pytest.approx(1.0)


def test_the_expectation_rises_with_the_probability_of_one() -> None:
    values = [expected_value((choose(torch.tensor([1 - p, p]).log(), (0, 1)),)) for p in (0.51, 0.8, 0.99)]
    assert values == sorted(values)
    assert 0.98 < values[0] < values[-1] <= 1.0


def test_confidence_is_the_mass_on_what_was_allowed() -> None:
    choice = choose(torch.tensor([0.03, 0.01, 0.96]).log(), (0, 1))
    assert choice.chosen == 0
    assert choice.probabilities == pytest.approx((0.75, 0.25))
    assert confidence((choice,)) == pytest.approx(0.04)


def test_choices_are_split_where_numbers_end() -> None:
    below, one = Choice(0, (0.9, 0.1), 1.0), Choice(1, (0.1, 0.9), 1.0)
    digit = Choice(1, (0.0, 1.0), 1.0)
    numbers = split_numbers([one, below, digit, digit, one])
    assert [len(number) for number in numbers] == [1, 3, 1]


def test_logits_that_are_no_numbers_show_in_the_expectation() -> None:
    broken = choose(torch.full((12,), math.nan), range(10))
    assert broken.chosen == 0
    assert not math.isfinite(broken.mass)
