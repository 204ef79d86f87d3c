# First: it makes torchvision usable beside a CPU-only torch.
import rea2seg  # noqa: F401

# isort: split
import importlib
import json
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from rea2seg.checkpoints.sam2 import TINY
from rea2seg.errors import ConfigError
from rea2seg.geometry import Canvas
from rea2seg.segmenters.sam2 import Sam2, Sam2Model, decode_prompts, to_canvas
from rea2seg.structures import Embedding, Prompt
from tests.parity.test_sam_parity import picture
from tests.public.sam2 import narrow_sam2, write_sam2


@pytest.fixture(scope="module")
def model():
    return narrow_sam2("tiny", "2.1", side=256)


@pytest.fixture(scope="module")
def images():
    return [picture(size) for size in ((50, 77), (90, 41))]


@pytest.fixture(scope="module")
def embedding(model, images):
    return Sam2.wrap(model).encode(images[:1])[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A published file, and a LENS checkpoint with other heads, in shards among other tensors."""
    folder = tmp_path_factory.mktemp("files")
    stock = write_sam2(folder / "sam2_hiera_tiny.pt", "tiny", "2.0", width=4, channels=16).state_dict()
    trained = {name: 1.1 * value if name.startswith("sam_") else value for name, value in stock.items()}
    write_lens(folder / "lens", trained)
    return folder


def write_lens(folder, tensors):
    folder.mkdir()
    stored = {f"sam.{name}": value for name, value in tensors.items()} | {"learnable_query": torch.zeros(1, 64, 8)}
    names, shards = sorted(stored), [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    where = {name: shards[i % 2] for i, name in enumerate(names)}
    for shard in shards:
        save_file({name: stored[name].bfloat16() for name in names if where[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))


def equal(a, b):
    return torch.allclose(a.lowres, b.lowres, atol=1e-3) and torch.allclose(a.quality, b.quality, atol=1e-5)


def embedding_at_1024(channels):
    generator = torch.Generator().manual_seed(3)
    features, finer, finest = (torch.randn(channels, side, side, generator=generator) for side in (64, 128, 256))
    return Embedding(features, Canvas((50, 77), 1024, None), (finest, finer))


def test_file_folder_and_safetensors_hold_the_same_model(files, tmp_path):
    stock = torch.load(files / "sam2_hiera_tiny.pt", weights_only=True)["model"]
    save_file(stock, tmp_path / "any_name.safetensors")
    for place in (files / "sam2_hiera_tiny.pt", str(tmp_path), tmp_path / "any_name.safetensors"):
        state = Sam2(place, device="cpu").model.state_dict()
        assert all(value.equal(stock[name]) for name, value in state.items())


def test_images_of_different_shapes_are_encoded_together_as_alone(model, images):
    segmenter = Sam2.wrap(model)
    together = segmenter.encode(images)
    assert [embedding.canvas for embedding in together] == [Canvas((50, 77), 256, None), Canvas((90, 41), 256, None)]
    for batch in (1, 2):
        for embedding, other in zip(together, Sam2.wrap(model, batch=batch).encode(images), strict=True):
            assert torch.allclose(embedding.features, other.features, atol=1e-4)
            assert [level.shape for level in embedding.fine] == [(64, 64, 64), (64, 32, 32)]
            pairs = zip(embedding.fine, other.fine, strict=True)
            assert all(torch.allclose(one, two, atol=1e-4) for one, two in pairs)
    assert not torch.allclose(together[0].features, together[1].features, atol=0.1)
    assert segmenter.encode([]) == []


@pytest.mark.parametrize("size", [(1, 300), (300, 1)])
def test_long_thin_images_are_stretched(model, size):
    (embedding,) = Sam2.wrap(model).encode([torch.zeros(3, *size, dtype=torch.uint8)])
    masks = Sam2.wrap(model).decode(embedding, Prompt(box=torch.tensor([[0.0, 0, size[1], size[0]]])), multimask=True)
    assert masks.upsample().shape == (3, *size)


def test_the_input_is_the_image_stretched_without_aliasing():
    image = torch.zeros(3, 8, 512, dtype=torch.uint8)
    image[:, :, ::4] = 255
    pixels, _ = to_canvas(image, 16)
    mean, spread = (torch.tensor(numbers) for numbers in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    colours = pixels.movedim(0, 2) * spread + mean
    assert torch.allclose(colours, torch.tensor(0.25), atol=0.01)


def test_prompts_of_a_batch_do_not_see_each_other(model, embedding):
    segmenter = Sam2.wrap(model)
    points, labels = torch.rand(4, 3, 2) * 50, torch.tensor([[1, 0, -1]] * 4)
    box = torch.tensor([[1.0, 2, 30, 40]]) + torch.arange(4)[:, None]
    prompt = Prompt(points, labels, box, torch.randn(4, 1, 64), torch.randn(4, 1, 64, 64))
    together = segmenter.decode(embedding, prompt, multimask=True)
    for i in range(4):
        alone = segmenter.decode(embedding, Prompt(*(part[i : i + 1] for part in prompt.given())), multimask=True)
        assert torch.allclose(alone.lowres, together.lowres[i : i + 1], atol=1e-3)
        assert torch.allclose(alone.quality, together.quality[i : i + 1], atol=1e-4)


def test_a_raw_token_takes_the_place_of_a_point_embedding(model, embedding):
    """The two tokens that upstream makes of one point, its padding included, give that point's masks."""
    segmenter = Sam2.wrap(model)
    points, labels = torch.tensor([[[20.0, 30.0]]]), torch.tensor([[1]])
    sparse, _ = model.sam_prompt_encoder((embedding.canvas.from_pixels(points), labels), None, None)
    by_point = segmenter.decode(embedding, Prompt(points, labels), multimask=True)
    assert equal(segmenter.decode(embedding, Prompt(token=sparse.detach()), multimask=True), by_point)


@pytest.mark.parametrize("multimask", [True, False])
def test_a_raw_token_is_all_that_upstreams_decoder_sees(model, embedding, multimask):
    token = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(0))
    decoder, encoder = model.sam_mask_decoder, model.sam_prompt_encoder
    with torch.no_grad():
        lowres, quality, _, _ = decoder(
            embedding.features[None],
            encoder.get_dense_pe(),
            token,
            encoder.no_mask_embed.weight[..., None, None].expand(1, -1, 16, 16),
            multimask,
            repeat_image=True,
            high_res_features=[decoder.conv_s0(embedding.fine[0][None]), decoder.conv_s1(embedding.fine[1][None])],
        )
    masks = Sam2.wrap(model).decode(embedding, Prompt(token=token), multimask)
    assert torch.allclose(masks.lowres, lowres, atol=1e-4)
    assert torch.allclose(masks.quality, quality, atol=1e-5)


