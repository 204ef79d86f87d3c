import json
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from rea2seg.devices import Placement
from rea2seg.errors import CheckpointError
from rea2seg.generator.llava import Parts, cell_map, clip_pixels, embed, image_features, load
from rea2seg.generator.tokens import IMAGE
from tests.generator.conftest import build_mllm

SIDE, GRID = 32, 4


def noise(height, width):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(50, 70), (71, 50), (32, 32), (20, 33), (301, 99)])
def test_cropping_is_what_clips_processor_does(size):
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    expected = processor(Image.fromarray(noise(*size).permute(1, 2, 0).numpy()), return_tensors="pt").pixel_values[0]
    assert_close(clip_pixels(noise(*size), SIDE, "crop"), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("geometry", ["crop", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 200)])
def test_the_narrowest_images_fit_too(geometry, size):
    start = time.perf_counter()
    assert clip_pixels(noise(*size), SIDE, geometry).shape == (3, SIDE, SIDE)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("size", [(20, 40), (64, 48), (100, 30)])
def test_padding_is_almost_zero_after_normalisation_and_equal_on_both_ends(size):
    blank = clip_pixels(torch.zeros(3, *size, dtype=torch.uint8), SIDE, "pad")
    padding = blank.abs().amax(0) < 0.02
    assert padding.equal(padding.flip(0, 1))
    assert padding.float().mean() == pytest.approx(1 - min(size) / max(size), abs=0.05)


@pytest.mark.parametrize("geometry", ["crop", "pad"])
@pytest.mark.parametrize("size", [(80, 120), (120, 80), (96, 96), (75, 101)])
def test_each_cell_stands_for_the_pixels_the_cell_map_says(geometry, size):
    """A bright square at the middle of a cell's pixel box lights up exactly that cell of the MLLM's input."""
    boxes = cell_map(size, SIDE, GRID, geometry).boxes()
    inside = 0
    for cell, (left, top, right, bottom) in enumerate(boxes.round().int().tolist()):
        if left < 0 or top < 0 or right > size[1] or bottom > size[0]:
            continue
        image = torch.zeros(3, *size, dtype=torch.uint8)
        image[:, top + 2 : bottom - 2, left + 2 : right - 2] = 255
        light = clip_pixels(image, SIDE, geometry) - clip_pixels(torch.zeros_like(image), SIDE, geometry)
        per_cell = light.mean(0).unflatten(0, (GRID, -1)).unflatten(2, (GRID, -1)).sum((1, 3)).flatten()
        assert per_cell.argmax() == cell
        assert per_cell[cell] > 0.97 * per_cell.abs().sum()
        inside += 1
    assert inside >= GRID * (GRID - 2)


def test_features_take_the_places_of_the_image_positions():
    mllm = build_mllm(64)
    ids = torch.tensor([[5, IMAGE, IMAGE, 6], [IMAGE, IMAGE, 7, 8]])
    features = torch.randn(2, 2, 32)
    embeddings = embed(mllm, ids, features)
    assert_close(embeddings[0, 1:3], features[0])
    assert_close(embeddings[1, :2], features[1])
    assert_close(embeddings[1, 3], mllm.get_input_embeddings().weight[8])


def test_features_that_do_not_fit_the_positions_are_refused():
    with pytest.raises(ValueError, match="1 image positions"):
        embed(build_mllm(64), torch.tensor([[IMAGE, 5]]), torch.randn(1, 2, 32))


def test_gradients_reach_the_projector_and_the_embeddings():
    mllm = build_mllm(64)
    features = image_features(mllm, torch.randn(1, 3, SIDE, SIDE))
    embed(mllm, torch.tensor([[5, *[IMAGE] * 16]]), features).square().sum().backward()
    assert mllm.model.multi_modal_projector.linear_2.weight.grad.abs().sum() > 0
    assert mllm.get_input_embeddings().weight.grad[5].abs().sum() > 0


