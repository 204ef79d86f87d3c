"""Makes torchvision importable beside a CPU-only torch.

torchvision's wheels on the public index are CUDA builds. Beside a torch without CUDA their compiled half does not load,
and `import torchvision` then stops at "operator torchvision::nms does not exist", taking segment-anything, torchmetrics
and lightning with it. Declaring the two operators first lets the import pass; with a matching pair nothing is done.
"""

import importlib.util

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    from rea2seg.masks import nms  # only now: this module is imported first of all, and shall be quick

    return nms(boxes, scores.argsort(descending=True, stable=True), iou_threshold)


def _compiled_half_is_missing() -> bool:
    spec = importlib.util.find_spec("torchvision")
    return spec is not None and not torch.cuda.is_available() and torch.version.cuda is None


if _compiled_half_is_missing() and not hasattr(torch.ops.torchvision, "nms"):
    for name in ("nms", "qnms"):
        _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        _LIBRARY.impl(name, _nms, "CPU")  # type: ignore[no-untyped-call]
