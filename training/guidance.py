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

from rea2seg.errors import ConfigError
from rea2seg.generator.attention import Rows, probe
from training.judgements import IGNORED, JudgementBatch
from training.losses import contrast, contrastive, cosines, directions, hits, mass_in_each, mass_inside
from training.regions import FINE, tokens_inside

MATCH_WIDTH = 64
"""Width of the space in which questions are compared with images and masks. Ours."""


@dataclass(frozen=True)
class GuidedLayers:
    """Where each step of the way is taught; layers count from 0, pairs are the first and the last. Ours.

    In `look_layers` the tokens of a mask attend to the image under it; in `mention_layers` the words for what must be
    looked up first attend to it, in `point_layers` the end of a question to what it asks for. After `match_after`
    layers the end of a question is like the image tokens inside that region and like the mask tokens that show it;
    after `cover_after` layers every token of a mask knows how far the asked region covers it, alone and together with
    the mask. In `read_layers` the token before a digit attends to the mask that the digit is about, and to the word for
    its IoU.
    """

    look_layers: tuple[int, int] = (1, 2)
    mention_layers: tuple[int, int] = (1, 2)
    point_layers: tuple[int, int] = (3, 4)
    match_after: int = 6
    cover_after: int = 7
    read_layers: tuple[int, int] = (7, 8)

    def check(self, depth: int) -> None:
        """Raises ConfigError where a model of that many layers has not all of these."""
        last = max(*self.look_layers, *self.mention_layers, *self.point_layers, *self.read_layers)
        if last >= depth or max(self.match_after, self.cover_after) > depth:
            raise ConfigError(f"the guided layers {self} are not all among the model's {depth}")


@dataclass(frozen=True, eq=False)
class FlaggedRows:
    """What a probe finds at flagged places."""

    found: Rows
    flags: Bool[Tensor, "b length"]

    def weights(self) -> Float[Tensor, "n length"]:
        """The attention of the places, row after row: mean over the heads and the probed layers."""
        mean = self.found.mean()
        return mean[torch.arange(mean.shape[1], device=mean.device) < self.flags.sum(1, keepdim=True)]


class Watched(NamedTuple):
    """The attention of mask tokens that show something, of the ends of mentions and of questions, and of the tokens
    before digits."""

    looks: FlaggedRows
    mentions: FlaggedRows
    points: FlaggedRows
    reads: FlaggedRows


class Guidance(nn.Module):
    """The eight losses and the heads that they need. Not exported; made for packed batches with their truth."""

    def __init__(self, width: int, depth: int, layers: GuidedLayers) -> None:
        super().__init__()
        layers.check(depth)
        self.layers = layers
        self.of_question, self.of_region = (nn.Linear(width, MATCH_WIDTH, bias=False) for _ in range(2))
        self.overlap = nn.Linear(width, 2 * FINE * FINE)

    @contextmanager
    def watch(self, batch: JudgementBatch, of_masks: Bool[Tensor, "b length"]) -> Iterator[Watched]:
        """Read the attention that is guided from a language model that runs inside."""
        layers = self.layers
        spans = layers.look_layers, layers.mention_layers, layers.point_layers, layers.read_layers
        showing = of_masks.masked_scatter(of_masks, batch.under.any(-1))
        flags = showing, batch.mention_ends, batch.question_ends, batch.digits != IGNORED
        with ExitStack() as stack:
            probes = [
                stack.enter_context(probe(range(first, last + 1), places(where)))
                for (first, last), where in zip(spans, flags, strict=True)
            ]
            yield Watched(*map(FlaggedRows, probes, flags))

    def losses(
        self,
        batch: JudgementBatch,
        hidden: Sequence[Float[Tensor, "b length d"]],
        watched: Watched,
        of_image: Bool[Tensor, " length"],
        of_masks: Bool[Tensor, "b length"],
    ) -> dict[str, Tensor]:
        """The losses that a batch has. `hidden[k]` are the states after k layers; all rows have the same `of_image`."""
        parts: dict[str, Tensor] = {}
        shown = batch.under[batch.under.any(-1)]
        if len(shown):
            parts["looking"] = mass_inside(watched.looks.weights()[:, of_image], shown)
        if not len(batch.inside):
            return parts
        parts["mention"] = mass_inside(watched.mentions.weights()[:, of_image], batch.mentioned)
        weights = watched.points.weights()[:, of_image]
        parts["attention"] = mass_in_each(weights, batch.members)
        parts["accuracy/attention"] = hits(weights, batch.inside)
        after = hidden[self.layers.match_after]
        states, rows = self.of_question(after[batch.question_ends]), torch.nonzero(batch.question_ends)[:, 0]
        similarity = cosines(states, self.of_region(after[:, of_image])[rows])
        parts["pointing"] = mass_in_each(contrast(similarity), batch.members)
        parts["accuracy/pointing"] = hits(similarity, batch.inside)
        if len(batch.judges):
            parts["matching"] = matching(batch, states, self.of_region(after[of_masks]))
            covered = self.overlap(hidden[self.layers.cover_after][of_masks]).float().view_as(batch.shares)
            parts["overlap"] = functional.binary_cross_entropy_with_logits(covered, batch.shares)
            parts["reading"] = reading(watched.reads, of_masks, len(batch.judges))
        if batch.verdicts.any():
            parts["quoting"] = reading(watched.reads, batch.verdicts, len(batch.judges))
        return parts


def places(flags: Bool[Tensor, "b length"]) -> Int[Tensor, "b most"]:
    """Where the flags of each row are set, padded with zeros to the most of any row."""
    return pad_sequence([torch.nonzero(row)[:, 0] for row in flags], batch_first=True)


def reading(reads: FlaggedRows, about: Bool[Tensor, "b length"], count: int) -> Float[Tensor, ""]:
    """-log of the share, of the attention to all tokens about masks, that the tokens before digits put on their mask's.

    The k-th of `count` scores of a batch is that of the k-th mask; all have equally many digits and tokens.
    """
    masks, tokens = torch.arange(count, device=about.device), int(about.sum()) // count
    number = torch.full(about.shape, -1, device=about.device)
    number = number.masked_scatter(about, masks.repeat_interleave(tokens))
    rows = torch.nonzero(reads.flags)[:, 0]
    own = masks.repeat_interleave(len(rows) // count)
    return mass_inside(reads.weights() * about[rows], number[rows] == own[:, None])


def matching(batch: JudgementBatch, states: Float[Tensor, "n c"], tokens: Float[Tensor, "all c"]) -> Float[Tensor, ""]:
    """Contrastive: of all tokens of a question's masks, those that show its region are the most similar to its state.

    A token shows the region as far as mask and region together cover it.
    """
    share = batch.shares[..., FINE * FINE :].mean(-1)
    own = batch.judges.repeat_interleave(share.shape[1]) == torch.arange(len(states), device=share.device)[:, None]
    with torch.autocast(states.device.type, enabled=False):
        similarity = directions(states) @ directions(tokens).T
    # Not -inf: a question without masks has a row in which nothing takes part.
    return contrastive(similarity.masked_fill(~own, -1e4), tokens_inside(own * share.flatten()))
