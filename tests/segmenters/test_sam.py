import json

import pytest
import torch
from safetensors.torch import save_file

from rea2seg.checkpoints.sam import SamConfig, build_decoder, build_sam, load_sam, save_sam
from rea2seg.errors import CheckpointError
from rea2seg.geometry import Canvas
from rea2seg.segmenters.sam import MULTI, SINGLE, Sam, decode_prompts, resized_shape
from rea2seg.structures import Embedding, Prompt

TINY = SamConfig(
    image_size=64,
    patch_size=8,
    encoder_width=16,
    encoder_depth=2,
    encoder_heads=2,
    encoder_window=4,
    encoder_global_blocks=(1,),
    channels=16,
    mask_channels=8,
    decoder_heads=2,
    decoder_mlp=32,
    iou_width=16,
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_sam(TINY)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in ((50, 77), (90, 41))]


def equal(a, b):
    return torch.allclose(a.lowres, b.lowres, atol=1e-5) and torch.allclose(a.quality, b.quality, atol=1e-5)


def test_a_saved_model_comes_back_whole(model, tmp_path, images):
    save_sam(model, TINY, tmp_path / "sam")
    segmenter = Sam(str(tmp_path / "sam"))
    (embedding,) = segmenter.encode(images[:1])
    assert embedding.features.equal(Sam.wrap(model).encode(images[:1])[0].features)
    assert SamConfig.read(tmp_path / "sam" / "config.json") == TINY


@pytest.mark.parametrize("change", ["drop", "rename", "reshape", "garbage", "config", "no config"])
def test_weights_that_do_not_fit_are_refused_with_the_file_and_the_tensor(model, tmp_path, change):
    save_sam(model, TINY, tmp_path)
    state, named = dict(model.state_dict()), "mask_decoder.iou_token.weight"
    if change == "drop":
        del state[named]
    elif change == "rename":
        state["a_new_name"], named = state.pop(named), "a_new_name"
    elif change == "reshape":
        state[named] = torch.zeros(2, 16)
    if change in ("drop", "rename", "reshape"):
        save_file(state, tmp_path / "model.safetensors")
    elif change == "garbage":
        (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
        named = "model.safetensors"
    elif change == "config":
        values = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(values | {"depth": 3}))
        named = "depth"
    else:
        (tmp_path / "config.json").unlink()
        named = "mismatched tensors: image_encoder.neck"
    with pytest.raises(CheckpointError) as error:
        load_sam(tmp_path)
    assert named in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_images_of_different_shapes_are_encoded_together_as_alone(model, images):
    segmenter = Sam.wrap(model)
    together = segmenter.encode(images)
    assert [embedding.canvas.resized for embedding in together] == [(42, 64), (64, 29)]
    for embedding, image in zip(together, images, strict=True):
        assert torch.allclose(embedding.features, segmenter.encode([image])[0].features, atol=1e-5)
    assert segmenter.encode([]) == []


@pytest.mark.parametrize(("size", "resized"), [((1, 300), (1, 64)), ((300, 1), (64, 1)), ((3, 128), (2, 64))])
def test_long_thin_images_keep_a_pixel_of_their_short_side(model, size, resized):
    assert resized_shape(size, 64) == resized
    (embedding,) = Sam.wrap(model).encode([torch.zeros(3, *size, dtype=torch.uint8)])
    masks = Sam.wrap(model).decode(embedding, Prompt(box=torch.tensor([[0.0, 0, size[1], size[0]]])), multimask=True)
    assert masks.upsample().shape == (3, *size)


def test_prompts_of_a_batch_do_not_see_each_other(model, images):
    segmenter = Sam.wrap(model)
    embedding = segmenter.encode(images[:1])[0]
    points, labels = torch.rand(4, 3, 2) * 50, torch.tensor([[1, 0, -1]] * 4)
    mask, token = torch.randn(4, 1, 32, 32), torch.randn(4, 1, 16)
    together = segmenter.decode(embedding, Prompt(points, labels, None, token, mask), multimask=True)
    for i in range(4):
        one = slice(i, i + 1)
        alone = segmenter.decode(
            embedding, Prompt(points[one], labels[one], None, token[one], mask[one]), multimask=True
        )
        assert torch.allclose(alone.lowres, together.lowres[one], atol=1e-5)
        assert torch.allclose(alone.quality, together.quality[one], atol=1e-5)


