"""LENS as a generator: a Qwen2.5-VL answers in words, then 64 learnt queries read it all for the segmenter.

Departures from hustvl/LENS: native Qwen2.5-VL classes; a budget of new tokens, where upstream's evaluation allows 768
tokens in all and thereby cuts long thoughts; the answer is greedy under the settings given here alone, while upstream's
evaluation takes over what is saved with a checkpoint, such as a repetition penalty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from rea2seg.checkpoints.lens import CONTROLS, END, IMAGE_TOKEN, PADDING, LensPlan, lens_plan
from rea2seg.checkpoints.strict import fill
from rea2seg.checkpoints.vocabulary import check_vocabulary
from rea2seg.devices import HERE, ON_CPU, Placement
from rea2seg.errors import ConfigError, require_choice, require_positive
from rea2seg.findings import Finding, Footprint, cache_bytes, footprint, stored_as
from rea2seg.generator.attention import enable, layer_range, probe, prompt_attention
from rea2seg.generator.queries import QueryConnector
from rea2seg.generator.qwen import Seen, processor_for, resized, see
from rea2seg.generator.tokens import IMAGE, Conversation, Exchange, Mode, TokenLayout, expand
from rea2seg.geometry import CellMap
from rea2seg.structures import Grounding, Query
from rea2seg.text import control_id

Wording = Literal["plain", "reasoning"]
QueryRow = Literal["first", "last", "mean"]

QUERY = -201
"""Stands for a learnt query in a list of ids, as `IMAGE` does for an image token."""
LAYERS = (33, 33)
"""The paper's for LENS; it does not say from what it counts."""
MAX_PIXELS, MAX_NEW_TOKENS = 1_000_000, 768
"""Of the image that the MLLM sees, and of an answer; training allowed 768."""


