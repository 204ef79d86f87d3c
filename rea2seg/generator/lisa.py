"""LISA as a generator: a LLaVA answers with `[SEG]`, whose predictor's hidden state prompts the segmenter.

Departures from dvlab-research/LISA: native LLaVA classes, a key-value cache, several questions in one batch, and
positions derived from the ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerBase

from rea2seg.checkpoints.lisa import lisa_plan
from rea2seg.checkpoints.strict import check_fit
from rea2seg.checkpoints.vocabulary import check_vocabulary
from rea2seg.devices import HERE, Placement
from rea2seg.errors import CheckpointError, ConfigError, require_choice, require_positive
from rea2seg.findings import Finding, Footprint, cache_bytes, footprint, stored_as
from rea2seg.generator.attention import enable, layer_range, probe, prompt_attention
from rea2seg.generator.llava import (
    Connector,
    Geometry,
    Parts,
    build,
    cell_map,
    clip_pixels,
    embed,
    empty_connector,
    image_features,
    last_hidden,
)
from rea2seg.generator.tokens import SEG, Conversation, Exchange, Mode, Row, TokenLayout, expand
from rea2seg.structures import Grounding, Query
from rea2seg.text import control_id

LAYERS = (14, 30)
"""The paper's for LLaVA; it does not say whether it counts from 0."""
ANSWER = "[SEG]."
"""LISA's in its own evaluation."""


