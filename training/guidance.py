"""Losses that lead the evaluator of mini, layer by layer, from the asked region to the scores of the masks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from rea2seg.generator.attention import Rows, probe
from training.judgements import JudgementBatch
from training.losses import mass_inside
from training.regions import FINE, tokens_inside

ALIKE = 64
"""Width of the space in which questions and masks are compared."""


class Guidance(nn.Module):
    """How the asked region finds its way into the scores. Not exported; made for packed batches with their truth.

    `look` are the layers (first, last) in which the tokens of a mask attend to the image under it, `point` those in
    which the last token of a question attends to what it asks for. After `match` layers the two are to be alike where
    they are about the same region; after `cover` layers every token of a mask is to know how far the asked region
    covers it, alone and together with the mask. The layers that are left read the scores off.
    """

    def __init__(self, width: int, look: tuple[int, int], point: tuple[int, int], match: int, cover: int) -> None:
        super().__init__()
        self.look, self.point = (range(first, last + 1) for first, last in (look, point))
        self.match, self.cover = match, cover
        self.of_question, self.of_mask = (nn.Linear(width, ALIKE, bias=False) for _ in range(2))
        self.overlap = nn.Linear(width, 2 * FINE * FINE)

    @contextmanager
    def watch(self, batch: JudgementBatch, of_masks: Bool[Tensor, "b length"]) -> Iterator[tuple[Rows, Rows]]:
        """Read the attention of those mask tokens that show something, and of the questions' last tokens."""
        showing = of_masks.masked_scatter(of_masks, batch.under.any(-1))
        with probe(self.look, places(showing)) as looks, probe(self.point, places(batch.asked)) as points:
            yield looks, points

    def losses(
        self,
        batch: JudgementBatch,
        hidden: Sequence[Float[Tensor, "b length d"]],
        watched: tuple[Rows, Rows],
        of_image: Bool[Tensor, " length"],
        of_masks: Bool[Tensor, "b length"],
    ) -> dict[str, Tensor]:
        """The losses that a batch has, from the states after each number of layers and the watched attention."""
        parts: dict[str, Tensor] = {}
        looks, points = watched
        if len(batch.under):
            showing = batch.under.any(-1)
            weights = image_weights(looks, of_masks.masked_scatter(of_masks, showing), of_image)
            parts["looking"] = mass_inside(weights, batch.under[showing])
        if len(batch.inside):
            weights = image_weights(points, batch.asked, of_image)
            parts["pointing"] = mass_inside(weights, batch.inside)
            parts["accuracy/pointing"] = batch.inside.gather(1, weights.argmax(1, keepdim=True)).float().mean()
        if len(batch.judges):
            states, tokens = hidden[self.match][batch.asked].float(), hidden[self.match][of_masks].float()
            parts["matching"] = matching(batch, self.of_question(states), self.of_mask(tokens))
            covered = self.overlap(hidden[self.cover][of_masks].float()).view_as(batch.shares)
            parts["overlap"] = functional.binary_cross_entropy_with_logits(covered, batch.shares)
        return parts


def places(flags: Bool[Tensor, "b length"]) -> Int[Tensor, "b most"]:
    """Where the flags of each row are set, padded with zeros to the most of any row."""
    return pad_sequence([torch.nonzero(row)[:, 0] for row in flags], batch_first=True)


def image_weights(
    found: Rows, flags: Bool[Tensor, "b length"], of_image: Bool[Tensor, " length"]
) -> Float[Tensor, "n tokens"]:
    """What the flagged places attend to in the image, row after row: mean over the heads and the probed layers."""
    counts = flags.sum(1, keepdim=True)
    weights = torch.stack([rows.mean(2) for rows in found.layers.values()]).mean(0)
    return weights[torch.arange(weights.shape[1], device=flags.device) < counts][:, of_image]


def matching(batch: JudgementBatch, states: Float[Tensor, "n c"], tokens: Float[Tensor, "all c"]) -> Float[Tensor, ""]:
    """Contrastive: of all tokens of a question's masks, those that show its region are the likest to it."""
    share = batch.shares[..., FINE * FINE :].mean(-1)
    own = batch.judges.repeat_interleave(share.shape[1]) == torch.arange(len(states), device=share.device)[:, None]
    similarity = functional.normalize(states, dim=-1) @ functional.normalize(tokens, dim=-1).T
    weights = (similarity / 0.1).masked_fill(~own, -torch.inf).softmax(-1)
    return mass_inside(weights, tokens_inside(own * share.flatten()))
