import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from rea2seg.cells import cell_means, cell_pixels, cells_on_image
from rea2seg.errors import ConfigError
from rea2seg.generator.seeds import SeedSettings, descending, pick_seeds, share_points
from rea2seg.geometry import CellMap

SIZES = [(90, 200), (201, 97), (120, 120), (37, 250)]


def coordinates(size: tuple[int, int]) -> np.ndarray:
    """A picture whose red is x and whose green is y."""
    picture = np.zeros((*size, 3), np.uint8)
    picture[..., 0], picture[..., 1] = np.arange(size[1])[None], np.arange(size[0])[:, None]
    return picture


def patch_centres(seen: np.ndarray, grid: int) -> torch.Tensor:
    """The mean pixel centre (x, y) in each patch of what a vision tower sees."""
    side = seen.shape[0] // grid
    means = seen[..., :2].astype(float).reshape(grid, side, grid, side, 2).mean((1, 3))
    return torch.from_numpy(means.reshape(-1, 2)) + 0.5


@pytest.mark.parametrize("size", SIZES)
def test_cells_of_a_centre_crop_are_where_the_clip_processor_looks(size):
    processor = CLIPImageProcessorPil(do_rescale=False, do_normalize=False)
    seen = processor(Image.fromarray(coordinates(size)))["pixel_values"][0].transpose(1, 2, 0)
    boxes = CellMap.cropped(size, 16, 224).boxes()
    error = (boxes[:, :2] + boxes[:, 2:]) / 2 - patch_centres(seen, 16)
    assert error.abs().max() < 0.6


@pytest.mark.parametrize("size", SIZES)
def test_cells_of_a_stretch_cover_the_image(size):
    seen = Image.fromarray(coordinates(size)).resize((224, 224), Image.Resampling.BILINEAR)
    boxes = CellMap.stretched(size, (16, 16)).boxes()
    error = (boxes[:, :2] + boxes[:, 2:]) / 2 - patch_centres(np.array(seen), 16)
    assert error.abs().max() < 0.6
    assert boxes[-1, 2:].tolist() == pytest.approx([size[1], size[0]])


@pytest.mark.parametrize("size", SIZES)
def test_cells_of_a_padded_square_lie_on_the_image_or_beside_it(size):
    height, width = size
    square = np.full((max(size), max(size), 3), 255, np.uint8)
    top, left = (max(size) - height) // 2, (max(size) - width) // 2
    square[top : top + height, left : left + width] = coordinates(size)
    seen = np.array(Image.fromarray(square).resize((224, 224), Image.Resampling.BILINEAR))
    boxes = CellMap.padded(size, 16).boxes()
    inside = ((boxes[:, :2] > 1) & (boxes[:, 2:] < torch.tensor([width, height]) - 1)).all(1)
    error = ((boxes[:, :2] + boxes[:, 2:]) / 2 - patch_centres(seen, 16))[inside]
    assert error.abs().max() < 1.1  # half a pixel more where the padding is odd


@pytest.mark.parametrize("size", SIZES)
def test_a_map_painted_on_the_image_has_each_cells_value_on_its_own_pixels(size):
    values = torch.rand(6, 6)
    for cells in (CellMap.stretched(size, (6, 6)), CellMap.padded(size, 6), CellMap.cropped(size, 6, 60)):
        painted = cells.to_image(values, size)
        for box, value in zip(cells.boxes(), values.flatten(), strict=True):
            x, y = ((box[:2] + box[2:]) / 2).floor().long().tolist()
            if 0 <= x < size[1] and 0 <= y < size[0]:
                assert painted[y, x] == value
        covered = (painted > 0).float().mean() * size[0] * size[1]
        assert covered == pytest.approx(
            min(size) ** 2 if cells.left > 0 or cells.top > 0 else size[0] * size[1], rel=0.05
        )


def test_a_cell_owns_the_pixels_whose_centres_it_holds_and_at_least_one():
    boxes = torch.tensor([[0.0, 0.0, 2.0, 1.4], [-3.0, 1.6, 1.0, 9.0], [2.6, 0.6, 2.9, 0.9]])
    assert cell_pixels(boxes, (4, 5)).tolist() == [[0, 0, 2, 1], [0, 2, 1, 4], [2, 0, 3, 1]]


def test_the_mean_logit_of_a_cell_is_over_its_pixels():
    logits = torch.arange(20.0).reshape(4, 5)
    pixels = torch.tensor([[0, 0, 2, 1], [1, 2, 4, 4], [4, 3, 5, 4]])
    expected = [logits[0:1, 0:2].mean(), logits[2:4, 1:4].mean(), logits[3, 4]]
    assert cell_means(logits, pixels).tolist() == pytest.approx([float(mean) for mean in expected])


