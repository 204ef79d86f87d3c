"""The one optimiser of all stages: SOAP, linear warm-up, constant rate, linear decay to zero at the end.

SOAP (Vyas et al. 2024) is Adam in the eigenbasis of Shampoo's preconditioner; docs/training.md compares it with AdamW.
"""

from collections.abc import Iterable
from typing import Any

from pytorch_optimizer import SOAP
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR

LARGEST_PRECONDITIONER = 256
"""Longer sides of a matrix, the inner ones of the MLPs and vocabularies, keep their own basis, as in Adam: their
eigenvectors would cost more than they bring."""


def warmup_hold_decay(step: int, total: int, warmup: int, decay: float) -> float:
    """The factor on the learning rate at a step: 0 → 1 in `warmup` steps, 1, then → 0 over the last share `decay`.

    A constant middle lets a run be prolonged from its last checkpoint without having been planned that long.
    """
    rising = min(1.0, (step + 1) / max(warmup, 1))
    falling = min(1.0, (total - step) / max(decay * total, 1.0))
    return max(min(rising, falling), 0.0)


def soap(
    parameters: Iterable[Parameter], lr: float, total: int, warmup: int, decay: float, weight_decay: float
) -> dict[str, Any]:
    """What `LightningModule.configure_optimizers` returns."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = SOAP(
        trained, lr, betas=(0.95, 0.95), weight_decay=weight_decay, max_precondition_dim=LARGEST_PRECONDITIONER
    )
    schedule = LambdaLR(optimizer, lambda step: warmup_hold_decay(step, total, warmup, decay))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
