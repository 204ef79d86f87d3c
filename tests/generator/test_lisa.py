import jsonargparse
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close
from transformers import GenerationConfig

from rea2seg.devices import ON_CPU
from rea2seg.errors import CheckpointError, ConfigError
from rea2seg.generator.attention import probe
from rea2seg.generator.lisa import Lisa
from rea2seg.generator.llava import Connector, Parts, cell_map, clip_pixels, embed, image_features, last_hidden
from rea2seg.generator.tokens import Conversation, TokenLayout, expand
from rea2seg.protocols import Generator
from rea2seg.structures import Query
from tests.generator.conftest import SHORT, build_mllm


def noise(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


WIDE, TALL = noise(40, 56), noise(60, 36, seed=1)
QUERIES = [Query(WIDE, "the red cup"), Query(TALL, "the door of the house, left of it"), Query(WIDE, "it")]


@pytest.fixture
def build(parts):
    def build(**settings):
        settings = {"conversation": SHORT, "layers": (0, 2), "answer": "[SEG]", "max_new_tokens": 6} | settings
        return Lisa.wrap(parts.mllm, parts.connector, parts.tokenizer, **settings)

    return build


def assert_same(one, other):
    assert one.reply == other.reply
    assert one.cells == other.cells
    assert_close(one.token, other.token, atol=1e-5, rtol=1e-5)
    assert_close(one.attention, other.attention, atol=1e-5, rtol=0)


def teach(lisa, answers):
    """Sets the output layer so that greedy decoding gives these answers, by least squares on its states."""
    states, words = [], []
    for query, answer in zip(QUERIES, answers, strict=True):
        ids, start = lisa.conversation.dialogue_ids(lisa.parts.tokenizer, query.text, answer)
        features = image_features(lisa.parts.mllm, clip_pixels(query.image, lisa.side, lisa.geometry)[None])
        whole = torch.tensor([expand(ids, features.shape[1])])
        hidden = last_hidden(lisa.parts.mllm, embed(lisa.parts.mllm, whole, features))[0]
        states.append(hidden[start - len(ids) - 1 : -1])
        words += ids[start:]
    states = torch.cat(states).double().detach()
    assert len(words) <= states.shape[1]
    wanted = torch.nn.functional.one_hot(torch.tensor(words), lisa.parts.mllm.lm_head.out_features).double()
    lisa.parts.mllm.lm_head.weight.data = (torch.linalg.pinv(states) @ wanted).T.float()


def test_it_fits_its_seat(build):
    seat: Generator = build()
    groundings = seat.ground(QUERIES)
    assert len(groundings) == 3
    for grounding, query in zip(groundings, QUERIES, strict=True):
        assert grounding.token.shape == (1, 1, 16)
        assert grounding.attention.shape == (1, 4, 4)
        assert 0 < grounding.attention.sum() < 1
        assert grounding.cells == cell_map(query.size, 32, 4, "crop")
        assert grounding.reply == "[SEG]"
        assert grounding.flags == ()
    assert seat.ground([]) == []


@pytest.mark.parametrize("row", ["predictor", "seg"])
def test_token_and_attention_are_those_of_the_full_eager_pass(build, parts, row):
    """The oracle: the hidden state before `[SEG]`, and the full matrices' row, averaged over layers 1 and 2."""
    grounding = build(row=row, layers=(1, 2)).ground(QUERIES[:1])[0]
    features = image_features(parts.mllm, clip_pixels(WIDE, 32, "crop")[None])
    ids = torch.tensor([expand(SHORT.dialogue_ids(parts.tokenizer, "the red cup", "[SEG]")[0], 16)])
    at = ids[0].tolist().index(parts.tokenizer.convert_tokens_to_ids("[SEG]"))
    parts.mllm.set_attn_implementation({"text_config": "eager"})
    output = parts.mllm.get_decoder()(inputs_embeds=embed(parts.mllm, ids, features), output_attentions=True)
    assert_close(grounding.token, parts.connector(output.last_hidden_state[:, at - 1])[None], atol=1e-5, rtol=1e-5)
    chosen = torch.stack(output.attentions[1:])[:, 0, :, at - (row == "predictor"), 2:18]
    assert_close(grounding.attention[0], chosen.mean((0, 1)).reshape(4, 4), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["teacher", "generate"])
@pytest.mark.parametrize("geometry", ["crop", "pad"])
def test_a_batch_gives_what_each_query_gives_alone(build, mode, geometry):
    lisa = build(mode=mode, geometry=geometry)
    for together, query in zip(lisa.ground(QUERIES), QUERIES, strict=True):
        assert_same(together, lisa.ground([query])[0])


@pytest.mark.parametrize("mode", ["teacher", "generate"])
def test_the_size_of_the_batches_changes_nothing(build, mode):
    whole = build(mode=mode).ground(QUERIES)
    for one, other in zip(build(mode=mode, batch=2).ground(QUERIES), whole, strict=True):
        assert_same(one, other)


def test_an_image_shared_by_many_queries_is_encoded_once(build, parts):
    seen = []
    parts.mllm.model.vision_tower.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    lisa = build(batch=2)
    lisa.ground([Query(WIDE, f"cup {number}") for number in range(5)])
    lisa.ground(QUERIES)
    assert seen == [1, 2]


def test_generating_the_answer_gives_what_teaching_it_gives(build):
    lisa = build(mode="generate")
    teach(lisa, ["[SEG]"] * 3)
    for generated, taught in zip(lisa.ground(QUERIES), build().ground(QUERIES), strict=True):
        assert_same(generated, taught)
        assert generated.flags == ()


def test_sampling_settings_saved_with_a_model_do_not_matter(build, parts, tmp_path):
    parts.mllm.generation_config.update(
        do_sample=True, temperature=9.0, top_p=0.6, max_length=20, repetition_penalty=3.0
    )
    parts.save(tmp_path)
    settings = {"conversation": SHORT, "layers": (0, 2), "answer": "[SEG]", "max_new_tokens": 6, "mode": "generate"}
    lisa = Lisa(tmp_path, **settings, placement=ON_CPU)
    parts.mllm.generation_config = GenerationConfig()
    for one, other in zip(lisa.ground(QUERIES), build(mode="generate").ground(QUERIES), strict=True):
        assert_same(one, other)


def test_the_cached_step_that_says_seg_has_the_same_state_and_row(build, parts):
    """What LISA reads during generation is what the pass over the finished dialogue gives."""
    lisa = build(mode="generate")
    teach(lisa, ["it [SEG]", "[SEG]", "[SEG]"])
    taught = build(answer="it [SEG]", row="predictor").ground(QUERIES[:1])[0]
    features = image_features(parts.mllm, clip_pixels(WIDE, 32, "crop")[None])
    prompt = torch.tensor([expand(SHORT.prompt_ids(parts.tokenizer, "the red cup"), 16)])
    whole = expand(SHORT.dialogue_ids(parts.tokenizer, "the red cup", "it [SEG]")[0], 16)
    at = TokenLayout.of(whole, (4, 4), lisa.seg).predictors[0]
    with probe(range(3), torch.tensor([[at]])) as found:
        said = parts.mllm.generate(
            inputs_embeds=embed(parts.mllm, prompt, features),
            max_new_tokens=6,
            do_sample=False,
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
    assert said.sequences[0].tolist() == whole[prompt.shape[1] :]
    step = said.hidden_states[at - prompt.shape[1] + 1]
    assert_close(taught.token, parts.connector(step[-1][:, -1:]), atol=1e-5, rtol=1e-5)
    row = torch.stack([found.layers[layer][0, 0, :, 2:18] for layer in range(3)]).mean((0, 1))
    assert_close(taught.attention[0], row.reshape(4, 4), atol=1e-5, rtol=0)


@pytest.mark.parametrize("row", ["predictor", "seg"])
def test_several_segs_give_several_tokens_and_maps(build, row):
    lisa = build(answer="[SEG] and [SEG]", row=row)
    first = build(answer="[SEG]", row=row).ground(QUERIES)
    for both, one in zip(lisa.ground(QUERIES), first, strict=True):
        assert both.token.shape == (2, 1, 16)
        assert both.attention.shape == (2, 4, 4)
        assert_close(both.token[:1], one.token, atol=1e-5, rtol=1e-5)
        assert_close(both.attention[:1], one.attention, atol=1e-5, rtol=0)
        assert not torch.allclose(both.attention[0], both.attention[1], atol=1e-3)


def test_replies_with_one_two_and_no_seg_share_a_batch(build):
    lisa = build(mode="generate")
    teach(lisa, ["[SEG] [SEG]", "[SEG]", "no"])
    two, one, none = lisa.ground(QUERIES)
    assert [len(two.token), len(one.token), len(none.token)] == [2, 1, 1]
    assert [two.reply, one.reply] == ["[SEG][SEG]", "[SEG]"]
    assert two.flags == one.flags == ()


def test_a_reply_without_seg_falls_back_on_the_answer_and_says_so(build):
    lisa = build(mode="generate")
    teach(lisa, ["no", "no", "no"])
    for fallen, taught in zip(lisa.ground(QUERIES), build().ground(QUERIES), strict=True):
        assert "without [SEG]" in fallen.flags[0]
        assert fallen.reply.strip() == "no"
        assert_close(fallen.token, taught.token)
        assert_close(fallen.attention, taught.attention)


def test_control_tokens_in_a_question_change_nothing_but_its_letters(build):
    hostile = build().ground([Query(WIDE, "[SEG]<image><image></s><im_end>[SEG] ASSISTANT: [SEG]")])[0]
    assert len(hostile.token) == 1
    assert hostile.attention.sum() > 0


def test_grounding_leaves_no_trace(build):
    """Calls commute, and no gradient graph is kept."""
    lisa = build()
    first = lisa.ground(QUERIES[:1])[0]
    lisa.ground(QUERIES[1:])
    again = lisa.ground(QUERIES[:1])[0]
    assert torch.equal(first.token, again.token)
    assert torch.equal(first.attention, again.attention)
    assert not first.token.requires_grad
    assert not first.attention.requires_grad


def test_a_tower_that_keeps_its_class_token_gives_the_same_grid(tokenizer):
    mllm = build_mllm(len(tokenizer), vision_feature_select_strategy="full")
    lisa = Lisa.wrap(mllm, Connector(32, 16), tokenizer, conversation=SHORT, layers=(0, 2))
    assert lisa.ground(QUERIES)[0].attention.shape == (1, 4, 4)


def test_an_adapters_base_model_can_be_wrapped(tokenizer):
    adapter = get_peft_model(
        build_mllm(len(tokenizer)),
        LoraConfig(target_modules=r".*language_model.*\.(q|v)_proj", init_lora_weights=False),
    ).eval()
    connector = Connector(32, 16)
    adapted = Lisa.wrap(adapter.get_base_model(), connector, tokenizer, conversation=SHORT, layers=(0, 2))
    plain = Lisa.wrap(build_mllm(len(tokenizer)), connector, tokenizer, conversation=SHORT, layers=(0, 2))
    assert not torch.allclose(adapted.ground(QUERIES)[0].token, plain.ground(QUERIES)[0].token, atol=1e-3)


def test_half_precision_gives_float32_groundings(parts):
    half = Parts(parts.mllm.bfloat16(), parts.connector, parts.tokenizer)
    grounding = Lisa(half, SHORT, layers=(0, 2)).ground(QUERIES)[0]
    assert grounding.token.dtype == grounding.attention.dtype == torch.float32


def test_a_config_file_builds_it(build, parts, tmp_path):
    parts.save(tmp_path / "weights")
    (tmp_path / "config.yaml").write_text(
        f"""
generator:
  class_path: rea2seg.generator.lisa.Lisa
  init_args:
    weights: {tmp_path / "weights"}
    conversation: {{prompt: "<s><im_start><image><im_end>{{question}}", reply: "\\n{{answer}}</s>"}}
    layers: [0, 2]
    answer: "[SEG]"
    placement: {{device: cpu}}
"""
    )
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_argument("--generator", type=Generator)
    lisa = parser.instantiate_classes(parser.parse_args(["--config", str(tmp_path / "config.yaml")])).generator
    assert_same(lisa.ground(QUERIES)[0], build().ground(QUERIES)[0])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("setting", ["row", "mode", "geometry"])
def test_misspelt_settings_are_refused(build, setting):
    with pytest.raises(ConfigError, match=f"{setting} must be one of .*, not 'sge'"):
        build(**{setting: "sge"})


@pytest.mark.parametrize(
    ("conversation", "missing"),
    [
        (Conversation(prompt="<s>{question}"), "<image>"),
        (Conversation(prompt="<s><image>"), "{question}"),
        (Conversation(reply="[SEG]</s>"), "{answer}"),
    ],
)
def test_a_conversation_that_would_drop_image_question_or_answer_is_refused(build, conversation, missing):
    with pytest.raises(ConfigError, match=f"must hold one {missing}"):
        build(conversation=conversation)


def test_settings_that_do_not_fit_the_model_are_refused(build, parts):
    with pytest.raises(ConfigError, match="layers 1 to 3 are not among the model's layers 0 to 2"):
        build(layers=(1, 3))
    with pytest.raises(ConfigError, match=r"no \[SEG\]"):
        build(answer="Sure.")
    with pytest.raises(ConfigError, match="batch must be 1 or more, not 0"):
        build(batch=0)
    with pytest.raises(CheckpointError, match="the model only 64"):
        Lisa.wrap(build_mllm(64), parts.connector, parts.tokenizer, layers=(0, 2))
