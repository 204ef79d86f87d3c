"""A tower learns the labels of its tokens, in the order in which it makes them."""

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from rea2seg.evaluators.internvl import image_pixels
from rea2seg.generator.llava import clip_pixels, image_features
from rea2seg.structures import CellMap
from tests.training.conftest import CLIP, LANGUAGE, VIT, roughen
from training.mini import save_internvl, small_internvl, small_llava
from training.regions import token_cells
from training.token_labels import NAMES
from training.vision import TokenBatch, VisionStage, as_clip, coarser_tokens, draw_batch, image_tokens, mean_of_means

GRID = 4


@pytest.mark.parametrize("size", [(256, 224), (224, 256)])
@pytest.mark.parametrize("family", ["generator", "evaluator"])
@torch.no_grad()
def test_tokens_are_in_the_order_of_their_cells(tokenizer, family, size):
    """Where no token sees another, a dot in the middle of a labelled cell changes the token of that cell alone."""
    if family == "generator":
        model = roughen(small_llava(CLIP, LANGUAGE, tokenizer, 32).mllm)

        def features(image):
            return image_features(model, clip_pixels(image, CLIP.side, "pad")[None])[0]
    else:
        model = roughen(small_internvl(VIT, LANGUAGE, tokenizer, 0.5))

        def features(image):
            return model.get_image_features(pixel_values=image_pixels(image, VIT.side)[None]).pooler_output[0]

    for name, parameter in model.named_parameters():
        if "vision_tower" in name and ("out_proj" in name or "projection_layer" in name):
            parameter.zero_()
    padded = family == "generator"
    cells = CellMap.padded(size, GRID) if padded else CellMap.stretched(size, (GRID, GRID))
    grey, checked = torch.full((3, *size), 128, dtype=torch.uint8), 0
    for token, (left, top, right, bottom) in enumerate(cells.boxes().tolist()):
        x, y = round((left + right) / 2), round((top + bottom) / 2)
        if not (8 <= x < size[1] - 8 and 8 <= y < size[0] - 8):
            continue
        codes = np.zeros(size, np.uint8)
        codes[y - 8 : y + 8, x - 8 : x + 8] = 3
        dotted = grey.clone()
        dotted[:, codes > 0] = 255
        changed = (features(dotted) - features(grey)).abs().amax(-1) > 1e-4
        assert np.flatnonzero(token_cells(codes, GRID, padded).any(-1)).tolist() == [token]
        assert changed.nonzero()[:, 0].tolist() == [token]
        checked += 1
    assert checked == GRID**2


def test_what_is_rare_counts_as_much_as_all_the_rest():
    error = torch.tensor([[4.0, 2.0, 1.0, 1.0, 1.0, 1.0]])
    rare = torch.tensor([[True, True, False, False, False, False]])
    assert mean_of_means(error, rare, ~rare).item() == 2.0
    assert mean_of_means(error, ~rare, torch.zeros_like(rare)).item() == 1.0


def test_a_tower_that_teaches_itself_begins_as_it_was(tokenizer, tokenizer_folder, tmp_path):
    """Then `match` is what it has moved since, on pictures and on masks."""
    save_internvl(roughen(small_internvl(VIT, LANGUAGE, tokenizer, 0.5)), tokenizer, tmp_path)
    stage = VisionStage(
        "evaluator", VIT, LANGUAGE, str(tokenizer_folder), "nowhere", weights=str(tmp_path), teacher=str(tmp_path)
    )
    batch = draw_batch(np.random.default_rng(0), 2, VIT, GRID, False, 2, 32, "train", ["letters"])
    assert stage.losses(batch)["match"].item() == 0
    trained = {name for name, parameter in stage.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith("teacher") for name in trained)
    with torch.no_grad():
        next(stage.model.parameters()).mul_(1.5)
    both = stage.losses(batch)["match"].item()
    stage.own_teacher = False
    assert both > stage.losses(batch)["match"].item() > 0


@torch.no_grad()
def test_a_coarser_teacher_tells_every_cell_what_lies_at_its_middle(tokenizer):
    model = roughen(small_internvl(VIT, LANGUAGE, tokenizer, 0.5))
    pixels = torch.randn(2, 3, VIT.side, VIT.side)
    own = image_tokens(model, pixels)
    assert_close(coarser_tokens(model, pixels), own)
    larger = functional.interpolate(pixels, scale_factor=2, mode="bicubic")
    cells = coarser_tokens(model, larger).view(2, GRID, 2, GRID, 2, -1)
    smaller = functional.interpolate(larger, scale_factor=0.5, mode="bicubic", antialias=True)
    again = image_tokens(model, smaller).view(2, GRID, 1, GRID, 1, -1)
    assert_close(cells, again.expand_as(cells))


def test_scenes_are_of_the_themes_that_are_asked_for():
    batch = draw_batch(np.random.default_rng(0), 3, VIT, GRID, False, 0, 32, "train", ["marks"])
    marks = batch.names[..., [*NAMES].index("mark")]
    assert (marks > 1).any(dim=1).all()


def test_the_teacher_sees_the_pixels_as_its_own_tower_does():
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    shown = as_clip(image_pixels(image, 64)[None])[0]
    assert_close(shown, clip_pixels(image, 64, "pad"), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("tower", "padded", "masks"), [(CLIP, True, 0), (VIT, False, 2)])
def test_a_batch_has_a_row_of_labels_for_every_token(tower, padded, masks):
    batch = draw_batch(np.random.default_rng(0), 2, tower, GRID, padded, masks, 32, "train")
    assert isinstance(batch, TokenBatch)
    assert batch.names.shape == (2, GRID**2, len(NAMES))
    assert batch.place.shape == (2, GRID**2, 3)
    assert batch.mask_pixels.shape == (2 * masks, 3, 32, 32)
    assert batch.coverage.shape == (2 * masks, 4, 16)
    most = torch.tensor([*NAMES.values()])
    assert (batch.names <= most).all()
    assert (batch.place[batch.names[..., 0] > 0] > 0).all()
