"""LISA, READ and SESAME from files in the public layout, against a forward pass spelt out here.

CLIP and Llama are transformers' own, filled with the tensors of the files by hand; SAM is segment-anything's; the
projector, the image splice and the connector are plain PyTorch; the ids come from the sentencepiece library.
"""

# First: it makes torchvision, which transformers imports, usable beside a CPU-only torch.
import rea2seg  # noqa: F401

# isort: split
from collections import namedtuple

import pytest
import sentencepiece
import torch
from segment_anything import SamPredictor
from torch.nn import functional
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel, LlamaForCausalLM

from rea2seg.generator.lisa import Lisa
from rea2seg.generator.llava import load
from rea2seg.segmenters.sam import Sam
from rea2seg.structures import Prompt, Query
from tests.public.lisa import LISA_7B, LISA_13B, READ_7B, SESAME_7B, text_config, write_clip, write_lisa
from tests.public.llama import sentencepiece_model
from tests.public.sam import narrow_sam, write_sam

QUESTION = "Which cup  is the smallest?\u00e9"
BEFORE = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions. USER:"
)
AFTER = f"{QUESTION} Please output segmentation mask. ASSISTANT:"
FAMILIES = {"LISA-7B-v1": LISA_7B, "LISA-13B-llama2-v1": LISA_13B, "READ-7B": READ_7B, "SESAME-7B": SESAME_7B}
Case = namedtuple("Case", "folder family state tower language parts")
Expected = namedtuple("Expected", "hidden token attention")


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory):
    folder, family = tmp_path_factory.mktemp(request.param), FAMILIES[request.param]
    state = {name: weight.float() for name, weight in write_lisa(folder, family).items()}
    clip = write_clip(folder / "clip", family.side)
    tower = CLIPVisionModel(CLIPVisionConfig.from_pretrained(folder / "clip")).eval()
    own = {name.removeprefix("vision_model."): weight for name, weight in clip.items() if "vision_model." in name}
    own.pop("embeddings.position_ids")
    tower.load_state_dict(own)
    language = LlamaForCausalLM(text_config(family)).eval()
    language.load_state_dict({name: state[name] for name in language.state_dict()})
    language.set_attn_implementation("eager")
    return Case(folder, family, state, tower, language, load(folder, vision_tower=folder / "clip"))


@pytest.fixture(scope="module")
def image():
    noise = torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    return (functional.interpolate(noise, (150, 231), mode="bicubic")[0].clamp(0, 1) * 255).to(torch.uint8)


def pieces(text):
    """What the slow tokenizer made of one segment between control tokens."""
    return sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model()).encode(text)


def dialogue(family, answer):
    """Ids of prompt and answer, -200 for the image: every segment alone, whitespace at control tokens stripped."""
    control = {token: 32_000 + place for place, token in enumerate(family.added)}
    ids = [1, *pieces(BEFORE), control["<im_start>"], -200, control["<im_end>"]]
    segments = f"{AFTER} {answer}".split("[SEG]")
    for place, segment in enumerate(segments):
        ids += [control["[SEG]"]] if place else []
        ids += pieces(segment.strip()) if segment.strip() else []
    return [*ids, 2]


def image_tokens(case, image):
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": case.family.side}, crop_size={"height": case.family.side, "width": case.family.side}
    )
    pixels = processor(image.permute(1, 2, 0).numpy(), return_tensors="pt").pixel_values
    tokens = case.tower(pixels, output_hidden_states=True).hidden_states[-2][0, 1:]
    if not case.family.two_linears:
        return functional.linear(tokens, case.state["model.mm_projector.weight"], case.state["model.mm_projector.bias"])
    first = functional.linear(
        tokens, case.state["model.mm_projector.0.weight"], case.state["model.mm_projector.0.bias"]
    )
    activated = functional.gelu(first)
    return functional.linear(
        activated, case.state["model.mm_projector.2.weight"], case.state["model.mm_projector.2.bias"]
    )