def test_a_raw_token_takes_the_place_of_a_point_embedding(model, images):
    """The two tokens that upstream makes of one point, its padding included, give that point's masks."""
    segmenter = Sam.wrap(model)
    (embedding,) = segmenter.encode(images[:1])
    points, labels = torch.tensor([[[20.0, 30.0]]]), torch.tensor([[1]])
    sparse, _ = model.prompt_encoder((embedding.canvas.from_pixels(points), labels), None, None)
    by_point = segmenter.decode(embedding, Prompt(points, labels), multimask=True)
    assert equal(segmenter.decode(embedding, Prompt(token=sparse.detach()), multimask=True), by_point)


def test_only_prompts_with_a_token_go_to_the_second_decoder(model, images, tmp_path):
    torch.manual_seed(5)
    second = build_decoder(TINY).eval()
    save_sam(model, TINY, tmp_path)
    save_file(second.state_dict(), tmp_path / "second.safetensors")
    both = Sam(tmp_path, token_decoder=tmp_path / "second.safetensors")
    stock = Sam.wrap(model)
    (embedding,) = stock.encode(images[:1])
    box, token = torch.tensor([[3.0, 4, 40, 44]]), torch.randn(1, 1, 16)
    assert equal(both.decode(embedding, Prompt(box=box), True), stock.decode(embedding, Prompt(box=box), True))
    answer = both.decode(embedding, Prompt(token=token, box=box), True)
    assert not equal(answer, stock.decode(embedding, Prompt(token=token, box=box), True))
    assert equal(answer, Sam.wrap(model, token_decoder=second).decode(embedding, Prompt(token=token, box=box), True))


def test_tokens_in_half_precision_are_welcome_and_no_gradient_is_kept(model, images):
    (embedding,) = Sam.wrap(model).encode(images[:1])
    token = torch.randn(1, 1, 16, dtype=torch.bfloat16, requires_grad=True)
    masks = Sam.wrap(model).decode(embedding, Prompt(token=token), multimask=False)
    assert masks.lowres.shape == (1, 1, 32, 32)
    assert not masks.lowres.requires_grad


def test_training_decodes_one_prompt_for_each_of_several_images_and_gets_gradients(model, images):
    segmenter = Sam.wrap(model)
    embeddings = segmenter.encode(images)
    token = torch.randn(2, 1, 16, requires_grad=True)
    features = torch.stack([embedding.features for embedding in embeddings])
    lowres, _ = decode_prompts(model.prompt_encoder, model.mask_decoder, features, Prompt(token=token), SINGLE)
    lowres.square().mean().backward()
    assert (token.grad.abs().sum((1, 2)) > 0).all()
    for i, embedding in enumerate(embeddings):
        alone = segmenter.decode(embedding, Prompt(token=token[i : i + 1]), multimask=False)
        assert torch.allclose(alone.lowres, lowres[i : i + 1], atol=1e-5)


def test_the_embedding_of_a_prompt_search_is_never_repeated(model, images, monkeypatch):
    (embedding,) = Sam.wrap(model).encode(images[:1])
    seen = []
    inner = model.mask_decoder.transformer.forward
    monkeypatch.setattr(
        model.mask_decoder.transformer,
        "forward",
        lambda image, pe, tokens: seen.append(image) or inner(image, pe, tokens),
    )
    points = torch.rand(64, 1, 2) * 40
    masks = Sam.wrap(model).decode(embedding, Prompt(points, torch.ones(64, 1, dtype=torch.long)), multimask=True)
    assert masks.lowres.shape[:2] == (64, len(MULTI))
    assert [image.shape[0] for image in seen] == [1]


def test_features_are_sampled_where_the_image_lies_on_the_canvas():
    side, size = 64, (30, 60)
    canvas = Canvas(size, side, (32, 64))
    ramp = (torch.arange(8) + 0.5) * 8
    embedding = Embedding(torch.stack([ramp.expand(8, 8), ramp[:, None].expand(8, 8)]), canvas)
    points = torch.tensor([[30.0, 15.0], [15.0, 7.5], [45.0, 22.5], [59.9, 0.1]])
    sampled = embedding.sample_at(points)
    assert torch.allclose(sampled[:3], points[:3] * 64 / 60, atol=1e-4)
    assert sampled[3].tolist() == [60.0, 4.0]  # beyond the outermost feature, that feature


def test_the_content_of_a_canvas_is_what_has_its_centre_on_the_image():
    lowres = torch.zeros(2, 3, 16, 16)
    assert Canvas((30, 60), 64, (42, 64)).content(lowres).shape == (2, 3, 10, 16)  # 10.5 rows
    assert Canvas((30, 60), 64, (43, 64)).content(lowres).shape == (2, 3, 11, 16)  # 10.75 rows
    assert Canvas((1, 60), 64, (1, 64)).content(lowres).shape == (2, 3, 1, 16)
    assert Canvas((30, 60), 64, None).content(lowres).shape == (2, 3, 16, 16)
