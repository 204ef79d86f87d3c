"""Our LENS against transformers' own Qwen2.5-VL and plain torch, filled by hand from the same files.

The files are narrow, and public in all else: 36 and 32 layers, windows in the vision tower, 64 queries, bfloat16.
"""

# First: it makes torchvision, which transformers imports, usable beside a CPU-only torch.
import rea2seg  # noqa: F401

# isort: split
import pytest
import torch
from PIL import Image
from torch.nn import functional
from torch.testing import assert_close
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen2VLVideoProcessor,
)

from rea2seg.devices import ON_CPU
from rea2seg.generator.lens import Lens, load
from rea2seg.structures import Query
from tests.public.lens import Size, write_lens

TOKENS, QUESTION = 5, "red cup left of the blue box"
REQUESTS = {
    "plain": "Output the bounding box of the {} in the image.",
    "reasoning": 'Locate "{}", report the bbox coordinates in JSON format.'
    "Compare the difference between objects and find the most closely matched one."
    "Output the thinking process in <think> </think> and final answer in <answer> </answer> tags."
    "Output the one bbox inside the interested object in JSON format."
    "i.e., <think>thinking process here</think><answer>answer here</answer>",
}
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def blotches(height, width):
    noise = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(height))
    return (torch.nn.functional.interpolate(noise, (height, width))[0] * 255).to(torch.uint8)


IMAGE = blotches(60, 101)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lens")


@pytest.fixture(scope="module")
def raw(folder):
    return {name: tensor.float() for name, tensor in write_lens(folder).items()}


@pytest.fixture(scope="module")
def parts(folder, raw):
    assert raw
    return load(folder, ON_CPU)


@pytest.fixture(scope="module")
def theirs(parts, raw):
    """transformers' model with eager attention, its names exchanged by hand."""
    size, tokenizer = Size(), parts.tokenizer
    text = {
        "vocab_size": size.vocab,
        "hidden_size": size.hidden,
        "intermediate_size": size.inner,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(size.sections)},
        "bos_token_id": None,
        "eos_token_id": None,
    }
    vision = {"hidden_size": size.vision, "intermediate_size": size.vision_inner, "out_hidden_size": size.hidden}
    slot = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, image_token_id=slot, tie_word_embeddings=True)
    config._attn_implementation = "eager"
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    renamed = {"lm_head.weight": raw["model.embed_tokens.weight"]}
    for name, tensor in raw.items():
        if name.startswith("model."):
            renamed["model.language_model." + name[len("model.") :]] = tensor
        elif name.startswith("visual."):
            renamed["model." + name] = tensor
    model.load_state_dict(renamed)
    return model


@pytest.fixture(scope="module")
def processor(parts):
    images = Qwen2VLImageProcessorPil(min_pixels=3136, max_pixels=1_000_000)
    template = parts.tokenizer.chat_template
    return Qwen2_5_VLProcessor(images, parts.tokenizer, Qwen2VLVideoProcessor(), chat_template=template)


def inputs_for(processor, wording, side):
    """What upstream's evaluation hands to the model, of an image resized as it resizes."""
    content = [{"type": "image"}, {"type": "text", "text": REQUESTS[wording].format(QUESTION)}]
    messages = [
        {"role": "system", "content": "You are a helpful assistant. "},
        {"role": "user", "content": content},
    ]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    picture = Image.fromarray(IMAGE.permute(1, 2, 0).numpy())
    picture = picture.resize((side, int(60 * side / 101))) if side else picture
    return processor(text=[text], images=[picture], return_tensors="pt")


def generated(theirs, inputs, **settings):
    whole = theirs.generate(
        **inputs, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0, **settings
    )
    return whole[0, inputs["input_ids"].shape[1] :]


@torch.no_grad()
def query_pass(theirs, raw, inputs, said, positions=None):
    """The states of the 64 queries after prompt and answer, and all attention matrices."""
    ids = torch.cat([inputs["input_ids"], said[None]], 1)
    embeddings = functional.embedding(ids, raw["model.embed_tokens.weight"])
    features = theirs.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
    embeddings[ids == theirs.config.image_token_id] = features
    embeddings = torch.cat([embeddings, raw["learnable_query"]], 1)
    plain = torch.arange(embeddings.shape[1]).expand(3, 1, -1)
    output = theirs.model(
        inputs_embeds=embeddings,
        attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
        position_ids=plain if positions is None else positions,
        output_attentions=True,
    )
    return output.last_hidden_state[:, -64:], output.attentions