@pytest.mark.parametrize(("strategy", "tokens"), [("default", 16), ("full", 17)])
@pytest.mark.parametrize("layer", [-2, -1, [1, -1]])
def test_features_are_the_towers_as_the_config_says(strategy, tokens, layer):
    mllm = build_mllm(64, vision_feature_layer=layer, vision_feature_select_strategy=strategy)
    pixels = torch.randn(2, 3, SIDE, SIDE)
    states = mllm.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    chosen = torch.cat([states[index] for index in ([layer] if isinstance(layer, int) else layer)], -1)
    expected = mllm.model.multi_modal_projector(chosen[:, 17 - tokens :])
    features = image_features(mllm, pixels)
    assert features.shape[1] == tokens
    assert_close(features, expected)


def rewrite(file, change):
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})


def test_what_is_saved_loads_exactly(parts, tmp_path):
    parts.save(tmp_path)
    loaded = load(tmp_path)
    for mine, theirs in [(parts.mllm, loaded.mllm), (parts.connector, loaded.connector)]:
        for name, weight in mine.state_dict().items():
            assert torch.equal(weight, theirs.state_dict()[name])
    assert loaded.tokenizer("[SEG] a red cup").input_ids == parts.tokenizer("[SEG] a red cup").input_ids
    assert not loaded.mllm.training
    assert sorted(load_file(tmp_path / "connector.safetensors"))[0] == "text_hidden_fcs.0.0.bias"


def test_tied_embeddings_stay_tied_and_are_not_missed(parts, tmp_path):
    tied = build_mllm(len(parts.tokenizer), tie_word_embeddings=True)
    Parts(tied, parts.connector, parts.tokenizer).save(tmp_path)
    loaded = load(tmp_path).mllm
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert torch.equal(loaded.lm_head.weight, tied.get_input_embeddings().weight)


def test_half_precision_weights_load_in_the_precision_asked_for(parts, tmp_path):
    Parts(parts.mllm.half(), parts.connector.half(), parts.tokenizer).save(tmp_path)
    assert load(tmp_path).mllm.dtype == torch.float32
    half = load(tmp_path, Placement("cpu", "bfloat16"))
    assert half.mllm.dtype == torch.bfloat16
    assert {weight.dtype for weight in half.connector.parameters()} == {torch.float32}


@pytest.mark.parametrize("file", ["model.safetensors", "connector.safetensors"])
def test_missing_unexpected_and_misshapen_tensors_are_named(parts, tmp_path, file):
    name = {
        "model.safetensors": lambda state: next(name for name in state if "mlp.up_proj" in name and "layers.1" in name),
        "connector.safetensors": lambda _: "text_hidden_fcs.0.2.bias",
    }[file]
    changes = {
        "missing": lambda state: state.pop(name(state)),
        "unexpected": lambda state: state.update(surplus=torch.ones(3)),
        "mismatched|[Ss]ize|shape": lambda state: state.update({name(state): torch.ones(2, 2)}),
    }
    for complaint, change in changes.items():
        parts.save(tmp_path)
        rewrite(tmp_path / file, change)
        with pytest.raises(CheckpointError, match=complaint):
            load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "connector.safetensors", "tokenizer.json"])
def test_a_missing_or_broken_file_is_named(parts, tmp_path, name):
    parts.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "connector.safetensors", "tokenizer.json"])
def test_a_cut_off_file_is_a_checkpoint_error(parts, tmp_path, name):
    parts.save(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="test_a_cut_off_file"):
        load(tmp_path)


def test_a_checkpoint_of_another_layout_is_refused(parts, tmp_path):
    parts.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["LISAForCausalLM"]}))
    with pytest.raises(CheckpointError, match="LISAForCausalLM"):
        load(tmp_path)


def test_pixels_are_read_in_rgb_order():
    red = torch.from_numpy(np.stack([np.full((40, 40), level, np.uint8) for level in (255, 0, 0)]))
    assert clip_pixels(red, SIDE, "crop").mean((1, 2)).argmax() == 0