class Lisa:
    """The Generator seat on a LLaVA with a connector (LISA, READ, Rea2Seg-LLaVA, and the small embedded model).

    `weights`: a folder in one of the layouts of `rea2seg.checkpoints.lisa`, or live modules, which stay where they are.
    `vision_tower`: a folder with the CLIP that public checkpoints leave out.
    `layers` is the inclusive range, counted from 0, whose attention is averaged; the paper's "14 to 30" for LLaVA does
    not say from what it counts. `row` chooses the attention row; the prompt embedding always comes from the predictor.
    `mode`: `teacher` puts `answer` in the MLLM's mouth, `generate` lets it answer and falls back on `answer` where it
    does not say `[SEG]`. `geometry`: how images meet the square CLIP input; LISA and READ were trained with `crop`.
    `max_new_tokens`: of a generated answer. `batch`: queries read together.
    """

    def __init__(
        self,
        weights: str | Path | Parts,
        conversation: Conversation | None = None,
        layers: tuple[int, int] = LAYERS,
        row: Row = "predictor",
        mode: Mode = "teacher",
        answer: str = ANSWER,
        geometry: Geometry = "crop",
        max_new_tokens: int = 128,  # ours
        batch: int = 8,  # ours
        vision_tower: str | Path | None = None,
        placement: Placement = HERE,
    ) -> None:
        require_choice(Row, row=row)
        require_choice(Mode, mode=mode)
        require_choice(Geometry, geometry=geometry)
        require_positive(batch=batch, max_new_tokens=max_new_tokens)
        self.placement, self.conversation = placement, conversation or Conversation()
        if isinstance(weights, Parts):
            self.parts = weights
            check_words(weights.tokenizer, weights.mllm.config, self.conversation, answer, "the tokenizer")
        else:
            plan = lisa_plan(Path(weights), Path(vision_tower) if vision_tower else None)
            name = f"the tokenizer in {weights}"
            check_words(plan.tokenizer, plan.mllm.config, self.conversation, answer, name)
            self.parts = build(plan, placement)
        self.row, self.mode, self.answer, self.geometry = row, mode, answer, geometry
        self.max_new_tokens, self.batch = max_new_tokens, batch
        self.layers = layer_range(layers, self.parts.mllm.config.text_config.num_hidden_layers)
        self.seg = control_id(self.parts.tokenizer, SEG)
        vision = self.parts.mllm.config.vision_config
        self.side, self.grid = vision.image_size, vision.image_size // vision.patch_size
        if vision.image_size % vision.patch_size:
            told = f"patches of {vision.patch_size} pixels do not tile an image of {vision.image_size}"
            raise ConfigError(f"{told}: take another vision tower")
        enable(self.parts.mllm)

    @classmethod
    def wrap(
        cls,
        mllm: LlavaForConditionalGeneration,
        connector: Connector,
        tokenizer: PreTrainedTokenizerBase,
        **settings: Any,
    ) -> Lisa:
        """A generator on live modules, which stay where and in what mode they are; put them in `eval` to ground."""
        return cls(Parts(mllm, connector, tokenizer), **settings)

    @classmethod
    def examine(
        cls,
        weights: str,
        conversation: Mapping[str, Any] | None = None,
        layers: Sequence[int] = LAYERS,
        answer: str = ANSWER,
        vision_tower: str | None = None,
        placement: Mapping[str, Any] = MappingProxyType({}),
        **_: Any,
    ) -> Iterator[Finding | Footprint]:
        """What a pipeline with these arguments will load, found without loading it (`rea2seg.findings`)."""
        plan = lisa_plan(Path(weights), Path(vision_tower) if vision_tower else None)
        mllm, text = plan.mllm.check(), plan.mllm.config.text_config
        with torch.device("meta"):
            connector = empty_connector(plan)
        check_fit(connector.state_dict(), plan.source, plan.connector)
        yield Finding("tensors", f"MLLM {stored_as(plan.mllm.tensors)}; connector {stored_as(plan.connector)}: all fit")
        layer_range((layers[0], layers[1]), text.num_hidden_layers)
        yield Finding(
            "config", f"{text.num_hidden_layers} layers of width {text.hidden_size}, those of the map among them"
        )
        words, name = Conversation(**conversation or {}), f"the tokenizer in {weights}"
        check_words(plan.tokenizer, plan.mllm.config, words, answer, name)
        yield Finding("ids", f"{SEG} is {control_id(plan.tokenizer, SEG)} of {text.vocab_size}")
        vision = plan.mllm.config.vision_config
        tokens = (vision.image_size // vision.patch_size) ** 2
        yield Finding("image", f"{vision.image_size} px become {tokens} tokens")
        # Ours: keys and values of an image and the words LISA trained with, and as much again for all else.
        place = Placement(**placement)
        working = 2 * cache_bytes(text, tokens + 512, place.precision)
        yield replace(footprint(mllm, working, place), fixed=footprint(connector, 0).other)

    @torch.no_grad()
    def ground(self, queries: Sequence[Query]) -> list[Grounding]:
        """Grounds the queries in batches; an image shared by several of them (the same object) is encoded once."""
        with self.placement.present(self.parts.mllm, self.parts.connector):
            return self._ground_all(queries) if queries else []

    def _ground_all(self, queries: Sequence[Query]) -> list[Grounding]:
        distinct = {id(query.image): query.image for query in queries}
        pixels = torch.stack([clip_pixels(image, self.side, self.geometry) for image in distinct.values()])
        seen = image_features(self.parts.mllm, pixels.to(self.parts.mllm.device))
        places = [list(distinct).index(id(query.image)) for query in queries]
        groundings = []
        for start in range(0, len(queries), self.batch):
            part = slice(start, start + self.batch)
            groundings += self._ground(queries[part], seen[places[part]])
        return groundings

    def _ground(self, queries: Sequence[Query], features: Float[Tensor, "queries tokens hidden"]) -> list[Grounding]:
        questions = [query.text for query in queries]
        if self.mode == "teacher":
            exchanges = [Exchange(self._teach(question), self.answer) for question in questions]
        else:
            exchanges = self._converse(questions, features)
        return self._read(queries, exchanges, features)

    def _teach(self, question: str) -> list[int]:
        return self.conversation.dialogue_ids(self.parts.tokenizer, question, self.answer)[0]

    def _converse(self, questions: Sequence[str], features: Float[Tensor, "queries tokens hidden"]) -> list[Exchange]:
        prompts = [self.conversation.prompt_ids(self.parts.tokenizer, question) for question in questions]
        exchanges = []
        for question, prompt, said in zip(questions, prompts, self._generate(prompts, features), strict=True):
            reply = self.parts.tokenizer.decode(said)
            if self.seg in said:
                exchanges.append(Exchange(prompt + said, reply))
            else:
                flag = f"the model answered without {SEG}; its attention was read as if it had answered {self.answer!r}"
                exchanges.append(Exchange(self._teach(question), reply, (flag,)))
        return exchanges

    def _generate(
        self, prompts: Sequence[list[int]], features: Float[Tensor, "queries tokens hidden"]
    ) -> list[list[int]]:
        tokenizer, device = self.parts.tokenizer, features.device
        rows = [torch.tensor(expand(ids, features.shape[1])) for ids in prompts]
        # Generation continues at the right end, so that prompts of different length are padded on the left.
        ids = pad_sequence(rows, batch_first=True, padding_side="left").to(device)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left").to(device)
        end = tokenizer.eos_token_id
        greedy = GenerationConfig(
            max_new_tokens=self.max_new_tokens, do_sample=False, eos_token_id=end, pad_token_id=end, bos_token_id=None
        )
        said = self.parts.mllm.generate(
            inputs_embeds=embed(self.parts.mllm, ids, features), attention_mask=mask, generation_config=greedy
        ).tolist()
        return [reply[: reply.index(end)] if end in reply else reply for reply in said]

    def _read(
        self,
        queries: Sequence[Query],
        exchanges: Sequence[Exchange],
        features: Float[Tensor, "queries tokens hidden"],
    ) -> list[Grounding]:
        """One pass over questions and answers: the hidden states that predict `[SEG]`, and the attention rows."""
        sequences = [expand(exchange.ids, features.shape[1]) for exchange in exchanges]
        extra = features.shape[1] - self.grid**2
        layouts = [TokenLayout.of(ids, (self.grid, self.grid), self.seg, extra) for ids in sequences]
        # Padding on the right comes after everything that is read: causality hides it, without a mask.
        ids = pad_sequence([torch.tensor(row) for row in sequences], batch_first=True).to(features.device)
        most = max(len(layout.segs) for layout in layouts)
        rows = [layout.rows(self.row) for layout in layouts]
        wanted = torch.tensor([[*row, *[row[-1]] * (most - len(row))] for row in rows])
        with probe(self.layers, wanted) as found:
            hidden = last_hidden(self.parts.mllm, embed(self.parts.mllm, ids, features))
        groundings = []
        for index, (query, exchange, layout) in enumerate(zip(queries, exchanges, layouts, strict=True)):
            token = self.parts.connector(hidden[index, list(layout.predictors)])[:, None].float()
            weights = [found.layers[layer][index, : len(layout.segs)] for layer in self.layers]
            cells = cell_map(query.size, self.side, self.grid, self.geometry)
            attention = prompt_attention(weights, layout)
            groundings.append(Grounding(token, attention, cells, exchange.reply, exchange.flags))
        return groundings


def check_words(
    tokenizer: PreTrainedTokenizerBase, config: LlavaConfig, conversation: Conversation, answer: str, source: str
) -> None:
    """An error unless a model of this config can be spoken to in this conversation; `source` names the tokenizer."""
    check_vocabulary(tokenizer, config, (SEG,), source)
    if tokenizer.eos_token_id is None:
        raise CheckpointError(f"{source} has no end of sentence: set its eos_token, </s> in Llama's")
    if SEG not in answer:
        raise ConfigError(f"the answer {answer!r} holds no {SEG}: write it where the answer points at the target")
    conversation.check()
    # What the first question would find out.
    conversation.dialogue_ids(tokenizer, "?", answer)
