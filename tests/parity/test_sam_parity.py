"""Our SAM against the predictor and the mask generator of `segment-anything`, on the same random weights."""

# First: it makes torchvision usable beside a CPU-only torch.
import rea2seg  # noqa: F401

# isort: split
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from segment_anything import SamAutomaticMaskGenerator, SamPredictor

from rea2seg.checkpoints.sam import SamConfig, build_sam
from rea2seg.generator.candidates import AttentionSearch
from rea2seg.masks import stability
from rea2seg.segmenters.sam import Sam
from rea2seg.structures import Prompt, Query, Scene

CONFIG = SamConfig(
    image_size=128,
    patch_size=8,
    encoder_width=32,
    encoder_depth=2,
    encoder_heads=2,
    encoder_window=5,
    encoder_global_blocks=(1,),
    channels=32,
    mask_channels=8,
    decoder_heads=4,
    decoder_mlp=64,
    iou_width=32,
)
SIZES = [(75, 131), (160, 93), (128, 128)]


@pytest.fixture(scope="module")
def model():
    """Random weights, scaled until masks are smooth, of many sizes and stabilities: every filter has work to do."""
    torch.manual_seed(1)
    model = build_sam(CONFIG)
    decoder = model.mask_decoder
    with torch.no_grad():
        for weight in (value for value in decoder.transformer.parameters() if value.ndim == 2):
            weight.mul_(3)
        for layer in (decoder.output_upscaling[0], decoder.output_upscaling[3]):
            layer.weight.copy_(100 * layer.weight.mean((2, 3), keepdim=True).expand_as(layer.weight))
        for layer in (layer for kernel in decoder.output_hypernetworks_mlps for layer in kernel.layers):
            layer.weight.mul_(3)
            layer.bias.zero_()
        decoder.iou_prediction_head.layers[-1].weight.mul_(20)
    return model


def picture(size):
    """Soft blotches of colour: with pure noise all embeddings look the same."""
    noise = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(size[0]))
    return (torch.nn.functional.interpolate(noise, size, mode="bicubic")[0].clamp(0, 1) * 255).to(torch.uint8)


def predictor_on(model, image):
    predictor = SamPredictor(model)
    predictor.set_image(image.permute(1, 2, 0).numpy())
    return predictor


@pytest.mark.parametrize("size", SIZES)
def test_the_embedding_is_the_predictors(model, size):
    image = picture(size)
    predictor = predictor_on(model, image)
    (embedding,) = Sam.wrap(model).encode([image])
    assert torch.allclose(embedding.features, predictor.features[0], atol=1e-5)
    assert embedding.canvas.resized == predictor.input_size


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kinds", ["points", "box", "mask", "points box", "points mask", "points box mask"])
def test_every_mix_of_prompts_decodes_as_the_predictor_does(model, size, kinds, multimask):
    image, generator = picture(size), torch.Generator().manual_seed(0)
    predictor = predictor_on(model, image)
    (embedding,) = Sam.wrap(model).encode([image])
    extent = torch.tensor([size[1], size[0]])
    corners = (torch.rand(4, 2, 2, generator=generator) * extent).sort(1).values.flatten(1)
    prompt = Prompt(
        points=torch.rand(4, 2, 2, generator=generator) * extent if "points" in kinds else None,
        labels=torch.tensor([[1, 0], [1, 1], [0, 1], [1, 0]]) if "points" in kinds else None,
        box=corners if "box" in kinds else None,
        mask=torch.randn(4, 1, 64, 64, generator=generator) * 5 if "mask" in kinds else None,
    )
    masks = Sam.wrap(model).decode(embedding, prompt, multimask)
    logits, quality, lowres = predictor.predict_torch(
        None if prompt.points is None else predictor.transform.apply_coords_torch(prompt.points, size),
        prompt.labels,
        None if prompt.box is None else predictor.transform.apply_boxes_torch(prompt.box, size),
        prompt.mask,
        multimask,
        return_logits=True,
    )
    scale = float(lowres.abs().max())
    assert torch.allclose(masks.lowres, lowres, atol=1e-5 * scale)
    assert torch.allclose(masks.quality, quality, atol=1e-5)
    assert torch.allclose(masks.upsample(), logits.flatten(0, 1), atol=1e-5 * scale)


def thresholds(segmenter, embedding, points):
    """Between two neighbours in the middle of the field, so that some masks fail at either and none is in doubt."""
    masks = segmenter.decode(embedding, Prompt(points[:, None], torch.ones(len(points), 1, dtype=torch.long)), True)
    qualities = masks.quality.flatten().sort().values
    quality = float(qualities[len(qualities) // 8 :][:2].mean())
    scores = stability(masks.upsample(), 1.0)[masks.quality.flatten() > quality]
    scores = scores[(scores > 0.3) & (scores < 1)].sort().values
    return quality, float(scores[len(scores) // 3 :][:2].mean())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("decisions", ["full", "lowres"])
def test_the_attention_search_is_the_mask_generator_on_given_points(model, size, decisions, monkeypatch):
    # Beside a CPU-only torch the operator is the library's own, and torchvision refuses to call it unless told it may.
    monkeypatch.setattr(torchvision.extension, "_has_ops", lambda: True)
    image, grid = picture(size), np.random.default_rng(size[0]).random((40, 2))
    points = torch.from_numpy(grid * np.array([size[1], size[0]]))
    segmenter = Sam.wrap(model)
    (embedding,) = segmenter.encode([image])
    quality, steady = thresholds(segmenter, embedding, points)
    settings = {"box_nms_thresh": 0.9, "points_per_batch": 7, "pred_iou_thresh": quality}
    theirs = SamAutomaticMaskGenerator(
        model, points_per_side=None, point_grids=[grid], stability_score_thresh=steady, **settings
    ).generate(image.permute(1, 2, 0).numpy())
    search = AttentionSearch(quality=quality, stability=steady, overlap=0.9, keep=1000, decisions=decisions, chunk=7)
    scene = Scene(Query(image, ""), embedding)
    ours = search.at(points, scene, segmenter)
    assert len(theirs) > 3
    assert len(theirs) < len(replace(search, overlap=1.0).at(points, scene, segmenter)) < 3 * len(points)
    assert len(ours) == len(theirs)
    for mine, record in zip(ours, theirs, strict=True):
        assert np.array_equal(mine.mask.numpy(), record["segmentation"])
        assert mine.quality == pytest.approx(record["predicted_iou"], abs=1e-5)
        assert mine.seed_xy == pytest.approx(record["point_coords"][0])
