"""gIoU and cIoU as a metric of torchmetrics, for training loops.

It has a module of its own because torchmetrics brings transformers and torchvision along, which takes seconds.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float64
from torch import Tensor
from torchmetrics import Metric

from rea2seg.metrics import iou, overlaps, preset


class SegmentationIoU(Metric):
    """gIoU and cIoU over batches of masks and over processes: integer sums, and one sum of IoUs in double precision."""

    full_state_update = False
    intersection: Tensor
    union: Tensor
    iou_sum: Tensor
    samples: Tensor

    def __init__(self, preset_name: str = "lisa", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.convention = preset(preset_name)
        # Explicit types: the default float32 stops counting pixels one by one at 2**24, a 4096 x 4096 image.
        for name in ("intersection", "union", "samples"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("iou_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        masks: Bool[Tensor, "b h w"],
        truths: Bool[Tensor, "b h w"],
        ignores: Bool[Tensor, "b h w"] | None = None,
    ) -> None:
        """Adds a batch: one predicted mask for each true one."""
        for i in range(len(masks)):
            ignore = None if ignores is None else ignores[i]
            (found,) = overlaps(masks[i : i + 1], truths[i], ignore, self.convention)
            self.intersection += found.intersection
            self.union += found.union
            self.iou_sum += iou(found, self.convention)
            self.samples += 1

    def compute(self) -> dict[str, Float64[Tensor, ""]]:
        """`gIoU` and `cIoU` of everything added so far; zeros before the first batch."""
        return {
            "gIoU": self.iou_sum / self.samples.clamp(min=1),
            "cIoU": self.intersection.double() / self.union.clamp(min=1),
        }
