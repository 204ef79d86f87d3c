"""What is learned from the scores of a reply: their digits, and with them the choice among the masks of a group."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from training.judgements import IGNORED, JudgementBatch

PLACES = (1.0, 2.0, 0.25)
"""Weights of a score's digits: the whole, the tenths, and the hundredths, which are mostly noise. Ours."""
IOU_TEMPERATURE = 0.1
"""The difference in IoU that makes one mask of a group e times as good a choice as another. Ours."""


@dataclass(frozen=True, eq=False)
class WrittenScores:
    """The n scores of a batch, in the order of its masks, and the sizes of their groups.

    A score has three digits. `logits` foretell them; `right` and `read`, from 0 to 9, are those that should be told and
    those that stand in the reply. `digits` are the ids of the tokens 0 to 9.
    """

    logits: Float[Tensor, "n 3 vocab"]
    right: Int[Tensor, "n 3"]
    read: Int[Tensor, "n 3"]
    digits: Sequence[int]
    sizes: Sequence[int]

    @classmethod
    def of(cls, batch: JudgementBatch, logits: Float[Tensor, "all vocab"], digits: Sequence[int]) -> "WrittenScores":
        """Those of a batch, from the logits at the places of its `digits`, row after row."""
        places = batch.digits != IGNORED
        value = torch.full((max(digits) + 1,), IGNORED, device=logits.device)
        value[list(digits)] = torch.arange(len(digits), device=logits.device)
        read = batch.packed.ids.roll(-1, 1)[places]  # a place foretells what stands after it
        sizes = torch.bincount(batch.judges)
        return cls(
            logits.view(-1, 3, logits.shape[-1]),
            value[batch.digits[places]].view(-1, 3),
            value[read].view(-1, 3),
            digits,
            sizes[sizes > 0].tolist(),
        )

    def losses(self) -> dict[str, Tensor]:
        """`digits`, a weighted cross-entropy; `choice`, by how much the choice among the masks of a group differs from
        the best one (KL divergence in nats); for the log the mean IoU of the chosen and of the best mask."""
        ids = torch.tensor(self.digits, device=self.logits.device)[self.right]
        surprise = functional.cross_entropy(self.logits.flatten(0, 1), ids.flatten(), reduction="none").view_as(ids)
        weights = self._weights()
        told, true = self._groups(self.expected()), self._groups(self.truth())
        best, likely = (true / IOU_TEMPERATURE).softmax(-1), (told / IOU_TEMPERATURE).log_softmax(-1)
        apart = functional.kl_div(likely.clamp(min=-1e4), best, reduction="none").sum(-1)
        return {
            "digits": (surprise * weights).sum() / weights.sum(),
            "choice": apart.mean(),
            "accuracy/digits": (self.logits.argmax(-1) == ids).float().mean(),
            "iou/chosen": true.gather(1, told.argmax(1, keepdim=True)).mean(),
            "iou/best": true.amax(1).mean(),
        }

    def expected(self) -> Float[Tensor, " n"]:
        """The expectation of every score over its digits, as `rea2seg.evaluators.replies` reads it."""
        among = self.logits[..., list(self.digits)]
        one = among[:, 0, :2].softmax(-1)[:, 1]
        steps = torch.arange(10, device=among.device, dtype=among.dtype)
        tenths, hundredths = (among[:, 1:].softmax(-1) @ steps).unbind(1)
        return one + (1 - one) * (tenths / 10 + hundredths / 100)

    def truth(self) -> Float[Tensor, " n"]:
        """The right scores, from 0 to 1; the decimals of a 1.00 may be nines (`JudgementDrawer.label`)."""
        return (self.right / torch.tensor([1, 10, 100], device=self.right.device)).sum(-1).clamp(max=1)

    def _weights(self) -> Float[Tensor, "n 3"]:
        """`PLACES`, but nothing for digits that are right of another number than the one that is read."""
        zero_for_one = (self.read[:, 0] == 1) & (self.right[:, 0] == 0)  # there the grammar asks for no decimals
        other_tenths = self.read[:, 1] != self.right[:, 1]
        counted: Bool[Tensor, "n 3"] = ~torch.stack(
            [torch.zeros_like(zero_for_one), zero_for_one, zero_for_one | other_tenths], dim=1
        )
        return counted * torch.tensor(PLACES, device=counted.device)

    def _groups(self, scores: Float[Tensor, " n"]) -> Float[Tensor, "groups most"]:
        """One row for each group; -inf, which a softmax never chooses, where it has fewer masks than others."""
        return pad_sequence(list(torch.split(scores, list(self.sizes))), batch_first=True, padding_value=-torch.inf)
