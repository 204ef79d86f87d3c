"""The probe against the full matrices of transformers' eager attention, which is never the product's way."""

import pytest
import torch
from torch.testing import assert_close

from rea2seg.generator.attention import enable, probe, prompt_attention
from rea2seg.generator.llava import last_hidden
from rea2seg.generator.tokens import TokenLayout
from tests.generator.conftest import build_mllm

LAYERS = range(3)


def eager_matrices(mllm, embeddings, mask=None, positions=None):
    mllm.set_attn_implementation({"text_config": "eager"})
    with torch.no_grad():
        output = mllm.get_decoder()(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, output_attentions=True
        )
    enable(mllm)
    return output.attentions


def assert_rows_equal(found, matrices, rows):
    for layer in LAYERS:
        for index, wanted in enumerate(rows.tolist()):
            expected = matrices[layer][index, :, wanted].transpose(0, 1)
            assert_close(found.layers[layer][index], expected, atol=1e-5, rtol=0)


def block_mask(lengths):
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return ((owner[:, None] == owner) & torch.ones(len(owner), len(owner), dtype=torch.bool).tril())[None, None]


@pytest.fixture(params=[1, 2, 4], ids=lambda groups: f"{groups}_key_heads")
def mllm(request):
    return build_mllm(64, key_heads=request.param)


EMBEDDINGS = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(0))
ROWS = torch.tensor([[6, 11], [4, 9]])


def test_rows_equal_the_full_matrix(mllm):
    matrices = eager_matrices(mllm, EMBEDDINGS)
    with probe(LAYERS, ROWS) as found, torch.no_grad():
        last_hidden(mllm, EMBEDDINGS)
    assert_rows_equal(found, matrices, ROWS)


def test_nested_probes_each_find_their_own_rows(mllm):
    matrices = eager_matrices(mllm, EMBEDDINGS)
    others = torch.tensor([[3], [10]])
    with probe(LAYERS, ROWS) as outer, torch.no_grad(), probe([1, 2], others) as inner:
        last_hidden(mllm, EMBEDDINGS)
    assert_rows_equal(outer, matrices, ROWS)
    assert inner.layers.keys() == {1, 2}
    for layer in (1, 2):
        for index, wanted in enumerate(others.tolist()):
            expected = matrices[layer][index, :, wanted].transpose(0, 1)
            assert_close(inner.layers[layer][index], expected, atol=1e-5, rtol=0)
    expected = torch.stack([outer.layers[layer] for layer in LAYERS]).mean((0, 3))
    assert_close(outer.mean(), expected)


def test_rows_honour_left_padding(mllm):
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0
    matrices = eager_matrices(mllm, EMBEDDINGS, mask)
    with probe(LAYERS, ROWS) as found, torch.no_grad():
        last_hidden(mllm, EMBEDDINGS, mask)
    assert_rows_equal(found, matrices, ROWS)
    assert found.layers[0][0, :, :, :5].eq(0).all()


@pytest.mark.parametrize("additive", [False, True])
def test_rows_honour_a_packed_block_mask(mllm, additive):
    mask = block_mask([5, 7]).expand(2, -1, -1, -1)
    float_mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None].expand(2, -1)
    matrices = eager_matrices(mllm, EMBEDDINGS, float_mask, positions)
    with probe(LAYERS, ROWS) as found, torch.no_grad():
        last_hidden(mllm, EMBEDDINGS, float_mask if additive else mask, positions)
    assert_rows_equal(found, matrices, ROWS)


def test_a_packed_block_mask_equals_separate_sequences(mllm):
    enable(mllm)
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None].expand(2, -1)
    with torch.no_grad():
        packed = last_hidden(mllm, EMBEDDINGS, block_mask([5, 7]).expand(2, -1, -1, -1), positions)
        alone = [last_hidden(mllm, EMBEDDINGS[:, :5]), last_hidden(mllm, EMBEDDINGS[:, 5:])]
    assert_close(packed, torch.cat(alone, 1), atol=1e-5, rtol=0)


