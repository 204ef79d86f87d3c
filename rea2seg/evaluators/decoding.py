"""Replies written side by side on top of one shared prefix: free text if wanted, then scores under the grammar."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from rea2seg.evaluators.replies import Choice, ScoreGrammar, choose


@dataclass
class Reply:
    """A reply being written: the ids the model has yet to read (`pending`) and what has been decided so far."""

    masks: int
    pending: list[int]
    thought: list[int] = field(default_factory=list)
    written: list[int] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)

    def take(self) -> list[int]:
        """The pending ids, which are then no longer pending."""
        taken, self.pending = self.pending, []
        return taken


class Memory:
    """What the model has read of a batch of replies, one row each. Rows may differ in length, and wait for each other.

    `prefix` is the cache of what they share, taken over and repeated; `features` fill the first feed's images.
    """

    def __init__(self, model: Any, prefix: DynamicCache, rows: int, features: Float[Tensor, "n tokens c"]) -> None:
        self.model, self.cache = model, prefix
        self.images = {"image": BaseModelOutputWithPooling(pooler_output=features)}
        self.seen = torch.ones(rows, prefix.get_seq_length(), dtype=torch.bool, device=features.device)
        self.cache.batch_repeat_interleave(rows)

    def feed(self, ids: Sequence[Sequence[int]]) -> Float[Tensor, "rows vocab"]:
        """Let the model read more ids of each row: the logits after a row's last id, meaningless for a row given none.

        Short rows are padded on the left with columns that no real id attends to; positions count real ids only.
        """
        width = max(map(len, ids))
        padded = [[-1] * (width - len(given)) + list(given) for given in ids]
        tokens = torch.tensor(padded, device=self.seen.device)
        real = tokens >= 0
        positions = (self.seen.sum(1, keepdim=True) + real.cumsum(1) - 1).clamp(min=0)
        self.seen = torch.cat([self.seen, real], dim=1)
        images, self.images = self.images, {}
        logits: Tensor = self.model(
            input_ids=tokens.clamp(min=0),
            attention_mask=self.seen.long(),
            position_ids=positions,
            cache=self.cache,
            mm_encoder_outputs=images,
            logits_to_keep=1,
        ).logits
        # On the CPU, where the choices are made: one transfer a step instead of several a row.
        return logits[:, -1].float().cpu()


def think(memory: Memory, replies: Sequence[Reply], grammar: ScoreGrammar, stops: Collection[int], budget: int) -> None:
    """Free text, greedily, until a reply opens its scores, ends its turn or has spent its budget of tokens.

    Afterwards every reply has the rest of its opening pending, so that all meet the grammar at the same step.
    """
    opening = list(grammar.opening)
    thinking = dict(enumerate(replies))
    for _ in range(budget):
        logits = memory.feed([reply.take() if row in thinking else [] for row, reply in enumerate(replies)])
        for row, reply in list(thinking.items()):
            token = int(logits[row].argmax())
            if token in stops or not logits[row].isfinite().all():
                reply.pending += [*grammar.newline, *opening]
                del thinking[row]
                continue
            reply.thought.append(token)
            reply.pending.append(token)
            if reply.thought[-len(opening) :] == opening:
                del reply.thought[-len(opening) :], thinking[row]
        if not thinking:
            return
    for reply in thinking.values():
        reply.pending += [*grammar.newline, *opening]


def write_scores(memory: Memory, replies: Sequence[Reply], grammar: ScoreGrammar) -> None:
    """The numbers of all replies; where the grammar leaves no choice the ids are written without asking the model."""
    unfinished = dict(enumerate(replies))
    while unfinished:
        logits = memory.feed([reply.take() for reply in replies])
        for row, reply in list(unfinished.items()):
            allowed = grammar.allowed(reply.written, reply.masks)
            reply.choices.append(choose(logits[row], allowed))
            reply.pending.append(allowed[reply.choices[-1].chosen])
            forced = grammar.forced([*reply.written, *reply.pending], reply.masks)
            reply.pending += forced
            reply.written += reply.pending
            if not grammar.allowed(reply.written, reply.masks):
                reply.pending.clear()
                del unfinished[row]