def connect(raw, states):
    """LENS's connector, convolution and projection in plain torch."""
    x = states + raw["connector.pos_embed"]
    for block in range(4):
        part = {name.removeprefix(f"connector.blocks.{block}."): tensor for name, tensor in raw.items()}
        normed = functional.layer_norm(x, x.shape[-1:], part["norm1.weight"], part["norm1.bias"], eps=1e-6)
        qkv = functional.linear(normed, part["attn.qkv.weight"], part["attn.qkv.bias"])
        query, key, value = (t.reshape(1, 64, 16, -1).transpose(1, 2) for t in qkv.chunk(3, -1))
        weights = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(-1)
        mixed = (weights @ value).transpose(1, 2).reshape(x.shape)
        x = x + functional.linear(mixed, part["attn.proj.weight"], part["attn.proj.bias"])
        normed = functional.layer_norm(x, x.shape[-1:], part["norm2.weight"], part["norm2.bias"], eps=1e-6)
        inner = functional.linear(normed, part["mlp.fc1.weight"], part["mlp.fc1.bias"])
        x = x + functional.linear(inner * torch.sigmoid(1.702 * inner), part["mlp.fc2.weight"], part["mlp.fc2.bias"])
    one = functional.conv1d(x.transpose(1, 2), raw["conv_1d.weight"], raw["conv_1d.bias"]).transpose(1, 2)
    one = functional.gelu(functional.linear(one, raw["proj_to_sam.0.weight"], raw["proj_to_sam.0.bias"]))
    return functional.linear(one, raw["proj_to_sam.2.weight"], raw["proj_to_sam.2.bias"])


@pytest.mark.parametrize(
    ("wording", "side", "penalty"),
    [("plain", 168, 1.0), ("plain", 168, 2.0), ("reasoning", 112, 2.0), ("plain", None, 2.0)],
)
def test_answer_token_and_attention_are_theirs(theirs, parts, raw, processor, wording, side, penalty, monkeypatch):
    replies = []
    generate = parts.mllm.generate
    monkeypatch.setattr(parts.mllm, "generate", lambda **given: replies.append(generate(**given)) or replies[-1])
    lens = Lens(parts, wording, image_side=side, max_new_tokens=TOKENS, repetition_penalty=penalty)
    ours = lens.ground([Query(IMAGE, QUESTION)])[0]
    inputs = inputs_for(processor, wording, side)
    said = generated(theirs, inputs, repetition_penalty=penalty)
    assert torch.equal(replies[0], torch.cat([inputs["input_ids"], said[None]], 1))
    assert penalty == 1 or len(set(said.tolist())) > 3
    assert ours.reply == parts.tokenizer.decode(said)
    states, attentions = query_pass(theirs, raw, inputs, said)
    assert_close(ours.token, connect(raw, states), **CLOSE)
    _, rows, cols = (inputs["image_grid_thw"][0] // torch.tensor([1, 2, 2])).tolist()
    image = (inputs["input_ids"][0] == theirs.config.image_token_id).nonzero()[:, 0]
    expected = attentions[33][0, :, -64, image].mean(0).reshape(1, rows, cols)
    assert_close(ours.attention, expected, atol=1e-6, rtol=1e-4)
    assert expected.max() > 3 * expected.min()
    assert (ours.cells.rows, ours.cells.cols) == (rows, cols)


def test_the_states_of_all_queries_are_theirs(theirs, parts, raw, processor):
    states = []
    hook = parts.connector.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    said = torch.tensor(parts.tokenizer("It is 12.")["input_ids"])
    end = torch.tensor([parts.tokenizer.convert_tokens_to_ids("<|im_end|>")])
    Lens(parts, "plain", mode="teacher", answer="It is 12.", image_side=168).ground([Query(IMAGE, QUESTION)])
    hook.remove()
    expected, _ = query_pass(theirs, raw, inputs_for(processor, "plain", 168), torch.cat([said, end]))
    assert_close(states[0], expected, **CLOSE)
    assert expected.std(1).mean() > 0.1


@pytest.mark.parametrize(("row", "layers"), [("first", (30, 35)), ("last", (33, 33)), ("mean", (0, 2))])
def test_rows_and_layers_are_those_of_the_full_matrices(theirs, parts, raw, processor, row, layers):
    lens = Lens(parts, "plain", layers, row, mode="teacher", image_side=112)
    ours = lens.ground([Query(IMAGE, QUESTION)])[0].attention
    inputs = inputs_for(processor, "plain", 112)
    end = torch.tensor([parts.tokenizer.convert_tokens_to_ids("<|im_end|>")])
    _, attentions = query_pass(theirs, raw, inputs, end)
    image = (inputs["input_ids"][0] == theirs.config.image_token_id).nonzero()[:, 0]
    chosen = torch.stack(attentions[layers[0] : layers[1] + 1])[:, 0, :, -64:, image].mean((0, 1))
    expected = {"first": chosen[0], "last": chosen[-1], "mean": chosen.mean(0)}[row]
    assert_close(ours, expected.reshape(ours.shape), atol=1e-6, rtol=1e-4)


def test_with_the_positions_of_generation_the_queries_would_say_something_else(theirs, parts, raw, processor):
    inputs = inputs_for(processor, "plain", 168)
    end = torch.tensor([parts.tokenizer.convert_tokens_to_ids("<|im_end|>")])
    ids = torch.cat([inputs["input_ids"], end.expand(1, 65)], 1)
    kinds = (ids == theirs.config.image_token_id).int()
    positions, _ = theirs.model.get_rope_index(ids, kinds, inputs["image_grid_thw"])
    plain, _ = query_pass(theirs, raw, inputs, end)
    stretched, _ = query_pass(theirs, raw, inputs, end, positions)
    assert (connect(raw, plain) - connect(raw, stretched)).abs().max() > 0.1
    ours = Lens(parts, "plain", mode="teacher", image_side=168).ground([Query(IMAGE, QUESTION)])[0]
    assert_close(ours.token, connect(raw, plain), **CLOSE)