def test_rows_are_found_inside_generate_whatever_the_step(mllm):
    """The first wanted row lies in the prompt, the others appear one step at a time, with the cache."""
    enable(mllm)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, :3] = 0
    rows = torch.tensor([[5, 11, 12, 14], [11, 12, 13, 14]])
    with probe(LAYERS, rows) as found:
        said = mllm.generate(
            inputs_embeds=EMBEDDINGS, attention_mask=mask, max_new_tokens=4, min_new_tokens=4, do_sample=False
        )
    whole = torch.cat([EMBEDDINGS, mllm.get_input_embeddings()(said[:, :3])], 1)
    positions = torch.cat([mask, torch.ones(2, 3, dtype=torch.long)], 1)
    matrices = eager_matrices(mllm, whole, positions, (positions.cumsum(1) - 1).clamp(min=0))
    assert found.layers[0].shape == (2, 4, 4, 15)
    assert_rows_equal(found, matrices, rows)


def test_the_probe_changes_no_output():
    mllm = build_mllm(64)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0
    plain = last_hidden(mllm, EMBEDDINGS, mask)
    enable(mllm)
    with probe(LAYERS, ROWS):
        assert torch.equal(last_hidden(mllm, EMBEDDINGS, mask)[mask.bool()], plain[mask.bool()])


def test_only_the_language_model_is_probed():
    mllm = build_mllm(64)
    enable(mllm)
    assert mllm.model.vision_tower.config._attn_implementation == "sdpa"


def test_weights_are_float32_and_complete_in_half_precision():
    mllm = build_mllm(64).bfloat16()
    enable(mllm)
    with probe([2], ROWS) as found, torch.no_grad():
        last_hidden(mllm, EMBEDDINGS.bfloat16())
    assert found.layers.keys() == {2}
    assert found.layers[2].dtype == torch.float32
    assert_close(found.layers[2].sum(-1), torch.ones(2, 2, 4))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_flow_through_the_rows(checkpointing):
    """Training may put a loss on attention. Checkpointing runs each layer twice; the rows must count once."""
    mllm = build_mllm(64).train()
    enable(mllm)
    if checkpointing:
        mllm.gradient_checkpointing_enable()
    embeddings = EMBEDDINGS.clone().requires_grad_()
    with probe(LAYERS, ROWS) as found:
        last_hidden(mllm, embeddings)
        assert_close(found.layers[0].sum(-1), torch.ones(2, 2, 4))
        torch.stack([found.layers[layer][..., :4] for layer in LAYERS]).square().sum().backward()
    assert_close(found.layers[0].sum(-1), torch.ones(2, 2, 4))

    whole = EMBEDDINGS.clone().requires_grad_()
    mllm.gradient_checkpointing_disable()
    mllm.set_attn_implementation({"text_config": "eager"})
    matrices = mllm.get_decoder()(inputs_embeds=whole, output_attentions=True).attentions
    loss = [matrices[layer][index, :, ROWS[index], :4].square().sum() for layer in LAYERS for index in range(2)]
    torch.stack(loss).sum().backward()
    assert_close(embeddings.grad, whole.grad, atol=1e-5, rtol=1e-4)


def test_an_unprobed_model_is_an_error_and_not_an_empty_map():
    with pytest.raises(RuntimeError, match="layer 0 gave no attention"), probe(LAYERS, ROWS):
        last_hidden(build_mllm(64), EMBEDDINGS)


def test_a_row_beyond_the_sequence_is_an_error():
    mllm = build_mllm(64)
    enable(mllm)
    with pytest.raises(RuntimeError, match=r"rows \[12\]"), probe(LAYERS, torch.tensor([[3], [12]])):
        last_hidden(mllm, EMBEDDINGS)


def test_prompt_attention_is_the_mean_over_heads_and_layers_of_the_image_columns():
    layout = TokenLayout(slice(1, 7), (2, 3), (9,), 10)
    layers = [torch.rand(1, 4, 10) for _ in range(2)]
    expected = torch.stack(layers)[..., 1:7].mean((0, 2)).reshape(1, 2, 3)
    assert_close(prompt_attention(layers, layout), expected)
    assert_close(prompt_attention([weights[0] for weights in layers], layout), expected[0])