def _wording(request: str) -> Conversation:
    return Conversation(
        prompt="<|im_start|>system\nYou are a helpful assistant. <|im_end|>\n<|im_start|>user\n<|vision_start|><image>"
        f"<|vision_end|>{request}<|im_end|>\n<|im_start|>assistant\n",
        reply="{answer}<|im_end|>",
        controls=("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
        stripped=(),
    )


WORDINGS: dict[Wording, Conversation] = {
    "plain": _wording("Output the bounding box of the {question} in the image."),
    "reasoning": _wording(
        'Locate "{question}", report the bbox coordinates in JSON format.Compare the difference between objects and '
        "find the most closely matched one.Output the thinking process in <think> </think> and final answer in "
        "<answer> </answer> tags.Output the one bbox inside the interested object in JSON format.i.e., "
        "<think>thinking process here</think><answer>answer here</answer>"
    ),
}
"""What the published weights were trained with: `reasoning` is that of LENS_ReasonSeg_CoT, `plain` that of the others.
No spaces stand between its sentences there either."""
PROMPT: Wording = "reasoning"


@dataclass(frozen=True, eq=False)
class Parts:
    """The live modules of a LENS."""

    mllm: Qwen2_5_VLForConditionalGeneration
    connector: QueryConnector
    tokenizer: PreTrainedTokenizerBase


def load(folder: str | Path, placement: Placement = ON_CPU) -> Parts:
    """Reads the layout of `rea2seg.checkpoints.lens`; the connector is always in float32.

    Raises `CheckpointError` where anything does not fit.
    """
    return build(lens_plan(Path(folder)), placement)


def build(plan: LensPlan, placement: Placement) -> Parts:
    """The live modules of a plan. Raises `CheckpointError` where a tensor does not fit."""
    connector = plan.described_connector().to_empty(device="cpu")
    fill(connector, plan.source, plan.connector)
    mllm = plan.mllm.load(placement)
    mllm.generation_config = GenerationConfig()
    return Parts(mllm, connector.eval().to(mllm.device), plan.tokenizer)


def conversation_for(
    tokenizer: PreTrainedTokenizerBase, prompt: Wording | Conversation, answer: str = ""
) -> Conversation:
    """The conversation that a prompt stands for, which with this answer can be encoded.

    LENS encoded its wordings in one piece: what the tokenizer has as an added token, `<think>` perhaps, is one id then.
    Raises `ConfigError` and `CheckpointError`, such as for added tokens that another conversation does not declare.
    """
    if isinstance(prompt, str):
        require_choice(Wording, prompt=prompt)
        wording = WORDINGS[prompt]
        whole = wording.prompt + wording.reply + answer
        named = [token for token in tokenizer.get_added_vocab() if token.strip() and token in whole]
        prompt = replace(wording, controls=tuple(dict.fromkeys((*wording.controls, *named))))
    prompt.check()
    # What the first question would find out.
    prompt.dialogue_ids(tokenizer, "x", answer)
    return prompt


class Lens:
    """The Generator seat on LENS. Its prompt embedding is one token for SAM 2.

    `weights`: a folder in LENS's layout, or live modules, which stay where they are. `prompt`: the wording that the
    weights were trained with, or another conversation. `layers`: the inclusive range, counted from 0, whose attention
    is averaged. `row`: the query whose attention is read, or the mean over all. `mode`: `generate` lets the MLLM answer
    first, as LENS does; `teacher` puts `answer` in its mouth instead, which is ours, for speed. `image_side`: the
    longest side is first resized to so many pixels, as for ReasonSeg; `None` leaves the image as it is, as for RefCOCO
    and in LENS's demo. `max_pixels`: of the image that the MLLM sees. `max_new_tokens`: of an answer.
    `repetition_penalty`: 1 is none. Raises `ConfigError` and `CheckpointError`, for words before weights are loaded.
    """

    def __init__(
        self,
        weights: str | Path | Parts,
        prompt: Wording | Conversation = PROMPT,
        layers: tuple[int, int] = LAYERS,
        row: QueryRow = "first",
        mode: Mode = "generate",
        answer: str = "",
        image_side: int | None = 640,
        max_pixels: int = MAX_PIXELS,
        max_new_tokens: int = MAX_NEW_TOKENS,
        repetition_penalty: float = 1.0,
        placement: Placement = HERE,
    ) -> None:
        require_choice(QueryRow, row=row)
        require_choice(Mode, mode=mode)
        require_positive(
            max_pixels=max_pixels, max_new_tokens=max_new_tokens, image_side=1 if image_side is None else image_side
        )
        if repetition_penalty <= 0:
            raise ConfigError(f"repetition_penalty must be above 0, not {repetition_penalty}")
        source = weights if isinstance(weights, Parts) else lens_plan(Path(weights))
        tokenizer, config = source.tokenizer, source.mllm.config
        if isinstance(source, Parts):  # of files the plan has checked it
            check_vocabulary(tokenizer, config, CONTROLS, "the tokenizer", IMAGE_TOKEN)
        self.conversation = conversation_for(tokenizer, prompt, answer)
        self.layers = layer_range(layers, config.text_config.num_hidden_layers)
        self.parts = source if isinstance(source, Parts) else build(source, placement)
        self.row, self.mode, self.answer, self.placement, self.image_side = row, mode, answer, placement, image_side
        self.max_new_tokens, self.repetition_penalty = max_new_tokens, repetition_penalty
        self.end, self.padding, self.image_token = (
            control_id(tokenizer, token) for token in (END, PADDING, IMAGE_TOKEN)
        )
        self.processor = processor_for(self.parts.mllm, max_pixels)
        enable(self.parts.mllm)

    @classmethod
    def wrap(
        cls,
        mllm: Qwen2_5_VLForConditionalGeneration,
        connector: QueryConnector,
        tokenizer: PreTrainedTokenizerBase,
        **settings: Any,
    ) -> Lens:
        """A generator on live modules, which stay where and in what mode they are; put them in `eval` to ground."""
        return cls(Parts(mllm, connector, tokenizer), **settings)

    @classmethod
    def examine(
        cls,
        weights: str,
        prompt: Wording | Mapping[str, Any] = PROMPT,
        layers: Sequence[int] = LAYERS,
        answer: str = "",
        max_pixels: int = MAX_PIXELS,
        max_new_tokens: int = MAX_NEW_TOKENS,
        placement: Mapping[str, Any] = MappingProxyType({}),
        **_: Any,
    ) -> Iterator[Finding | Footprint]:
        """What a pipeline with these arguments will load, found without loading it (`rea2seg.findings`).

        Raises `CheckpointError` and `ConfigError` as the constructor does.
        """
        plan = lens_plan(Path(weights))
        mllm, text = plan.mllm.check(), plan.mllm.config.text_config
        yield Finding("tensors", f"MLLM {stored_as(plan.mllm.tensors)}; connector {stored_as(plan.connector)}: all fit")
        layer_range((layers[0], layers[1]), text.num_hidden_layers)
        told = f"{text.num_hidden_layers} layers of width {text.hidden_size}, those of the map among them"
        yield Finding("config", f"{told}; {plan.queries} queries")
        conversation_for(plan.tokenizer, prompt if isinstance(prompt, str) else Conversation(**prompt), answer)
        slot = control_id(plan.tokenizer, IMAGE_TOKEN)
        yield Finding("ids", f"{IMAGE_TOKEN} is {slot} of {text.vocab_size}")
        cell = plan.mllm.config.vision_config.patch_size * plan.mllm.config.vision_config.spatial_merge_size
        tokens = max_pixels // cell**2
        yield Finding("image", f"at most {tokens} tokens, one for {cell} x {cell} px")
        # Ours: keys and values of all that is read and said, and as much again for what is computed.
        place = Placement(**placement)
        working = 2 * cache_bytes(text, tokens + max_new_tokens + plan.queries, place.precision)
        yield replace(footprint(mllm, working, place), fixed=footprint(plan.described_connector(), 0).other)

    @torch.no_grad()
    def ground(self, queries: Sequence[Query]) -> list[Grounding]:
        """Grounds the queries one by one; an image shared by several of them (the same object) is encoded once."""
        if not queries:
            return []
        distinct = {id(query.image): query.image for query in queries}
        pictures = {key: resized(image, self.image_side) for key, image in distinct.items()}
        with self.placement.present(self.parts.mllm, self.parts.connector):
            seen = {key: see(self.parts.mllm, self.processor, picture) for key, picture in pictures.items()}
            return [self._ground(query, seen[id(query.image)]) for query in queries]

    def _ground(self, query: Query, seen: Seen) -> Grounding:
        if self.mode == "generate":
            return self._read(query, self._converse(query.text, seen), seen)
        taught, _ = self.conversation.dialogue_ids(self.parts.tokenizer, query.text, self.answer)
        return self._read(query, Exchange(taught, self.answer), seen)

    def _converse(self, question: str, seen: Seen) -> Exchange:
        tokenizer = self.parts.tokenizer
        prompt = self.conversation.prompt_ids(tokenizer, question)
        # LENS hides the padding token, which may also end an answer, from the queries.
        said = [token for token in self._generate(prompt, seen) if token != self.padding]
        if said and said[-1] == self.end:
            return Exchange(prompt + said, tokenizer.decode(said[:-1]))
        flag = f"the answer stopped after {len(said)} tokens without {END}; the queries were read all the same"
        return Exchange(prompt + said, tokenizer.decode(said), (flag,))

    def _generate(self, prompt: list[int], seen: Seen) -> list[int]:
        expanded = torch.tensor([expand(prompt, len(seen.features))], device=seen.features.device)
        ids = expanded.masked_fill(expanded == IMAGE, self.image_token)
        greedy = GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            repetition_penalty=self.repetition_penalty,
            eos_token_id=[self.end, self.padding],
            pad_token_id=self.padding,
        )
        whole = self.parts.mllm.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            # Without it the image would silently get the positions of text.
            mm_token_type_ids=(expanded == IMAGE).int(),
            image_grid_thw=seen.patches,
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=(seen.features,))},
            generation_config=greedy,
        )
        said: list[int] = whole[0, ids.shape[1] :].tolist()
        return said

    def _read(self, query: Query, exchange: Exchange, seen: Seen) -> Grounding:
        """One pass over question, answer and queries: the states that become the prompt, and the attention rows."""
        queries = self.parts.connector.learnable_query.shape[1]
        ids = [*expand(exchange.ids, len(seen.features)), *[QUERY] * queries]
        layout = TokenLayout.of(ids, seen.grid, QUERY)
        rows = {"first": layout.segs[:1], "last": layout.segs[-1:], "mean": layout.segs}[self.row]
        with probe(self.layers, torch.tensor([rows])) as found:
            states = query_states(self.parts, torch.tensor([ids]), seen.features)
        weights = [found.layers[layer][0] for layer in self.layers]
        attention = prompt_attention(weights, layout).mean(0, keepdim=True)
        token = self.parts.connector(states)[:, None].float()
        return Grounding(token, attention, CellMap.stretched(query.size, seen.grid), exchange.reply, exchange.flags)


def query_states(
    parts: Parts, ids: Int[Tensor, "1 seq"], features: Float[Tensor, "tokens hidden"]
) -> Float[Tensor, "1 queries hidden"]:
    """The last states, after the final norm, of the `QUERY` ids, which come last. Can be differentiated.

    All tokens have plain positions, those of the image too: LENS was trained so, although it answers under M-RoPE.
    """
    embeddings = parts.mllm.get_input_embeddings()(ids.clamp(min=0).to(parts.mllm.device))
    ids = ids.to(embeddings.device)
    for sentinel, values in ((IMAGE, features), (QUERY, parts.connector.learnable_query)):
        embeddings = embeddings.masked_scatter((ids == sentinel)[..., None], values.to(embeddings))
    positions = torch.arange(ids.shape[1], device=ids.device).expand(3, 1, -1)
    output = parts.mllm.get_decoder()(inputs_embeds=embeddings, position_ids=positions, use_cache=False)
    states: Tensor = output.last_hidden_state[:, -parts.connector.learnable_query.shape[1] :]
    return states
