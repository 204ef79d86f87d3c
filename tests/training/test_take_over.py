"""What the evaluator of mini starts from: the generator's parts, computing what they computed there."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from rea2seg.checkpoints.sam import build_sam
from rea2seg.errors import ConfigError
from rea2seg.generator.llava import image_features
from tests.training.conftest import CLIP, LANGUAGE, SAM, VIT, roughen
from training.mini import small_internvl, small_llava
from training.take_over import see_at, take_over_language, take_over_sam, take_over_tower
from training.vision import image_tokens


@torch.no_grad()
def test_a_language_model_goes_on_in_a_larger_one(tokenizer):
    of = roughen(small_llava(CLIP, LANGUAGE, tokenizer, 32).mllm).get_decoder()
    to = small_internvl(VIT, replace(LANGUAGE, depth=3), tokenizer, 0.5).model.language_model
    ids = torch.arange(3, 40)[None]
    assert not torch.allclose(to(input_ids=ids).last_hidden_state, of(input_ids=ids).last_hidden_state, atol=0.1)
    take_over_language(to, of)
    assert_close(to(input_ids=ids).last_hidden_state, of(input_ids=ids).last_hidden_state)
    for other in ({"depth": 1}, {"width": 48}, {"mlp": 80}, {"heads": 8, "kv_heads": 4}):
        misfit = replace(LANGUAGE, **other)
        with pytest.raises(ConfigError, match="does not fit"):
            take_over_language(small_internvl(VIT, misfit, tokenizer, 0.5).model.language_model, of)


@torch.no_grad()
def test_a_narrower_mlp_keeps_the_neurons_that_do_something(tokenizer):
    of = roughen(small_llava(CLIP, LANGUAGE, tokenizer, 32).mllm).get_decoder()
    for number, layer in enumerate(of.layers):
        layer.mlp.down_proj.weight[:, number::4] = 0  # A quarter of the neurons, another one in each layer.
    to = small_internvl(VIT, replace(LANGUAGE, mlp=LANGUAGE.mlp * 3 // 4), tokenizer, 0.5).model.language_model
    ids = torch.arange(3, 40)[None]
    wanted = of(input_ids=ids).last_hidden_state
    take_over_language(to, of)
    assert_close(to(input_ids=ids).last_hidden_state, wanted)
    assert_close(of(input_ids=ids).last_hidden_state, wanted)


@torch.no_grad()
def test_the_layers_of_a_tower_compute_what_they_did(tokenizer):
    of, to = roughen(small_llava(CLIP, LANGUAGE, tokenizer, 32).mllm), small_internvl(CLIP, LANGUAGE, tokenizer, 1.0)
    take_over_tower(to, of)
    source, target = of.model.vision_tower, to.model.vision_tower
    for layer in target.encoder.layer:
        layer.mlp.activation_fn = source.encoder.layers[0].mlp.activation_fn
    tokens = torch.randn(2, 1 + (CLIP.side // CLIP.patch) ** 2, CLIP.width)
    wanted = source.encoder(inputs_embeds=tokens).last_hidden_state
    assert_close(target.encoder(tokens).last_hidden_state, wanted, atol=1e-3, rtol=0)  # Their norms' epsilons differ.


@torch.no_grad()
def test_a_tower_starts_near_its_teacher(tokenizer):
    torch.manual_seed(0)
    of, to = roughen(small_llava(CLIP, LANGUAGE, tokenizer, 32).mllm), small_internvl(CLIP, LANGUAGE, tokenizer, 1.0)
    pixels = torch.randn(2, 3, CLIP.side, CLIP.side)
    wanted = image_features(of, pixels)

    def error():
        return (to.get_image_features(pixel_values=pixels).pooler_output - wanted).square().mean() / wanted.var()

    before = error()
    take_over_tower(to, of)
    assert error() < 0.9 * before
    for other in ({"depth": 1}, {"width": 48}, {"side": 2 * CLIP.side}):
        with pytest.raises(ConfigError, match="does not fit"):
            take_over_tower(small_internvl(replace(CLIP, **other), LANGUAGE, tokenizer, 1.0), of)


@torch.no_grad()
def test_a_tower_for_larger_pictures_tells_what_it_told_of_them(tokenizer):
    """InternVL stretches its places as it goes; afterwards they are that large."""
    model = roughen(small_internvl(VIT, LANGUAGE, tokenizer, 0.5))
    pixels = torch.randn(2, 3, 96, 96)
    before = image_tokens(model, pixels)
    see_at(model, 96)
    assert_close(image_tokens(model, pixels), before)
    assert model.model.vision_tower.embeddings.position_embeddings.shape[1] == 1 + (96 // VIT.patch) ** 2
    assert (model.config.vision_config.image_size, model.config.image_seq_length) == ([96, 96], before.shape[1])
    with pytest.raises(ConfigError, match="does not divide"):
        see_at(model, 97)


def test_a_sam_of_the_same_canvas_is_taken_over_as_it_is():
    of, to = roughen(build_sam(SAM)).state_dict(), build_sam(SAM)
    taken = take_over_sam(to, of)
    assert taken.keys() == of.keys()
    assert_close(taken, of)


@torch.no_grad()
def test_a_sam_of_a_larger_canvas_has_the_same_places_and_offsets_in_finer_steps():
    everywhere = replace(SAM, encoder_global_blocks=(0, 1))
    of, to = roughen(build_sam(everywhere)), build_sam(replace(everywhere, image_size=2 * SAM.image_size))
    grid = SAM.image_size // SAM.patch_size
    of.image_encoder.pos_embed.copy_(torch.arange(grid).float()[:, None].expand_as(of.image_encoder.pos_embed))
    to.load_state_dict(take_over_sam(to, of.state_dict()))
    columns = to.image_encoder.pos_embed[0, :, 4:-4]  # Beyond, the interpolation meets the edge.
    assert_close(columns[:, 2:], columns[:, :-2] + 1)
    for coarse, fine in zip(of.image_encoder.blocks, to.image_encoder.blocks, strict=True):
        for name in ("rel_pos_h", "rel_pos_w"):
            assert_close(getattr(fine.attn, name)[1::2], getattr(coarse.attn, name))
