"""Makes torchvision importable beside a torch that it was not built for.

torchvision's wheels on the public index are CUDA builds. Beside a torch without CUDA their compiled half does not load,
and `import torchvision` then stops at "operator torchvision::nms does not exist", taking segment-anything, torchmetrics
and lightning with it. Declaring the two operators first lets the import pass; with a matching pair nothing is done.
"""

from collections.abc import Iterable
from contextlib import suppress
from importlib.machinery import PathFinder
from importlib.util import find_spec

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    from rea2seg.masks import nms  # only now: this module is imported first of all, and shall be quick

    return nms(boxes, scores.argsort(descending=True, stable=True), iou_threshold)


def _load_compiled_half(folders: Iterable[str]) -> None:
    """What `import torchvision` does first. Tried rather than guessed from versions: loading twice is harmless."""
    library = PathFinder.find_spec("_C", list(folders))
    if library is not None and library.origin is not None:
        with suppress(OSError):
            torch.ops.load_library(library.origin)  # type: ignore[no-untyped-call]


_found = find_spec("torchvision")
if _found is not None:
    _load_compiled_half(_found.submodule_search_locations or ())
    # Operators declared twice abort the import.
    if not hasattr(torch.ops.torchvision, "nms"):
        for name in ("nms", "qnms"):
            _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
            _LIBRARY.impl(name, _nms, "CPU")  # type: ignore[no-untyped-call]
