"""The losses that lead the evaluator from the asked region to the scores."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.testing import assert_close

from rea2seg.errors import ConfigError
from rea2seg.evaluators.prompts import SHORT
from rea2seg.generator.attention import BACKEND, Rows
from tests.training.conftest import LANGUAGE, TWO_LAYERS, evaluator_stage
from training.examples import FreshScenes
from training.guidance import FlaggedRows, Watched, matching, places, reading
from training.judgements import IGNORED, JudgementDrawer, Portion
from training.packing import PADDING, BlockAttention

TOKENS = 16


ASKED = {"mention", "attention", "accuracy/attention", "pointing", "accuracy/pointing"}
JUDGED = {"looking", "matching", "overlap", "reading"}


def batch_of(tokenizer, task):
    source = FreshScenes(["attribute", "geometric", "spatial"], group=3)
    drawer = JudgementDrawer(tokenizer, SHORT, (64, 32), (TOKENS, 4), {task: Portion(1.0, 2)}, source)
    return drawer.batch(np.random.default_rng(3), 2, "train")


@pytest.fixture(scope="module")
def batch(tokenizer):
    return batch_of(tokenizer, "score")


@pytest.fixture(scope="module")
def stage(tokenizer, tmp_path_factory):
    return evaluator_stage(tokenizer, tmp_path_factory.mktemp("evaluator"))


@torch.no_grad()
def test_the_watched_attention_is_that_of_the_full_matrices(stage, batch):
    of_image, of_masks = stage.slots(batch.packed.ids, TOKENS)
    assert of_image.sum() == 2 * TOKENS
    assert of_masks.sum() == batch.under.shape[:2].numel()
    inputs = {"inputs_embeds": stage.see(batch, of_image, of_masks), "position_ids": batch.packed.positions}
    model = stage.base.model.language_model
    assert model.config._attn_implementation == BACKEND
    with BlockAttention(batch.packed), stage.guidance.watch(batch, of_masks) as watched:
        mine = model(**inputs, attention_mask=batch.packed.mask()).last_hidden_state
    eager = deepcopy(model)
    eager.set_attn_implementation("eager")
    mask = torch.zeros(batch.packed.mask().shape).masked_fill(~batch.packed.mask(), -1e9)
    whole = eager(**inputs, attention_mask=mask, output_attentions=True)
    real = batch.packed.owner != PADDING
    assert_close(mine[real], whole.last_hidden_state[real], atol=1e-4, rtol=1e-4)
    first, second = (layer.mean(1) for layer in whole.attentions)
    assert 0 < watched.looks.flags.sum() < of_masks.sum()
    assert_close(watched.looks.weights(), first[watched.looks.flags], atol=1e-5, rtol=1e-4)
    assert_close(watched.mentions.weights(), first[batch.mention_ends], atol=1e-5, rtol=1e-4)
    assert_close(watched.points.weights(), (first + second)[batch.question_ends] / 2, atol=1e-5, rtol=1e-4)
    assert_close(watched.reads.weights(), second[batch.digits != IGNORED], atol=1e-5, rtol=1e-4)


def told(flags, weights):
    """What a probe would have found: attention of one layer and one head, for the flagged places in their order."""
    found = Rows([0], places(flags))
    found.layers[0] = pad_sequence(weights.split(flags.sum(1).tolist()), batch_first=True)[:, :, None]
    return FlaggedRows(found, flags)


def own_masks(of_masks):
    """For the three digits of every number, in the order of the masks, the columns of its mask's four tokens."""
    rows = []
    for row in range(len(of_masks)):
        for columns in torch.nonzero(of_masks[row])[:, 0].split(4):
            rows += 3 * [torch.zeros(of_masks.shape[1]).index_fill(0, columns, 1.0)]
    return torch.stack(rows)


