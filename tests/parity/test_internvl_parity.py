"""InternVL3's original layout against plain torch on the stored tensors, and Qwen2 alone for the language part."""

# First: it makes torchvision usable beside a CPU-only torch.
import rea2seg  # noqa: F401

# isort: split
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import GotOcr2ImageProcessorPil, Qwen2Config, Qwen2ForCausalLM
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from rea2seg.checkpoints.internvl import original_blueprint, original_config
from rea2seg.devices import ON_CPU
from rea2seg.evaluators.internvl import InternVL, image_pixels, mask_pixels, tiled_pixels
from rea2seg.evaluators.prompts import prefix_ids, suffix_ids
from rea2seg.evaluators.replies import format_scores, reply_ids
from rea2seg.evaluators.weights import Parts, load_internvl
from rea2seg.structures import Candidate, Query
from tests.public import internvl as public
from tests.public.internvl import ID, NARROW, Sizes

BIG_VISION = Sizes(big_vision=True, vision_layers=3, language_layers=2)
RNG = torch.Generator().manual_seed(3)
IMAGE = torch.nn.functional.interpolate(torch.rand(1, 3, 9, 7, generator=RNG), (500, 900), mode="bicubic")[0]
IMAGE = (IMAGE.clamp(0, 1) * 255).to(torch.uint8)
MASKS = functional.interpolate((torch.rand(2, 1, 5, 7, generator=RNG) > 0.5).float(), (500, 900))[:, 0].bool()
QUERY = Query(IMAGE, "the red cup <img>", "q")


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    return public.original_tensors()


@pytest.fixture(scope="module")
def folder(stored: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return public.write_internvl(tmp_path_factory.mktemp("original"), tensors=stored)


@pytest.fixture(scope="module")
def parts(folder: Path) -> Parts:
    return load_internvl(folder)


def features(stored: Mapping[str, Tensor], sizes: Sizes, pixels: Tensor) -> Tensor:
    """What the language model sees of n tiles (n, 3, 448, 448): (n, 256, width)."""
    at = "vision_model.embeddings."
    weight, bias = stored[f"{at}patch_embedding.weight"], stored[f"{at}patch_embedding.bias"]
    patches = functional.conv2d(pixels, weight, bias, stride=14).flatten(2).transpose(1, 2)
    hidden = torch.cat([stored[f"{at}class_embedding"].expand(len(patches), -1, -1), patches], dim=1)
    hidden = hidden + stored[f"{at}position_embedding"]
    for layer in range(sizes.vision_layers):
        prefix = f"vision_model.encoder.layers.{layer}."
        hidden = vision_layer(
            {name.removeprefix(prefix): stored[name] for name in stored if prefix in name}, sizes, hidden
        )
    # Two by two neighbours become one token: its channels run row by row through the four.
    blocks = (
        hidden[:, 1:].reshape(len(pixels), 16, 2, 16, 2, -1).permute(0, 1, 3, 2, 4, 5).reshape(len(pixels), 256, -1)
    )
    normed = functional.layer_norm(blocks, blocks.shape[-1:], stored["mlp1.0.weight"], stored["mlp1.0.bias"])
    inner = functional.gelu(functional.linear(normed, stored["mlp1.1.weight"], stored["mlp1.1.bias"]))
    return functional.linear(inner, stored["mlp1.3.weight"], stored["mlp1.3.bias"])


def vision_layer(own: Mapping[str, Tensor], sizes: Sizes, hidden: Tensor) -> Tensor:
    def rms(values: Tensor, name: str) -> Tensor:
        return own[name] * values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + 1e-6)

    def norm(values: Tensor, name: str) -> Tensor:
        if sizes.big_vision:
            return rms(values, f"{name}.weight")
        return functional.layer_norm(values, values.shape[-1:], own[f"{name}.weight"], own[f"{name}.bias"], 1e-6)

    fused = functional.linear(norm(hidden, "norm1"), own["attn.qkv.weight"], own.get("attn.qkv.bias"))
    query, key, value = fused.chunk(3, -1)
    if sizes.big_vision:
        query, key = rms(query, "attn.q_norm.weight"), rms(key, "attn.k_norm.weight")
    query, key, value = (part.unflatten(2, (sizes.vision_heads, -1)).transpose(1, 2) for part in (query, key, value))
    mixed = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(-1) @ value
    mixed = functional.linear(mixed.transpose(1, 2).flatten(2), own["attn.proj.weight"], own["attn.proj.bias"])
    hidden = hidden + own["ls1"] * mixed
    inner = functional.linear(norm(hidden, "norm2"), own["mlp.fc1.weight"], own["mlp.fc1.bias"])
    outer = functional.linear(functional.gelu(inner), own["mlp.fc2.weight"], own["mlp.fc2.bias"])
    return hidden + own["ls2"] * outer


