"""The losses that lead the evaluator from the asked region to the scores."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.testing import assert_close

from rea2seg.evaluators.prompts import SHORT
from rea2seg.generator.attention import BACKEND, Rows
from tests.training.conftest import LANGUAGE, VIT, roughen
from training.evaluator import EvaluatorStage
from training.guidance import Attention, Guidance, Watched, places
from training.judgements import IGNORED, FreshScenes, JudgementDrawer
from training.mini import small_internvl
from training.packing import PADDING, BlockAttention

TOKENS = 16


@pytest.fixture(scope="module")
def batch(tokenizer):
    source = FreshScenes(["attribute", "geometric"], group=3)
    drawer = JudgementDrawer(tokenizer, SHORT, (64, 32), (TOKENS, 4), {"score": 1.0}, {"score": 2}, source)
    return drawer.batch(np.random.default_rng(3), 2, "train")


@pytest.fixture(scope="module")
def stage(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluator")
    roughen(small_internvl(VIT, LANGUAGE, tokenizer, 0.5)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    layers = {"look": (0, 0), "point": (0, 1), "match": 1, "cover": 2, "read": (1, 1)}
    return EvaluatorStage(str(folder), str(folder / "export"), **layers).eval()


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
    assert_close(watched.points.weights(), (first + second)[batch.asked] / 2, atol=1e-5, rtol=1e-4)
    assert_close(watched.reads.weights(), second[batch.digits != IGNORED], atol=1e-5, rtol=1e-4)


def told(flags, weights):
    """What a probe would have found: attention of one layer and one head, for the flagged places in their order."""
    found = Rows([0], places(flags))
    found.layers[0] = pad_sequence(weights.split(flags.sum(1).tolist()), batch_first=True)[:, :, None]
    return Attention(found, flags)


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
    guidance, direction = deepcopy(stage.guidance), torch.eye(LANGUAGE.width)[0]
    guidance.of_mask.load_state_dict(guidance.of_question.state_dict())
    states, length = [torch.zeros(*batch.packed.ids.shape, LANGUAGE.width) for _ in range(3)], of_masks.shape[1]
    flags = (showing, batch.asked, batch.digits != IGNORED)
    watched = Watched(*(told(where, torch.ones(int(where.sum()), length)) for where in flags))
    losses = {}

    def fallen():
        before = dict(losses)
        losses.update(guidance.losses(batch, states, watched, of_image[0], of_masks))
        return {name for name in before if "accuracy" not in name and losses[name] < before[name]}

    def on_image(tokens):
        return torch.zeros(len(tokens), length).masked_scatter(of_image[0], tokens.float())

    assert not fallen()
    watched = watched._replace(looks=told(flags[0], on_image(under)))
    assert fallen() == {"looking"}
    watched = watched._replace(points=told(flags[1], on_image(batch.inside)))
    assert fallen() == {"pointing"}
    assert losses["accuracy/pointing"] == 1
    watched = watched._replace(reads=told(flags[2], own_masks(of_masks)))
    assert fallen() == {"reading"}
    share = batch.shares[..., 16:].mean(-1)
    fullest = torch.stack([share[batch.judges == number].max() for number in range(len(batch.inside))])
    shown = (share > 0) & (share >= 0.5 * fullest[batch.judges, None])
    states[1][batch.asked] = direction
    states[1][of_masks] = torch.where(shown.flatten()[:, None], direction, -direction)
    assert fallen() == {"matching"}
    assert max(losses[name] for name in ("looking", "pointing", "matching", "reading")) < 1e-4
    guidance.overlap.weight.copy_(direction)
    states[2][of_masks] = -10 * direction
    assert fallen() == {"overlap"}  # Most of what the masks show is not asked for.


def test_layers_are_counted_from_the_first_to_the_last():
    guidance = Guidance(8, (1, 2), (3, 3), 4, 5, (6, 7))
    assert ([*guidance.look], [*guidance.point], [*guidance.read]) == ([1, 2], [3], [6, 7])