@torch.no_grad()
def forward(case, image, answer):
    """At each position before a `[SEG]`: the hidden state, the connector's token and the map of layers 14 to 30."""
    ids, seen = dialogue(case.family, answer), image_tokens(case, image)
    place = ids.index(-200)
    words = case.language.model.embed_tokens(torch.tensor([max(token, 0) for token in ids]))
    spliced = torch.cat([words[:place], seen, words[place + 1 :]])[None]
    output = case.language.model(inputs_embeds=spliced, output_attentions=True)
    seg = 32_000 + case.family.added.index("[SEG]")
    before = [at + len(seen) - 1 - 1 for at, token in enumerate(ids) if token == seg]
    hidden = output.last_hidden_state[0, before]
    fcs = {name.rpartition("fcs.0.")[2]: weight for name, weight in case.state.items() if "text_hidden_fcs" in name}
    inner = functional.linear(hidden, fcs["0.weight"], fcs["0.bias"]).relu()
    maps = torch.stack(output.attentions)[14:31, 0, :, before, place : place + len(seen)].mean((0, 1))
    side = case.family.side // 14
    return Expected(hidden, functional.linear(inner, fcs["2.weight"], fcs["2.bias"]), maps.reshape(-1, side, side))


@pytest.mark.parametrize("answer", ["[SEG].", "Sure, it is [SEG].", "The door [SEG] and the cup [SEG]."])
def test_teacher_forcing_is_the_forward_pass_spelt_out(case, image, answer):
    expected = forward(case, image, answer)
    grounding = Lisa(case.parts, answer=answer).ground([Query(image, QUESTION)])[0]
    assert len(grounding.token) == answer.count("[SEG]")
    assert torch.allclose(grounding.token[:, 0], expected.token, atol=1e-4)
    assert torch.allclose(grounding.attention, expected.attention, atol=1e-6)
    assert float(expected.attention.std()) > 1e-5


def test_the_hidden_state_is_the_predictors(case, image):
    states = []
    hook = case.parts.connector.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    with hook:
        Lisa(case.parts).ground([Query(image, QUESTION)])
    assert torch.allclose(states[0], forward(case, image, "[SEG].").hidden, atol=1e-4)


def test_a_model_that_never_says_seg_is_read_by_the_fallback_answer_and_says_so(case, image):
    said = Lisa(case.parts, mode="generate", max_new_tokens=3).ground([Query(image, QUESTION)])[0]
    expected = forward(case, image, "[SEG].")
    assert torch.allclose(said.token[:, 0], expected.token, atol=1e-4)
    assert "answered without [SEG]" in said.flags[0]
    assert said.reply != "[SEG]."


@torch.no_grad()
def test_the_initial_mask_is_that_of_the_decoder_inside_the_checkpoint(image, tmp_path):
    # The same encoder, as in the public ones, and another decoder, as if it had been trained.
    state, stock = write_lisa(tmp_path / "lisa", LISA_7B), write_sam(tmp_path / "sam_vit_h.pth", seed=5)
    other = {f"mask_decoder.{name}": weight for name, weight in narrow_sam(seed=7).mask_decoder.state_dict().items()}
    stock |= other
    torch.save(stock, tmp_path / "sam_vit_h.pth")
    inside, stocked = narrow_sam(), narrow_sam()
    inside.load_state_dict(
        {name.removeprefix("model.visual_model."): weight for name, weight in state.items() if "visual_model" in name}
    )
    stocked.load_state_dict(stock)
    predictor = SamPredictor(stocked)
    predictor.set_image(image.permute(1, 2, 0).numpy())
    place, (_, dense) = stocked.prompt_encoder.get_dense_pe(), stocked.prompt_encoder(None, None, None)
    token = torch.randn(2, 1, 256, generator=torch.Generator().manual_seed(1))
    (embedding,) = Sam(tmp_path / "sam_vit_h.pth", device="cpu").encode([image])
    assert torch.allclose(embedding.features, predictor.features[0], atol=1e-4)
    for decoder, token_decoder in [(inside.mask_decoder, tmp_path / "lisa"), (stocked.mask_decoder, None)]:
        logits, _ = decoder(predictor.features, place, token, dense.expand(2, -1, -1, -1), multimask_output=False)
        segmenter = Sam(tmp_path / "sam_vit_h.pth", token_decoder, device="cpu")
        masks = segmenter.decode(embedding, Prompt(token=token), multimask=False)
        close = 1e-4 * float(logits.abs().max())
        assert torch.allclose(masks.lowres, logits, atol=close)
        at_image_size = stocked.postprocess_masks(logits, predictor.input_size, predictor.original_size)
        assert torch.allclose(masks.upsample(), at_image_size[:, 0], atol=close)
