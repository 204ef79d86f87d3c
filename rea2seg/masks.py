"""Functions on masks and their logits: run lengths, boxes, overlap, stability, non-maximum suppression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco
from torch import Tensor

from rea2seg.errors import InputError


class Rle(TypedDict):
    """COCO's run-length encoding, its counts as text, so that it fits in JSON. `size` is [height, width]."""

    size: list[int]
    counts: str


def encode_rle(mask: Bool[Tensor, "h w"]) -> Rle:
    """The mask in COCO's compressed run-length encoding."""
    packed = coco.encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8)))
    return Rle(size=[int(length) for length in packed["size"]], counts=packed["counts"].decode("ascii"))


def decode_rle(rle: Mapping[str, Any]) -> Bool[Tensor, "h w"]:
    """The mask of a COCO run-length encoding, compressed (text or bytes) or not (a list of runs).

    Every run is checked: pycocotools leaves memory as it finds it where the runs are too short.
    """
    try:
        height, width = (int(length) for length in rle["size"])
        counts = rle["counts"]
        runs = _runs(counts) if isinstance(counts, str | bytes) else np.array(counts, np.int64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"a mask is not a COCO run-length encoding of size and counts: {error}") from error
    if runs.ndim != 1 or (runs < 0).any() or min(height, width) < 1 or runs.sum() != height * width:
        raise InputError(f"a mask's run lengths do not add up to its size of {height} x {width} pixels")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return torch.from_numpy(np.ascontiguousarray(flat.reshape(width, height).T))


def _runs(counts: str | bytes) -> Int[np.ndarray, " runs"]:
    """Run lengths from COCO's text: little-endian groups of 5 bits, signed, differences to the run before the last."""
    text = counts.encode("ascii") if isinstance(counts, str) else counts
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((codes & 32) == 0)
    if not len(ends) or ends[-1] != len(codes) - 1 or codes.min() < 0 or codes.max() > 63:
        raise ValueError("its counts are cut short or hold foreign characters")
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 6:
        raise ValueError("one of its counts is too large")
    runs: Int[np.ndarray, " runs"] = np.add.reduceat((codes & 31) << (5 * place), starts)
    runs -= ((codes[ends] & 16) > 0) << (5 * (place[ends] + 1))
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs


def bbox_xywh(mask: Bool[Tensor, "h w"]) -> tuple[int, int, int, int]:
    """COCO's box (left, top, width, height) around the mask; all 0 if it is empty."""
    rows, cols = mask.any(1).nonzero(), mask.any(0).nonzero()
    if not len(rows):
        return 0, 0, 0, 0
    top, left = int(rows[0]), int(cols[0])
    return left, top, int(cols[-1]) + 1 - left, int(rows[-1]) + 1 - top


def inclusive_boxes(masks: Bool[Tensor, "n h w"]) -> Float[Tensor, "n 4"]:
    """SAM's boxes: indices of the first and last column and row, (left, top, right, bottom); 0 for empty masks.

    A mask one pixel wide thus has width 0, unlike in COCO; SAM's mask generator suppresses duplicates by these boxes.
    """
    cols, rows = masks.any(1).float(), masks.any(2).float()
    # argmax gives the first of equal values.
    left, top = cols.argmax(1), rows.argmax(1)
    right = cols.shape[1] - 1 - cols.flip(1).argmax(1)
    bottom = rows.shape[1] - 1 - rows.flip(1).argmax(1)
    return torch.stack([left, top, right, bottom], dim=1).float() * cols.any(1, keepdim=True)


def iou(a: Bool[Tensor, "h w"], b: Bool[Tensor, "h w"]) -> float:
    """Intersection over union in [0, 1]; 1 for two empty masks. For benchmarks' conventions see `rea2seg.metrics`."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def stability(logits: Float[Tensor, "*n h w"], offset: float) -> Float[Tensor, "*n"]:
    """SAM's stability score: IoU of the masks at logit thresholds `offset` above and below 0.

    NaN where both are empty; NaN fails any comparison, so such masks never pass a filter.
    """
    return (logits > offset).sum((-2, -1)) / (logits > -offset).sum((-2, -1))


def nms(boxes: Float[Tensor, "n 4"], order: Int[Tensor, " n"], overlap: float) -> Int[Tensor, " kept"]:
    """Greedy non-maximum suppression in the given order: the indices kept, best first.

    A box goes if its IoU with a better one that stayed is above `overlap`. Boxes without area neither go nor displace.
    """
    sizes = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[Tensor] = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        corner_min = torch.maximum(boxes[best, :2], boxes[order, :2])
        corner_max = torch.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = (corner_max - corner_min).clamp(min=0).prod(1)
        # 0 / 0 is NaN, which is not above the threshold.
        order = order[~(shared / (sizes[best] + sizes[order] - shared) > overlap)]
    return torch.stack(kept) if kept else order
