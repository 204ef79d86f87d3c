from unittest import mock

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as attention
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model

from rea2seg.generator.attention import BACKEND
from tests.training.conftest import roughen
from training.packing import HIDDEN, PADDING, PREFIX, BlockAttention, causal, pack, products

PREFIX_IDS = [5, 6, 7]
ROWS = [[[11, 12], [13, 14, 15, 16], [17]], [[18, 19, 20], [21]]]
SIZE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize("backend", ["sdpa", BACKEND])
@pytest.mark.parametrize(("family", "config"), [(LlamaModel, LlamaConfig), (Qwen2Model, Qwen2Config)])
@torch.no_grad()
def test_a_packed_pass_is_one_pass_for_each_question(family, config, backend):
    model = roughen(family(config(**SIZE)))
    model.set_attn_implementation(backend)
    packed = pack(PREFIX_IDS, ROWS, pad=0)
    together = model(
        input_ids=packed.ids, attention_mask=packed.mask(), position_ids=packed.positions, use_cache=False
    ).last_hidden_state
    for row, blocks in enumerate(ROWS):
        for number, block in enumerate(blocks):
            alone = model(input_ids=torch.tensor([PREFIX_IDS + block])).last_hidden_state[0]
            assert_close(together[row][packed.owner[row] == number], alone[len(PREFIX_IDS) :], atol=1e-5, rtol=1e-5)
        assert_close(together[row][packed.owner[row] == PREFIX], alone[: len(PREFIX_IDS)], atol=1e-5, rtol=1e-5)
    assert together.isfinite().all()


@pytest.mark.parametrize("backend", ["sdpa", BACKEND])
def test_attention_by_blocks_is_attention_under_the_mask(backend):
    model = roughen(LlamaModel(LlamaConfig(**SIZE)))
    model.set_attn_implementation(backend)
    packed = pack(PREFIX_IDS, ROWS, pad=0)
    embedded = model.get_input_embeddings()(packed.ids).detach().requires_grad_()

    def run():
        seen = {"attention_mask": packed.mask(), "position_ids": packed.positions, "use_cache": False}
        hidden = model(inputs_embeds=embedded, **seen).last_hidden_state
        return hidden.detach(), torch.autograd.grad(hidden.square().sum(), embedded)[0]

    attend = BlockAttention.attend
    with mock.patch.object(BlockAttention, "attend", autospec=True, side_effect=attend) as used, BlockAttention(packed):
        by_blocks = run()
    assert used.call_count == SIZE["num_hidden_layers"]
    assert_close(by_blocks, run(), atol=1e-4, rtol=1e-4)


def test_attention_by_products_is_fused_attention_in_less_precision():
    query, key, value = torch.randn(3, 1, 4, 6, 8)
    hidden = torch.where(causal(4, 2, query.device), 0.0, HIDDEN)
    for scale in (None, 0.5):
        exact = attention(query[:, :, 2:], key, value, attn_mask=hidden, scale=scale)
        assert_close(products(query[:, :, 2:], key, value, hidden, scale), exact, atol=0.05, rtol=0.05)


def test_mixed_precision_on_a_cpu_attends_by_products():
    packed = pack(PREFIX_IDS, ROWS, pad=0)
    states = torch.randn(2, 4, packed.ids.shape[1], 8)
    with BlockAttention(packed), mock.patch("training.packing.products", side_effect=products) as used:
        single = attention(states, states, states, attn_mask=packed.mask())
        assert not used.called
        with torch.autocast("cpu", torch.bfloat16):
            mixed = attention(states, states, states, attn_mask=packed.mask())
    assert used.called
    assert_close(mixed, single, atol=0.05, rtol=0.05)


def test_attention_that_is_not_of_the_pack_is_left_alone():
    other = torch.randn(2, 4, 5, 8)
    expected = attention(other, other, other)
    with BlockAttention(pack(PREFIX_IDS, ROWS, pad=0)):
        assert_close(attention(other, other, other), expected)


def test_positions_go_on_from_the_prefix_and_padding_is_on_the_right():
    packed = pack(PREFIX_IDS, ROWS, pad=3)
    assert packed.ids[1].tolist() == [5, 6, 7, 18, 19, 20, 21, 3, 3, 3]
    assert packed.owner[1].tolist() == [PREFIX] * 3 + [0, 0, 0, 1] + [PADDING] * 3
    assert packed.positions[0].tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6, 3]


def test_nobody_attends_to_padding_or_to_another_question():
    packed = pack(PREFIX_IDS, ROWS, pad=3)
    mask, owner = packed.mask()[1, 0], packed.owner[1]
    real = owner != PADDING
    assert not mask[real][:, ~real].any()
    assert mask[3:6, :3].all()
    assert not mask[6, 3:6].any()
    assert mask.diagonal().all()
    assert not mask.triu(1).any()