@pytest.mark.parametrize(
    ("attention", "budget", "shares"),
    [
        ([0.5, 0.3, 0.2], 10, [5, 3, 2]),
        ([9.0, 7.0, 4.0], 10, [5, 3, 2]),  # 4.5, 3.5, 2.0: the odd point goes to the first of equal remainders
        ([0.98, 0.01, 0.01], 10, [8, 1, 1]),  # at least one each, the rest share what is left
        ([0.6, 0.38, 0.02], 5, [2, 2, 1]),
        ([0.3, 0.3, 0.3], 3, [1, 1, 1]),
        ([0.0, 0.0], 5, [3, 2]),
        ([0.2], 7, [7]),
    ],
)
def test_points_are_shared_in_proportion_to_attention(attention, budget, shares):
    assert share_points(torch.tensor(attention), budget) == shares


def test_every_budget_is_spent_to_the_last_point():
    generator = torch.Generator().manual_seed(0)
    for count in range(1, 12):
        for budget in range(count, 40, 3):
            shares = share_points(torch.rand(count, generator=generator) ** 4, budget)
            assert sum(shares) == budget
            assert min(shares) >= 1


def test_of_equal_values_the_lower_index_comes_first():
    assert descending(torch.tensor([1.0, 3.0, 3.0, 0.0, 1.0])).tolist() == [1, 2, 0, 4, 3]


def halves(left: float = 4.0, right: float = -4.0) -> torch.Tensor:
    """Logits of a 40 x 80 image whose left half is foreground."""
    logits = torch.full((40, 80), left)
    logits[:, 40:] = right
    return logits


def test_attention_sinks_where_the_initial_mask_is_not_are_dropped():
    attention = torch.zeros(4, 8)
    attention[1, 1], attention[2, 7], attention[3, 2], attention[0, 0] = 0.3, 0.9, 0.2, 0.1
    cells = cells_on_image(attention, halves(), CellMap.stretched((40, 80), (4, 8)))
    seeds = pick_seeds(cells, SeedSettings(attended=3, kept=2, points=5), "q")
    assert seeds.centres.tolist() == [[15, 15], [25, 35]]
    assert seeds.owner.tolist() == [0, 0, 0, 1, 1]
    assert seeds.points[[0, 3]].equal(seeds.centres)
    for point, owner in zip(seeds.points, seeds.owner, strict=True):
        assert ((point - seeds.centres[owner]).abs() < 5).all()


def test_drawn_points_depend_on_the_seed_and_the_query_alone():
    cells = cells_on_image(torch.rand(4, 8), halves(), CellMap.stretched((40, 80), (4, 8)))
    draw = lambda seed, query: pick_seeds(cells, SeedSettings(kept=2, seed=seed), query).points  # noqa: E731
    assert draw(0, "a").equal(draw(0, "a"))
    assert not draw(0, "a").equal(draw(1, "a"))
    assert not draw(0, "a").equal(draw(0, "b"))


def test_no_more_cells_than_points_and_no_more_than_there_are():
    cells = cells_on_image(torch.rand(4, 8), halves(), CellMap.stretched((40, 80), (4, 8)))
    assert len(pick_seeds(cells, SeedSettings(kept=16, points=3), "q").centres) == 3
    everything = pick_seeds(cells, SeedSettings(attended=99, kept=99, points=99), "q")
    assert len(everything.centres) == 32
    assert len(everything.points) == 99


def test_cells_beside_the_image_are_never_seeds():
    attention = torch.ones(4, 4)
    cells = cells_on_image(attention, halves(), CellMap.padded((40, 80), 4))
    assert cells.centres.tolist() == [[10, 10], [30, 10], [50, 10], [70, 10], [10, 30], [30, 30], [50, 30], [70, 30]]


def test_points_stay_on_the_image_where_cells_reach_over_its_edge():
    grid = CellMap.padded((30, 80), 3)
    cells = cells_on_image(torch.ones(3, 3), torch.zeros(30, 80), grid)
    points = pick_seeds(cells, SeedSettings(points=200), "q").points
    assert (points > 0).all()
    assert (points < torch.tensor([80, 30])).all()


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_maps_that_are_not_finite_give_no_cells(broken):
    grid, attention, logits = CellMap.stretched((40, 80), (4, 8)), torch.rand(4, 8), halves()
    assert cells_on_image(attention, logits, grid) is not None
    attention[2, 3] = broken
    assert cells_on_image(attention, logits, grid) is None
    logits[5, 5] = broken
    assert cells_on_image(torch.rand(4, 8), logits, grid) is None


def test_an_image_so_thin_that_no_cell_is_centred_on_it_gives_no_cells():
    assert cells_on_image(torch.ones(24, 24), torch.zeros(1, 300), CellMap.padded((1, 300), 24)) is None


def test_seeds_without_tokens_or_points_are_refused():
    with pytest.raises(ConfigError, match="must be 1 or more"):
        SeedSettings(points=0)