def logits(stored: Mapping[str, Tensor], sizes: Sizes, ids: list[int], pixels: Tensor) -> Tensor:
    """What the language model alone answers (length, vocabulary), the slots of the image token filled by hand."""
    config = Qwen2Config(
        hidden_size=sizes.language,
        intermediate_size=sizes.language_inner,
        num_hidden_layers=sizes.language_layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.key_heads,
        vocab_size=sizes.vocabulary,
        rms_norm_eps=1e-6,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    language = Qwen2ForCausalLM(config).eval()
    at = "language_model."
    language.load_state_dict({name.removeprefix(at): stored[name] for name in stored if name.startswith(at)})
    tokens = torch.tensor(ids)
    embedded = stored["language_model.model.embed_tokens.weight"][tokens].clone()
    embedded[tokens == ID["<IMG_CONTEXT>"]] = features(stored, sizes, pixels).flatten(0, 1)
    with torch.no_grad():
        found: Tensor = language(inputs_embeds=embedded[None]).logits[0]
    return found


def shown() -> Tensor:
    return torch.cat([image_pixels(IMAGE, 448)[None], mask_pixels(MASKS, 448)])


def prompt() -> list[int]:
    picture = [ID["<img>"], *[ID["<IMG_CONTEXT>"]] * 256, ID["</img>"]]
    return [ID["<|im_start|>"], 80, *picture, 81, 82, 83, *picture, 90, *picture, ID["<|im_end|>"], 84, 85]


def test_an_image_and_two_masks_are_read_as_by_the_original(stored: dict[str, Tensor], parts: Parts) -> None:
    wanted = logits(stored, NARROW, prompt(), shown())
    with torch.no_grad():
        found = parts.model(input_ids=torch.tensor([prompt()]), pixel_values=shown()).logits[0]
    assert wanted.std() > 0.5
    assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))
    with torch.no_grad():
        blank = parts.model(input_ids=torch.tensor([prompt()]), pixel_values=torch.zeros_like(shown())).logits[0]
    assert (blank[-1] - wanted[-1]).abs().max() > 0.1


def test_the_larger_vision_model_with_its_norms_is_read_as_by_the_original() -> None:
    stored = public.original_tensors(BIG_VISION)
    config = original_config(public.original_config(BIG_VISION), Path("config.json"))
    config.image_token_id = ID["<IMG_CONTEXT>"]
    model = original_blueprint(config, stored, Path("weights")).load(ON_CPU)
    with torch.no_grad():
        found = model.get_image_features(pixel_values=shown()).pooler_output
    wanted = features(stored, BIG_VISION, shown())
    assert wanted.std() > 0.1
    assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))


def test_both_layouts_are_one_model(stored: dict[str, Tensor], parts: Parts, tmp_path: Path) -> None:
    native = load_internvl(public.write_internvl(tmp_path, "native", tensors=stored))
    ours, theirs = parts.model.state_dict(), native.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert parts.model.config.image_token_id == native.model.config.image_token_id
    assert parts.tokenizer.get_vocab() == native.tokenizer.get_vocab()


def test_the_scores_are_those_that_the_language_model_would_write(stored: dict[str, Tensor], parts: Parts) -> None:
    judge = InternVL(parts, readout="text", image_tiles=2)
    [scores] = judge.score(QUERY, [[Candidate(mask, "given", 0.5) for mask in MASKS]])
    pixels = torch.cat([tiled_pixels(IMAGE, 448, 2), mask_pixels(MASKS, 448)])
    assert len(pixels) == 2 + 1 + 2
    before = prefix_ids(judge.tokenizer, judge.template, QUERY.text, 256 * 3)
    before += suffix_ids(judge.tokenizer, judge.template, 2, 256, reasoning=False)
    values = [score.iou or 0.0 for score in scores]
    reply = reply_ids(judge.tokenizer, judge.template, values)
    answers = logits(stored, NARROW, [*before, *reply], pixels)[len(before) - 1 :]
    assert judge.tokenizer.decode(reply[:-1]) == format_scores(values)
    digits, place = list(judge.grammar.digits), len(judge.grammar.opening)
    for score in scores:
        allowed = (digits[:2], None, digits, digits)
        masses = []
        for step, among in enumerate(allowed):
            if among is not None and (step == 0 or reply[place] == digits[0]):
                assert among[int(answers[place + step][among].argmax())] == reply[place + step]
                masses.append(float(answers[place + step].softmax(0)[among].sum()))
        assert score.confidence == pytest.approx(sum(masses) / len(masses), rel=1e-3)
        place += 4 + len(judge.grammar.separator)


@pytest.mark.parametrize("size", [(768, 1024), (480, 640), (1080, 1920), (448, 448), (1500, 200), (30, 41)])
@pytest.mark.parametrize("most", [1, 2, 4, 6, 12])
def test_tiles_are_those_of_the_native_image_processor(size: tuple[int, int], most: int) -> None:
    image = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    processor = GotOcr2ImageProcessorPil(
        size={"height": 56, "width": 56},
        crop_to_patches=True,
        max_patches=most,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
    wanted = torch.as_tensor(processor(image, return_tensors="pt").pixel_values)
    found = tiled_pixels(image, 56, most)
    assert found.shape == wanted.shape
    assert torch.allclose(found, wanted, atol=1e-5)
    assert most > 1 or found[0].equal(image_pixels(image, 56))