def test_only_prompts_with_a_token_go_to_the_heads_of_a_lens_checkpoint(files):
    both = Sam2(files / "sam2_hiera_tiny.pt", token_heads=files / "lens", device="cpu")
    stock, lens = (Sam2(files / name, device="cpu") for name in ("sam2_hiera_tiny.pt", "lens"))
    embedding, box = embedding_at_1024(16), torch.tensor([[3.0, 4, 40, 44]])
    pointing, speaking = Prompt(box=box), Prompt(token=torch.randn(1, 1, 16))
    of_box, of_token = (both.decode(embedding, prompt, multimask=True) for prompt in (pointing, speaking))
    assert equal(of_box, stock.decode(embedding, pointing, multimask=True))
    assert not equal(of_box, lens.decode(embedding, pointing, multimask=True))
    assert equal(of_token, lens.decode(embedding, speaking, multimask=True))
    assert not equal(of_token, stock.decode(embedding, speaking, multimask=True))
    wrapped = Sam2.wrap(stock.model, token_heads=lens.model)
    assert equal(of_token, wrapped.decode(embedding, speaking, multimask=True))


def test_the_way_out_of_an_unstable_mask_can_be_closed_for_both_pairs_of_heads(files):
    place = files / "sam2_hiera_tiny.pt"
    for dynamic in (True, False):
        segmenter = Sam2(place, token_heads=files / "lens", dynamic_multimask=dynamic, device="cpu")
        for heads in (segmenter.model, segmenter.token_heads):
            assert heads.sam_mask_decoder.dynamic_multimask_via_stability is dynamic


def test_tokens_in_half_precision_are_welcome_and_no_gradient_is_kept(model, embedding):
    token = torch.randn(1, 1, 64, dtype=torch.bfloat16, requires_grad=True)
    masks = Sam2.wrap(model).decode(embedding, Prompt(token=token), multimask=False)
    assert masks.lowres.shape == (1, 1, 64, 64)
    assert not masks.lowres.requires_grad


def test_training_decodes_one_prompt_for_each_of_several_images_and_gets_gradients(model, images):
    segmenter = Sam2.wrap(model)
    embeddings = segmenter.encode(images)
    token = torch.randn(2, 1, 64, requires_grad=True)
    features = torch.stack([embedding.features for embedding in embeddings])
    fine = [torch.stack(level) for level in zip(*(embedding.fine for embedding in embeddings), strict=True)]
    lowres, _ = decode_prompts(model, features, fine, Prompt(token=token), multimask=True)
    lowres.square().mean().backward()
    assert (token.grad.abs().sum((1, 2)) > 0).all()
    for i, embedding in enumerate(embeddings):
        alone = segmenter.decode(embedding, Prompt(token=token[i : i + 1]), multimask=True)
        assert torch.allclose(alone.lowres, lowres[i : i + 1], atol=1e-3)


def test_a_model_is_built_without_a_thought_for_the_first_gpu(monkeypatch):
    """Upstream's position embedding would compute something there for a later compilation."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    model = Sam2Model(replace(TINY, width=4, channels=16))
    assert model.image_encoder.neck.position_encoding.cache == {}


def test_a_batch_of_none_is_refused(model):
    with pytest.raises(ConfigError, match="batch must be 1 or more"):
        Sam2.wrap(model, batch=0)


def test_without_its_package_a_person_learns_how_to_install_it(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "sam2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sam2", None)
    monkeypatch.delitem(sys.modules, "rea2seg.segmenters.sam2")
    with pytest.raises(ConfigError, match="pip install --no-build-isolation sam2"):
        importlib.import_module("rea2seg.segmenters.sam2")
