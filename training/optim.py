"""The one optimiser of all stages: SOAP, linear warm-up, constant rate, linear decay to zero at the end.

SOAP (Vyas et al. 2024) is Adam in the eigenbasis of Shampoo's preconditioner; docs/legs.md compares it with AdamW.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pytorch_optimizer import SOAP
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR

from rea2seg.errors import require_positive

LARGEST_PRECONDITIONER = 256
"""Ours. Longer sides of a matrix, the inner ones of the MLPs and vocabularies, keep their own basis, as in Adam: their
eigenvectors would cost more than they bring."""


@dataclass(frozen=True)
class Schedule:
    """The highest rate, the steps that it rises, the share of a run in which it falls, the weight decay, and over how
    many steps the weights are averaged at most (`training.averaging`; 1: not at all). Ours."""

    lr: float = 1e-3
    warmup: int = 200
    decay: float = 0.3
    wd: float = 0.05
    average: int = 100

    def __post_init__(self) -> None:
        require_positive(average=self.average)

    def factor(self, step: int, total: int) -> float:
        """The factor on the rate at a step: 0 → 1 while warming up, 1, then → 0.

        A run can be prolonged from a checkpoint of its constant middle without having been planned that long.
        """
        rising = min(1.0, (step + 1) / max(self.warmup, 1))
        falling = min(1.0, (total - step) / max(self.decay * total, 1.0))
        return max(min(rising, falling), 0.0)


def soap(parameters: Iterable[Parameter], schedule: Schedule, total: int) -> dict[str, Any]:
    """What `LightningModule.configure_optimizers` returns for a run of `total` steps."""
    optimizer = SOAP(
        [parameter for parameter in parameters if parameter.requires_grad],
        schedule.lr,
        weight_decay=schedule.wd,
        max_precondition_dim=LARGEST_PRECONDITIONER,
    )
    rate = LambdaLR(optimizer, lambda step: schedule.factor(step, total))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}
