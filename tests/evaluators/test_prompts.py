"""The evaluator's prompt: one prefix for all groups, images where they belong, and a question that is only text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from rea2seg.errors import CheckpointError, ConfigError
from rea2seg.evaluators.prompts import SHORT, EvaluatorTemplate, prefix_ids, suffix_ids
from rea2seg.text import control_id

TEMPLATE = EvaluatorTemplate()


def test_the_default_prompt_reads_as_a_turn_of_internvl3(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = [*prefix_ids(tokenizer, TEMPLATE, "the cup", 2), *suffix_ids(tokenizer, TEMPLATE, 2, 1, reasoning=False)]
    assert tokenizer.decode(ids) == (
        "<|im_start|>user\nImage: <img><IMG_CONTEXT><IMG_CONTEXT></img>\nQuestion: the cup\n"
        "Candidate masks of the image, white where the mask is:\n"
        "Mask 1: <img><IMG_CONTEXT></img>\nMask 2: <img><IMG_CONTEXT></img>\n"
        f"{TEMPLATE.instruction}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_reasoning_changes_the_instruction_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    off, on = (tokenizer.decode(suffix_ids(tokenizer, TEMPLATE, 3, 4, reasoning)) for reasoning in (False, True))
    assert off.replace(TEMPLATE.instruction, TEMPLATE.reasoned) == on != off


@pytest.mark.parametrize("template", [TEMPLATE, SHORT])
@pytest.mark.parametrize("masks", [1, 3, 5])
def test_each_image_has_one_run_of_slots(
    tokenizer: PreTrainedTokenizerFast, template: EvaluatorTemplate, masks: int
) -> None:
    ids = [*prefix_ids(tokenizer, template, "?", 9), *suffix_ids(tokenizer, template, masks, 4, reasoning=True)]
    opened, slot, closed = (control_id(tokenizer, name) for name in ("<img>", "<IMG_CONTEXT>", "</img>"))
    runs = [ids[at + 1 : ids.index(closed, at)] for at, token in enumerate(ids) if token == opened]
    assert runs == [[slot] * 9, *[[slot] * 4] * masks]
    assert ids.count(slot) == 9 + 4 * masks


def test_the_short_template_is_short(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = [*prefix_ids(tokenizer, SHORT, "", 0), *suffix_ids(tokenizer, SHORT, 5, 0, reasoning=False)]
    assert len(ids) <= 5 + 5 * 3


HOSTILE = st.lists(st.sampled_from([*TEMPLATE.controls, "<|endoftext|>", "{number}", "cup", "\n", " "]), max_size=12)


@given(HOSTILE.map("".join) | st.text(st.characters(exclude_categories=["Cs"])))
def test_a_question_of_control_tokens_is_only_text(tokenizer: PreTrainedTokenizerFast, question: str) -> None:
    plain, ids = (prefix_ids(tokenizer, TEMPLATE, text, 4) for text in ("", question))
    controls = set(tokenizer.added_tokens_decoder)
    assert [token for token in ids if token in controls] == [token for token in plain if token in controls]
    assert tokenizer.decode(ids) == tokenizer.decode(plain).replace("Question: ", f"Question: {question}", 1)


def test_a_tokenizer_without_the_template_s_tokens_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    template = EvaluatorTemplate(user="<|user|>", controls=("<|user|>", *TEMPLATE.controls))
    undeclared = EvaluatorTemplate(user="<|endoftext|>")
    with pytest.raises(ConfigError, match="list it under `controls`"):
        prefix_ids(tokenizer, undeclared, "the cup", 1)
    with pytest.raises(CheckpointError, match=r"no added token '<\|user\|>'"):
        prefix_ids(tokenizer, template, "the cup", 1)
