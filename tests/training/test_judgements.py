"""Training shows the evaluator exactly what inference shows it, and labels exactly what it is to say."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from rea2seg.errors import ConfigError
from rea2seg.evaluators.internvl import InternVL, image_pixels, mask_pixels
from rea2seg.evaluators.prompts import SHORT, prefix_ids, suffix_ids
from rea2seg.evaluators.replies import ScoreGrammar, format_scores, reply_ids
from rea2seg.structures import Candidate, Query
from rea2seg.synth.descriptions import IOU_WORDS, describe_iou
from tests.training.conftest import evaluator_stage
from training.examples import Example, FreshScenes
from training.judgements import IGNORED, WHAT, WITHOUT_MASKS, JudgementDrawer, Portion
from training.regions import coverage, tokens_inside, tokens_under
from training.tokenizer import train

SIDES, TOKENS = (64, 32), (16, 4)
TASKS = ("point", "explain", "describe", "score", "reason")
COUNT = 2


def drawer_of(tokenizer, task, sides=SIDES, tokens=TOKENS, source=None, misread=0.0):
    source = source or FreshScenes(["attribute", "geometric", "spatial"], group=3)
    return JudgementDrawer(tokenizer, SHORT, sides, tokens, {task: Portion(1.0, COUNT)}, source, misread)


WHOLE = 5
"""A seed that draws no short group."""


def drawn_by(task, seed=3, scenes=2):
    """The scenes of `JudgementDrawer.batch` with the same generator, whose first draw is the task."""
    rng = np.random.default_rng(seed)
    rng.choice(1, p=np.ones(1))
    source = FreshScenes(["attribute", "geometric", "spatial"], group=3)
    return [source(rng, COUNT, "train", masks=task not in WITHOUT_MASKS) for _ in range(scenes)]


def reasoning_of(example):
    judged = [f"{under}: {describe_iou(score)}" for under, score in zip(example.under, example.scores, strict=True)]
    return f"{example.reasoning} masks: {'; '.join(judged)}."


def expected_reply(task, example):
    under = f"masks: {'; '.join(example.under)}."
    if task == "point":
        return ""
    if task == "score":
        return format_scores(example.scores) + "<|im_end|>"
    if task == "reason":
        return f"{reasoning_of(example)}\n{format_scores(example.scores)}<|im_end|>"
    return {"explain": example.reasoning, "describe": under}[task] + "<|im_end|>"


@pytest.fixture(scope="module")
def stage(tokenizer, tmp_path_factory):
    return evaluator_stage(tokenizer, tmp_path_factory.mktemp("evaluator"))


@pytest.mark.parametrize("task", TASKS)
def test_a_block_is_what_inference_feeds_and_its_labels_are_the_reply(tokenizer, task):
    batch = drawer_of(tokenizer, task).batch(np.random.default_rng(3), 2, "train")
    for row, (_, questions) in enumerate(drawn_by(task)):
        for block, example in enumerate(questions):
            text = WHAT if task == "describe" else example.text
            prompt = prefix_ids(tokenizer, SHORT, text, TOKENS[0])
            if task != "point":
                prompt += suffix_ids(tokenizer, SHORT, len(example.masks), TOKENS[1], task != "score")
            mine = (batch.packed.owner[row] == -1) | (batch.packed.owner[row] == block)
            ids = batch.packed.ids[row][mine].tolist()
            assert ids[: len(prompt)] == prompt
            reply = ids[len(prompt) :]
            assert tokenizer.decode(reply) == expected_reply(task, example)
            if task in ("score", "reason"):
                reasoning = "" if task == "score" else reasoning_of(example)
                assert reply == reply_ids(tokenizer, SHORT, example.scores, reasoning)
            own = batch.packed.owner[row] == block
            labels = torch.where(batch.words[row] != IGNORED, batch.words[row], batch.digits[row])[own].tolist()
            start = int(own.sum()) - len(reply)
            said = reply
            if task in ("score", "reason"):
                # Between the digits there is nothing to choose.
                scores = len(reply_ids(tokenizer, SHORT, example.scores)) - len(ScoreGrammar.of(tokenizer).opening)
                digits = ScoreGrammar.of(tokenizer).digits
                said = [*reply[:-scores], *(id if id in digits else IGNORED for id in reply[-scores:])]
            assert labels == ([IGNORED] * (start - 1) + said + [IGNORED])[: len(labels)]


@pytest.mark.parametrize("task", TASKS)
def test_nothing_is_labelled_twice_and_only_the_replies_are(tokenizer, task):
    batch = drawer_of(tokenizer, task).batch(np.random.default_rng(3), 2, "train")
    words, digits = batch.words != IGNORED, batch.digits != IGNORED
    assert not (words & digits).any()
    assert not (words | digits)[batch.packed.owner < 0].any()
    assert digits.any() == (task in ("score", "reason"))


@pytest.mark.parametrize("task", ["score", "reason"])
def test_digits_are_those_of_the_scores_and_no_others(tokenizer, task):
    batch = drawer_of(tokenizer, task).batch(np.random.default_rng(3), 2, "train")
    for row, (_, questions) in enumerate(drawn_by(task)):
        said = batch.digits[row][batch.digits[row] != IGNORED].tolist()
        scores = [f"{score:.2f}" for example in questions for score in example.scores]
        assert tokenizer.decode(said) == "".join(scores).replace(".", "")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("misread", [0.0, 1.0])
def test_the_words_for_ious_are_marked(tokenizer, task, misread):
    batch = drawer_of(tokenizer, task, misread=misread).batch(np.random.default_rng(3), 2, "train")
    words = [tokenizer.decode(token).strip() for token in batch.packed.ids[batch.verdicts]]
    examples = [example for _, questions in drawn_by(task) for example in questions]
    right = [describe_iou(score) for example in examples for score in example.scores] if task == "reason" else []
    assert len(words) == len(right)
    assert set(words) <= set(IOU_WORDS)
    assert (words == right) or misread


def test_words_about_the_question_are_none_for_ious(tokenizer):
    example = example_with("behind: no. answer: none.", "cup b3", "background", scores=[0.7, 0.0])
    drawer = drawer_of(tokenizer, "reason")
    block = drawer.block("reason", example, example)
    assert [tokenizer.decode(block.ids[at]) for at in drawer.verdicts("reason", block)] == [" exactly", " no"]


@pytest.mark.parametrize("task", ["score", "reason"])
def test_a_misread_reply_stands_where_the_right_one_is_said(tokenizer, task):
    batch, right = (
        drawer_of(tokenizer, task, misread=m).batch(np.random.default_rng(3), 2, "train") for m in (1.0, 0.0)
    )
    digit, word = (labels.roll(1, 1) != IGNORED for labels in (right.digits, right.words))  # said one place before
    passed = right.digits != batch.digits  # the decimals of a 1.00 that is read below one
    assert (right.digits[passed] == tokenizer.encode("0", add_special_tokens=False)[0]).all()
    assert_close(batch.packed.ids[~digit & ~word], right.packed.ids[~digit & ~word])
    assert (batch.packed.ids[digit] != right.packed.ids[digit]).float().mean() > 0.3
    assert_close(right.packed.ids[digit], right.digits[right.digits != IGNORED])
    falsified = word & (batch.packed.ids != right.packed.ids)
    assert falsified.any() == (task == "reason")
    assert_close(batch.words, torch.where(falsified.roll(-1, 1), IGNORED, right.words))


def test_a_perfect_mask_read_below_one_is_labelled_as_near_one_as_can_be(tokenizer):
    drawer = drawer_of(tokenizer, "score")
    example = example_with("", "cup b3", "cup b3", "cup b3", scores=[1.0, 1.0, 0.87])
    block = drawer.block("score", example, replace(example, scores=[0.52, 1.0, 1.0]))
    words, digits = (torch.full((len(block.ids),), IGNORED) for _ in range(2))
    drawer.label(words, digits, 0, block)
    assert tokenizer.decode(digits[digits != IGNORED]) == "199" + "100" + "087"


@pytest.mark.parametrize(("task", "misread"), [("score", 100), ("reason", 100), ("explain", 0), ("describe", 0)])
def test_half_of_the_scored_groups_are_misread(tokenizer, task, misread):
    drawer, rng = drawer_of(tokenizer, task, misread=0.5), np.random.default_rng(0)
    example = drawn_by(task)[0][1][0]
    assert sum(drawer.read(rng, task, example) is not example for _ in range(200)) == pytest.approx(misread, abs=25)


def example_with(reasoning, *under, scores=None):
    mask = np.ones((8, 8), bool)
    return Example("it", reasoning, mask, "", ~mask, [mask] * len(under), scores or [0.5] * len(under), [*under])


def test_a_tokenizer_whose_words_differ_in_length_cannot_misread():
    few = train(400, scenes=20, seed=0)
    drawer_of(few, "reason")
    with pytest.raises(ConfigError, match="leave `misread` at 0"):
        drawer_of(few, "reason", misread=0.5)


def test_an_opening_within_the_words_is_not_taken_for_the_scores(tokenizer):
    example = example_with("Scores: [0.5 is b3.", "cup b3", scores=[0.25])
    drawer = drawer_of(tokenizer, "reason")
    block = drawer.block("reason", example, example)
    assert tokenizer.decode([block.ids[at] for at in sorted(drawer.scored(block))]) == "025"


def fixed_source(group=2):
    """One picture with two questions and two masks each, all of them different."""
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 255, (3, 48, 64), dtype=np.uint8))

    def example(text, masks):
        return Example(
            text, "because.", masks[0], "", np.zeros_like(masks[0]),
            list(masks), [0.12, 1.0][: len(masks)], ["cup b3", "background"][: len(masks)],
        )  # fmt: skip

    coarse = rng.random((2, group, 6, 8)) > 0.5
    masks = coarse.repeat(8, axis=2).repeat(8, axis=3)
    questions = [example("the red cup", masks[0]), example("the box left of the blue ball", masks[1])]
    return image, questions


def single(drawer, image, example, task):
    """A batch of one block."""
    one = JudgementDrawer(
        drawer.tokenizer, SHORT, drawer.sides, (drawer.image_tokens, drawer.mask_tokens), {task: Portion(1.0, 1)},
        lambda *_, **__: (image, [example]),
    )  # fmt: skip
    return one.batch(np.random.default_rng(0), 1, "train")


@torch.no_grad()
def test_features_are_where_the_model_itself_puts_them(stage, tokenizer):
    """One block whose image and masks are of one size is an ordinary call of the model."""
    image, questions = fixed_source()
    drawer = drawer_of(tokenizer, "reason", (64, 64), (16, 16))
    batch = single(drawer, image, questions[0], "reason")
    masks = mask_pixels(torch.from_numpy(np.stack(questions[0].masks)), 64)
    pixels = torch.cat([image_pixels(image, 64)[None], masks])
    ids = batch.packed.ids
    theirs = stage.model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels).logits
    mine = logits_of(stage, batch)
    assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    swapped = pixels[[0, 2, 1]]
    other = stage.model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=swapped).logits
    assert (mine - other).abs().max() > 0.1


def seen_by(stage, batch):
    return stage.see(batch, *stage.slots(batch.packed.ids, batch.inside.shape[1]))


def logits_of(stage, batch):
    hidden = stage.base.model.language_model(
        inputs_embeds=seen_by(stage, batch),
        attention_mask=batch.packed.mask(),
        position_ids=batch.packed.positions,
    ).last_hidden_state
    return stage.base.lm_head(hidden)


@torch.no_grad()
@pytest.mark.parametrize("task", ["score", "reason"])
def test_a_packed_batch_is_one_call_for_each_of_its_blocks(stage, tokenizer, task):
    image, questions = fixed_source()
    other = image.flip(2)
    turns = iter([(image, questions), (other, questions[1:])])
    drawer = JudgementDrawer(tokenizer, SHORT, SIDES, TOKENS, {task: Portion(1.0, 2)}, lambda *_, **__: next(turns))
    batch = drawer.batch(np.random.default_rng(0), 2, "train")
    packed = logits_of(stage, batch)
    alone = [(0, 0, image, questions[0]), (0, 1, image, questions[1]), (1, 0, other, questions[1])]
    for row, block, picture, example in alone:
        own = batch.packed.owner[row] == block
        expected = logits_of(stage, single(drawer, picture, example, task))[0]
        assert_close(packed[row][own], expected[-int(own.sum()) :], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_evaluator_meets_at_inference_the_probabilities_of_training(stage, tokenizer):
    """Its confidence in the first digit of the first mask, out of `InternVL.score` and out of a training batch."""
    image, questions = fixed_source(group=1)
    judge = InternVL.wrap(stage.model, tokenizer, template=SHORT, image_side=64, mask_side=32)
    seen = []
    judge._judge, whole = lambda reply: seen.append(reply.choices) or whole(reply), judge._judge
    for example in questions:
        judge.score(
            Query(image, example.text), [[Candidate(torch.from_numpy(mask), "given", 0.5) for mask in example.masks]]
        )
        batch = single(drawer_of(tokenizer, "score"), image, example, "score")
        first = int(torch.nonzero(batch.digits[0] != IGNORED)[0])
        digits = judge.grammar.digits[:2]
        mine = logits_of(stage, batch)[0, first].softmax(-1)[list(digits)].sum()
        assert seen[-1][0].mass == pytest.approx(float(mine), rel=1e-3)


def test_masks_of_a_batch_follow_their_places(tokenizer):
    batch = drawer_of(tokenizer, "score").batch(np.random.default_rng(WHOLE), 2, "train")
    drawn = drawn_by("score", WHOLE)
    masks = [mask for _, questions in drawn for example in questions for mask in example.masks]
    assert len(batch.mask_pixels) == 2 * COUNT * 3
    for shown, mask in zip(batch.mask_pixels, masks, strict=True):
        assert_close(shown, mask_pixels(torch.from_numpy(mask)[None], 32)[0])
    assert_close(batch.pixels[1], image_pixels(drawn[1][0], 64))


def test_tasks_are_drawn_by_their_weights(tokenizer):
    image, questions = fixed_source()
    told = []

    def source(rng, count, split, masks):  # noqa: ARG001
        told.append(masks)
        return image, questions[:count]

    tasks = {"explain": Portion(1.0, 1), "score": Portion(3.0, 1)}
    drawer = JudgementDrawer(tokenizer, SHORT, SIDES, TOKENS, tasks, source)
    for seed in range(40):
        drawer.batch(np.random.default_rng(seed), 1, "train")
    assert 24 <= sum(told) <= 36


@pytest.mark.parametrize("task", TASKS)
def test_regions_belong_to_the_questions_in_their_order(tokenizer, task):
    batch = drawer_of(tokenizer, task).batch(np.random.default_rng(3), 2, "train")
    every = [example for _, questions in drawn_by(task) for example in questions]
    assert_close(batch.under, tokens_under([mask for example in every for mask in example.masks], 4, 2))
    if task == "describe":
        assert not (batch.question_ends | batch.mention_ends).any()
        assert not any(map(len, (batch.inside, batch.mentioned, batch.judges, batch.shares)))
        return
    rows, places = torch.nonzero(batch.question_ends, as_tuple=True)
    assert len(rows) == len(every) == len(batch.inside)
    newline = tokenizer("\n", add_special_tokens=False).input_ids[-1]
    for row, place, example, inside in zip(rows, places, every, batch.inside, strict=True):
        assert batch.packed.ids[row, place] == newline
        block = batch.packed.owner[row, place]
        ids = batch.packed.ids[row, : place + 1][batch.packed.owner[row, : place + 1] == block]
        assert tokenizer.decode(ids).strip() == example.text
        assert_close(inside, tokens_inside(coverage([example.truth], 4).mean(-1))[0])
    assert batch.mentioned.any()
    rows, places = torch.nonzero(batch.mention_ends, as_tuple=True)
    for row, place, example, mentioned in zip(rows, places, every, batch.mentioned, strict=True):
        block = batch.packed.owner[row, place]
        ids = batch.packed.ids[row, : place + 1][batch.packed.owner[row, : place + 1] == block]
        assert tokenizer.decode(ids) == example.mention or (example.mention == "" and len(ids) == 1)
        assert_close(mentioned, tokens_inside(coverage([example.mentioned], 4).mean(-1))[0])
    judged = [(example.truth, mask) for example in every for mask in example.masks]
    assert batch.judges.tolist() == [number for number, example in enumerate(every) for _ in example.masks]
    assert len(batch.shares) == len(judged)
    for shares, (truth, mask) in zip(batch.shares, judged, strict=True):
        assert_close(shares, torch.cat(list(coverage([truth, truth & mask], 2)), dim=-1))
