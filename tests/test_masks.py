import json

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from rea2seg.errors import InputError
from rea2seg.masks import (
    bbox_xywh,
    decode_rle,
    encode_rle,
    inclusive_boxes,
    iou,
    nms,
    stability,
)


def drawn(*rows: str) -> torch.Tensor:
    """A mask as it looks: '#' is inside."""
    return torch.tensor([[char == "#" for char in row] for row in rows])


L = drawn(
    "......",
    ".##...",
    ".####.",
    "......",
)
EMPTY = torch.zeros(4, 6, dtype=torch.bool)


@pytest.mark.parametrize("fill", [0.0, 0.001, 0.3, 1.0])
def test_run_lengths_survive_json_and_agree_with_pycocotools(fill):
    mask = torch.rand(211, 130, generator=torch.Generator().manual_seed(1)) < fill
    rle = json.loads(json.dumps(encode_rle(mask)))
    assert rle["size"] == [211, 130]
    assert decode_rle(rle).equal(mask)
    assert np.array_equal(coco.decode(rle), mask.numpy())
    assert coco.area(rle) == mask.sum()


def test_uncompressed_run_lengths_go_down_the_columns():
    assert decode_rle({"size": [2, 3], "counts": [1, 2, 3]}).equal(drawn(".#.", "#.."))


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [4, 6]},
        {"size": [4], "counts": "0"},
        {"size": [4, 6], "counts": ""},
        {"size": [4, 6], "counts": "54"},
        {"size": [4, 6], "counts": "zzz"},
        {"size": [4, 6], "counts": "é"},
        {"size": [4, 6], "counts": "o" * 40 + "0"},
        {"size": [4, 6], "counts": [30]},
        {"size": [4, 6], "counts": [-1, 25]},
        {"size": [4, 6], "counts": [[24]]},
        {"size": [4, 6], "counts": 24},
        {"size": [0, 6], "counts": []},
    ],
)
def test_run_lengths_that_do_not_fit_are_refused_in_one_line(rle):
    with pytest.raises(InputError) as error:
        decode_rle(rle)
    assert "\n" not in str(error.value)


def test_boxes_in_cocos_and_in_sams_convention():
    assert bbox_xywh(L) == (1, 1, 4, 2) == tuple(coco.toBbox(encode_rle(L)))
    assert bbox_xywh(EMPTY) == (0, 0, 0, 0)
    assert inclusive_boxes(torch.stack([L, EMPTY])).tolist() == [[1, 1, 4, 2], [0, 0, 0, 0]]


def test_overlap_is_counted_in_whole_pixels():
    left, right = drawn("####.."), drawn("..####")
    assert iou(left, right) == 1 / 3
    assert iou(left & ~left, right & ~right) == 1.0


def test_stability_is_the_share_of_the_larger_mask_that_the_smaller_keeps():
    logits = torch.tensor([[[3.0, 2.0, 0.5, -0.5, -3.0]], [[-2.0, -2.0, -2.0, -2.0, -2.0]]])
    steady, empty = stability(logits, offset=1.0)
    assert steady == 0.5
    assert empty.isnan()
    assert not empty >= 0.0


def test_suppression_follows_the_given_order():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 10, 8]])
    assert nms(boxes, torch.tensor([1, 2, 0, 3]), 0.7).tolist() == [1, 2]
    assert nms(boxes, torch.tensor([3, 0, 1, 2]), 0.85).tolist() == [3, 0, 2]
    assert nms(boxes[:0], torch.arange(0), 0.7).tolist() == []


def test_suppression_is_that_of_a_plain_loop_over_pairs():
    random = torch.Generator().manual_seed(0)
    corner, order = 20 * torch.rand(60, 2, generator=random), torch.randperm(60, generator=random)
    boxes = torch.cat([corner, corner + 20 * torch.rand(60, 2, generator=random)], dim=1)

    def overlap(one: list[float], other: list[float]) -> float:
        sides = [min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1)]
        shared = sides[0] * sides[1] if min(sides) > 0 else 0.0
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
        return shared / (sum(areas) - shared)

    plain, kept = boxes.tolist(), []
    for place in order.tolist():
        if all(overlap(plain[place], plain[better]) <= 0.3 for better in kept):
            kept.append(place)
    assert 5 < len(kept) < 50
    assert nms(boxes, order, 0.3).tolist() == kept


def test_a_box_goes_only_above_the_threshold_and_boxes_without_area_stay():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert nms(boxes, torch.arange(4), 0.5).tolist() == [0, 1, 2, 3]
    assert nms(boxes, torch.arange(4), 0.49).tolist() == [0, 2, 3]
