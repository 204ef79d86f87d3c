"""Losses that lead the evaluator of mini, layer by layer, from the asked region to the scores of the masks."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from rea2seg.generator.attention import Rows, probe
from training.judgements import IGNORED, JudgementBatch
from training.losses import mass_inside
from training.regions import FINE, tokens_inside

ALIKE = 64
"""Width of the space in which questions and masks are compared."""


@dataclass(frozen=True, eq=False)
class Attention:
    """What a probe finds at flagged places."""

    found: Rows
    flags: Bool[Tensor, "b length"]

    def weights(self) -> Float[Tensor, "n length"]:
        """The attention of the places, row after row: mean over the heads and the probed layers."""
        mean = torch.stack([rows.mean(2) for rows in self.found.layers.values()]).mean(0)
        return mean[torch.arange(mean.shape[1], device=mean.device) < self.flags.sum(1, keepdim=True)]


class Watched(NamedTuple):
    """The attention of masks, of questions and of digits."""

    looks: Attention
    points: Attention
    reads: Attention


class Guidance(nn.Module):
    """How the asked region finds its way into the scores. Not exported; made for packed batches with their truth.

    `look` are the layers (first, last) in which the tokens of a mask attend to the image under it, `point` those in
    which the last token of a question attends to what it asks for. After `match` layers the two are to be alike where
    they are about the same region; after `cover` layers every token of a mask is to know how far the asked region
    covers it, alone and together with the mask. In the layers `read`, which are left, every digit attends to its mask.
    """

    def __init__(
        self,
        width: int,
        look: tuple[int, int],
        point: tuple[int, int],
        match: int,
        cover: int,
        read: tuple[int, int],
    ) -> None:
        super().__init__()
        self.look, self.point, self.read = (range(first, last + 1) for first, last in (look, point, read))
        self.match, self.cover = match, cover
        self.of_question, self.of_mask = (nn.Linear(width, ALIKE, bias=False) for _ in range(2))
        self.overlap = nn.Linear(width, 2 * FINE * FINE)

    @contextmanager
    def watch(self, batch: JudgementBatch, of_masks: Bool[Tensor, "b length"]) -> Iterator[Watched]:
        """Read the attention of those mask tokens that show something, of the questions' last tokens, and of the
        tokens before digits."""
        flags = of_masks.masked_scatter(of_masks, batch.under.any(-1)), batch.asked, batch.digits != IGNORED
        with ExitStack() as stack:
            layers = zip((self.look, self.point, self.read), flags, strict=True)
            probes = [stack.enter_context(probe(span, places(where))) for span, where in layers]
            yield Watched(*map(Attention, probes, flags))

    def losses(
        self,
        batch: JudgementBatch,
        hidden: Sequence[Float[Tensor, "b length d"]],
        watched: Watched,
        of_image: Bool[Tensor, " length"],
        of_masks: Bool[Tensor, "b length"],
    ) -> dict[str, Tensor]:
        """The losses that a batch has, from the states after each number of layers and the watched attention."""
        parts: dict[str, Tensor] = {}
        if len(batch.under):
            weights = watched.looks.weights()[:, of_image]
            parts["looking"] = mass_inside(weights, batch.under[batch.under.any(-1)])
        if len(batch.inside):
            weights = watched.points.weights()[:, of_image]
            parts["pointing"] = mass_inside(weights, batch.inside)
            parts["accuracy/pointing"] = batch.inside.gather(1, weights.argmax(1, keepdim=True)).float().mean()
        if len(batch.judges):
            states, tokens = hidden[self.match][batch.asked].float(), hidden[self.match][of_masks].float()
            parts["matching"] = matching(batch, self.of_question(states), self.of_mask(tokens))
            covered = self.overlap(hidden[self.cover][of_masks].float()).view_as(batch.shares)
            parts["overlap"] = functional.binary_cross_entropy_with_logits(covered, batch.shares)
            parts["reading"] = reading(watched.reads, of_masks, len(batch.judges))
        return parts


def places(flags: Bool[Tensor, "b length"]) -> Int[Tensor, "b most"]:
    """Where the flags of each row are set, padded with zeros to the most of any row."""
    return pad_sequence([torch.nonzero(row)[:, 0] for row in flags], batch_first=True)


def reading(reads: Attention, of_masks: Bool[Tensor, "b length"], count: int) -> Float[Tensor, ""]:
    """Of all tokens of masks, the digits of a number attend to those of its own, the numbers following the masks."""
    number = of_masks.flatten().cumsum(0).sub(1).div(int(of_masks.sum()) // count, rounding_mode="floor")
    number = number.masked_fill(~of_masks.flatten(), -1).view_as(of_masks)
    rows = torch.nonzero(reads.flags)[:, 0]
    own = torch.arange(count, device=rows.device).repeat_interleave(len(rows) // count)
    return mass_inside(reads.weights() * of_masks[rows], number[rows] == own[:, None])


def matching(batch: JudgementBatch, states: Float[Tensor, "n c"], tokens: Float[Tensor, "all c"]) -> Float[Tensor, ""]:
    """Contrastive: of all tokens of a question's masks, those that show its region are the likest to it."""
    share = batch.shares[..., FINE * FINE :].mean(-1)
    own = batch.judges.repeat_interleave(share.shape[1]) == torch.arange(len(states), device=share.device)[:, None]
    similarity = functional.normalize(states, dim=-1) @ functional.normalize(tokens, dim=-1).T
    weights = (similarity / 0.1).masked_fill(~own, -torch.inf).softmax(-1)
    return mass_inside(weights, tokens_inside(own * share.flatten()))