@torch.no_grad()
def test_each_loss_falls_as_its_own_layer_shows_the_region(stage, batch):
    of_image, of_masks = stage.slots(batch.packed.ids, TOKENS)
    showing, under = of_masks.masked_scatter(of_masks, batch.under.any(-1)), batch.under[batch.under.any(-1)]
    guidance, directions = deepcopy(stage.guidance), torch.eye(LANGUAGE.width)[: len(batch.inside)]
    for head in (guidance.of_question, guidance.of_region):
        head.weight.copy_(torch.eye(*head.weight.shape))
    states, length = [torch.zeros(*batch.packed.ids.shape, LANGUAGE.width) for _ in range(3)], of_masks.shape[1]
    flags = (showing, batch.mention_ends, batch.question_ends, batch.digits != IGNORED)
    watched = Watched(*(told(where, torch.ones(int(where.sum()), length)) for where in flags))
    losses = {}

    def fallen():
        before = dict(losses)
        losses.update(guidance.losses(batch, states, watched, of_image[0], of_masks))
        return {name for name in before if "accuracy" not in name and losses[name] < before[name]}

    def on_image(tokens):
        return torch.zeros(len(tokens), length).masked_scatter(of_image[0], tokens.float())

    fallen()  # The losses to start from.
    watched = watched._replace(looks=told(flags[0], on_image(under)))
    assert fallen() == {"looking"}
    assert batch.mentioned.any()
    watched = watched._replace(mentions=told(flags[1], on_image(batch.mentioned)))
    assert fallen() == {"mention"}
    watched = watched._replace(points=told(flags[2], on_image(batch.inside)))
    assert fallen() == {"attention"}
    assert losses["accuracy/attention"] == 1
    watched = watched._replace(reads=told(flags[3], own_masks(of_masks)))
    assert fallen() == {"reading"}
    share = batch.shares[..., 16:].mean(-1)
    fullest = torch.stack([share[batch.judges == number].max() for number in range(len(batch.inside))])
    shown = (share > 0) & (share >= 0.5 * fullest[batch.judges, None])
    states[1][batch.question_ends] = directions
    states[1][of_masks] = (directions[batch.judges][:, None] * (2.0 * shown - 1)[..., None]).flatten(0, 1)
    assert fallen() == {"matching"}
    on_tokens = directions[:, None] * (2.0 * batch.inside - 1)[..., None]
    for row, token in zip(torch.nonzero(batch.question_ends)[:, 0], on_tokens, strict=True):
        states[1][row, of_image[row]] += token
    assert fallen() == {"pointing"}
    assert losses["accuracy/pointing"] == 1
    assert max(losses[name] for name in ("looking", "mention", "attention", "pointing", "matching", "reading")) < 1e-4
    guidance.overlap.weight.copy_(torch.eye(LANGUAGE.width))
    guidance.overlap.bias.zero_()
    states[2][of_masks] = batch.shares.flatten(0, 1).logit(1e-4)
    assert fallen() == {"overlap"}
    least = functional.binary_cross_entropy(batch.shares, batch.shares)
    assert_close(losses["overlap"], least, atol=1e-3, rtol=0)


@torch.no_grad()
def test_scores_that_attend_to_their_own_words_quote_them(tokenizer):
    batch = batch_of(tokenizer, "reason")
    rows, columns = torch.nonzero(batch.verdicts, as_tuple=True)
    digits = torch.nonzero(batch.digits != IGNORED)[:, 0]
    assert len(digits) == 3 * len(columns) == 3 * len(batch.judges)
    own = torch.zeros(len(digits), batch.verdicts.shape[1])
    own[torch.arange(len(digits)), columns.repeat_interleave(3)] = 1.0
    flags, count = batch.digits != IGNORED, len(batch.judges)
    assert reading(told(flags, own), batch.verdicts, count) == 0
    # As much to every word: to its own one's share.
    shares = batch.verdicts.sum(1)[digits].float()
    everything = told(flags, torch.ones_like(own))
    assert_close(reading(everything, batch.verdicts, count), shares.log().mean())
    # Of the same row, but the next mask's.
    others = torch.cat([own[digits == row].roll(3, 0) for row in rows.unique()])
    assert reading(told(flags, others), batch.verdicts, count) > 10


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("point", ASKED),
        ("explain", ASKED),
        ("describe", {"looking"}),
        ("score", ASKED | JUDGED),
        ("reason", ASKED | JUDGED | {"quoting"}),
    ],
)
def test_losses_are_those_that_a_task_has(stage, tokenizer, task, told):
    parts = stage.losses(batch_of(tokenizer, task))
    assert parts.keys() & (ASKED | JUDGED | {"quoting"}) == told
    assert ("digits" in parts) == (task in ("score", "reason"))
    assert all(value.isfinite() for value in parts.values())


@pytest.mark.parametrize(
    ("name", "layer", "later"),
    [
        ("looking", 0, 1),
        ("mention", 0, 1),
        ("attention", 1, None),
        ("pointing", 0, 1),
        ("matching", 0, 1),
        ("reading", 1, None),
        ("quoting", 1, None),
    ],
)
def test_guidance_reaches_the_layers_that_it_is_about_and_none_above(stage, tokenizer, name, layer, later):
    stage.zero_grad()
    stage.losses(batch_of(tokenizer, "reason"))[name].backward()
    layers = stage.base.model.language_model.layers
    assert layers[layer].self_attn.q_proj.weight.grad.abs().sum() > 0
    if later is not None:
        assert layers[later].self_attn.q_proj.weight.grad is None


@torch.no_grad()
def test_a_mask_that_shows_nothing_and_a_question_without_masks_are_left_out(stage, batch):
    _, of_masks = stage.slots(batch.packed.ids, TOKENS)
    states, tokens = torch.randn(len(batch.inside), 64), torch.randn(int(of_masks.sum()), 64)
    lonely = replace(batch, judges=batch.judges.clamp(max=2))  # The last question's masks are the third one's now.
    assert matching(lonely, states, tokens).isfinite()
    empty = replace(batch, under=torch.zeros_like(batch.under))
    assert "looking" not in stage.losses(empty)


def test_layers_that_a_model_has_not_are_refused(tokenizer, tmp_path):
    for wrong in (replace(TWO_LAYERS, read_layers=(1, 2)), replace(TWO_LAYERS, cover_after=3)):
        with pytest.raises(ConfigError, match="not all among the model's 2"):
            evaluator_stage(tokenizer, tmp_path, guided=wrong)


def test_an_adapter_takes_no_language_model_over(tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="an adapter"):
        evaluator_stage(tokenizer, tmp_path, rank=2, language="generator")
