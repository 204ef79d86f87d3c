import numpy as np
import pytest
import torch
from PIL import Image

from rea2seg.drawing import (
    HEAT,
    INK,
    LARGEST,
    PAPER,
    RANKS,
    SMALLEST,
    SOURCES,
    font,
    heat,
    ink_on,
    label_places,
    mask_at,
    picture_at,
    rim,
    view_size,
    wrapped,
)
from rea2seg.geometry import CellMap
from rea2seg.structures import Candidate, Query, Ranking, Score
from rea2seg.visualize import _line, attention_map, contact_sheet, overlay

SIZE = (48, 64)
GREY = torch.full((3, *SIZE), 128, dtype=torch.uint8)
QUERY = Query(GREY, "the grey box")


def box(left: int, top: int, right: int, bottom: int) -> torch.Tensor:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def ranking(*masks: torch.Tensor, source: str = "prompt") -> Ranking:
    seed = (32.5, 24.5) if source == "attention" else None
    candidates = tuple(Candidate(mask, source, 0.8, seed) for mask in masks)
    return Ranking(candidates, tuple(Score(0.9 - i / 10) for i in range(len(masks))), tuple(range(len(masks))))


def has(page: Image.Image | np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((np.asarray(page) == colour).all(-1).any())


# Sizes


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((192, 256), (576, 768)),  # three times: the first multiple not below 640
        ((1, 300), (3, 900)),
        ((640, 480), (640, 480)),
        ((900, 1600), (900, 1600)),
        ((3000, 4000), (1200, 1600)),
        ((1, 50_000), (1, 1600)),
    ],
)
def test_small_images_grow_by_whole_multiples_and_large_ones_shrink(size, expected):
    assert view_size(size) == expected
    assert max(view_size(size)) >= SMALLEST
    assert max(view_size(size)) <= LARGEST


def test_enlarged_pixels_of_a_mask_stay_square():
    mask = torch.tensor([[True, False], [False, True]])
    assert mask_at(mask, (6, 6)).tolist() == np.kron(mask.numpy(), np.ones((3, 3), bool)).tolist()


def test_a_line_a_pixel_wide_survives_reduction():
    mask = torch.zeros(90, 90, dtype=torch.bool)
    mask[:, 30] = True
    assert mask_at(mask, (45, 45)).any(axis=1).all()


def test_a_tiny_image_is_shown_pixel_by_pixel():
    image = torch.tensor([[[0, 255]]] * 3, dtype=torch.uint8)
    assert set(picture_at(image, (320, 640)).ravel().tolist()) == {0, 255}


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (1, 1), (3, 4), (700, 2000)])
def test_pictures_of_every_shape_are_wide_enough_for_their_legends(size):
    whole, query = torch.ones(size, dtype=torch.bool), Query(torch.full((3, *size), 9, dtype=torch.uint8), "all of it")
    result = Ranking((Candidate(whole, "attention", 0.5, (0.5, 0.5)),), (Score(0.5),), (0,))
    cells = CellMap.cropped(size, 4, 64)
    pages = [
        overlay(query, result),
        contact_sheet(query, result),
        attention_map(query, torch.rand(4, 4), cells, torch.tensor([[0.5, 0.5]])),
    ]
    assert all(page.mode == "RGB" and page.width >= SMALLEST for page in pages)


# Colours


def test_the_palette_is_that_of_okabe_and_ito():
    okabe_ito = {"E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7"}
    assert {"{:02X}{:02X}{:02X}".format(*colour) for colour in RANKS} == okabe_ito
    assert set(SOURCES.values()) <= set(RANKS)
    assert len(set(SOURCES.values())) == len(SOURCES)


def test_heat_rises_in_lightness():
    lightness = heat(np.linspace(0, 1, 50)).astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all()
    assert [tuple(heat(np.array([value]))[0]) for value in (0.0, 1.0)] == [HEAT[0], HEAT[-1]]


def contrast(first: tuple[int, int, int], second: tuple[int, int, int]) -> float:
    """WCAG's contrast ratio."""
    linear = [[(v / 255 / 12.92) if v < 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in c] for c in (first, second)]
    darker, lighter = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in linear)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("colour", RANKS)
def test_numbers_can_be_read_on_every_colour(colour):
    assert contrast(ink_on(colour), colour) >= 4.5
    other = PAPER if ink_on(colour) == INK else INK
    assert contrast(ink_on(colour), colour) >= contrast(other, colour)


# What is drawn where


def test_a_line_runs_around_a_mask_and_leaves_its_pixels_visible():
    mask = np.zeros((9, 9), dtype=bool)
    mask[4, 4] = True
    around = rim(mask, 2)
    assert not around[4, 4]
    assert around.sum() == 24
    assert rim(np.ones((9, 9), dtype=bool), 2).sum() == 81 - 25  # no room outside: just inside the border


def test_the_first_mask_is_filled_the_others_are_only_outlined():
    page = np.asarray(overlay(QUERY, ranking(box(8, 8, 24, 40), box(40, 8, 56, 40))))
    top = next(y for y in range(page.shape[0]) if (page[y, 20] == 128).all())  # below the headline
    scale = view_size(SIZE)[0] // SIZE[0]

    def at(x: float, y: float) -> tuple[int, ...]:
        return tuple(page[top + int(y * scale), 12 + int(x * scale)].tolist())

    assert at(9.5, 9.5) == tuple(round(128 + (channel - 128) * 0.35) for channel in RANKS[0])
    assert at(41.5, 9.5) == (128, 128, 128)
    assert at(7.95, 24) == RANKS[0]
    assert at(39.95, 24) == RANKS[1]
    assert at(2, 2) == (128, 128, 128)


def test_masks_that_coincide_all_show_their_colour():
    page = overlay(QUERY, ranking(*[box(20, 15, 40, 30)] * 3))
    area = np.asarray(page)[50 : page.height - 110]  # without the legend
    assert all(has(area, colour) for colour in RANKS[:3])


def test_only_k_masks_are_drawn():
    page = overlay(QUERY, ranking(box(2, 2, 12, 12), box(20, 2, 30, 12), box(40, 2, 50, 12)), top_k=2)
    assert has(page, RANKS[1])
    assert not has(page, RANKS[2])


def test_labels_lie_beside_small_masks_and_never_on_each_other():
    masks = [mask_at(box(30, 20, 34, 24), (480, 640))] * 4
    places = label_places(masks, 13)
    assert all(masks[0][y, x] for (x, y), _ in places)
    labels = np.array([place for _, place in places])
    assert not any(masks[0][y - 13 : y + 14, x - 13 : x + 14].any() for x, y in labels)
    distances = np.linalg.norm(labels[:, None] - labels[None], axis=-1)[np.triu_indices(4, 1)]
    assert distances.min() >= 26


def test_labels_of_masks_that_fill_the_picture_lie_inside_it():
    whole = np.ones((100, 640), dtype=bool)
    assert all(0 <= x < 640 and 0 <= y < 100 for _, (x, y) in label_places([whole, whole], 13))
    assert label_places([], 13) == []


def test_the_contact_sheet_shows_all_candidates_in_the_colours_of_their_sources():
    masks = [box(4 * i, 4, 4 * i + 3, 40) for i in range(6)]
    one_row = contact_sheet(QUERY, ranking(*masks[:5]))
    two_rows = contact_sheet(QUERY, ranking(*masks))
    assert two_rows.height - one_row.height == 180 + 50 + 12  # a tile of 240 x 180, its caption, a margin
    for source, colour in SOURCES.items():
        page = contact_sheet(QUERY, ranking(masks[0], source=source))
        assert [name for name, other in SOURCES.items() if has(page, other)] == [source]
        assert has(page, colour)


def test_a_tile_keeps_the_colours_of_what_lies_inside_the_mask_alone():
    red = GREY.clone()
    red[:] = torch.tensor([200, 0, 0], dtype=torch.uint8)[:, None, None]
    page = np.asarray(contact_sheet(Query(red, "red"), ranking(box(8, 8, 56, 40))))
    inside = (page == (200, 0, 0)).all(-1)
    assert inside.sum() == pytest.approx(48 * 32 * (240 / 64) ** 2, rel=0.02)


def test_attention_is_bright_where_it_is_high_and_absent_outside_the_view():
    attention = torch.zeros(4, 4)
    attention[1, 2] = 0.5
    cells = CellMap.cropped(SIZE, 4, 64)  # 48 x 48 in the middle: columns 8 to 56
    page = np.asarray(attention_map(QUERY, attention, cells, torch.zeros(0, 2))).astype(int)
    scale = view_size(SIZE)[0] // SIZE[0]
    top = next(y for y in range(page.shape[0]) if (page[y, 20] == round(128 * 0.9)).all())

    def at(x: float, y: float) -> np.ndarray:
        return page[top + int(y * scale), 12 + int(x * scale)]

    hot, cold, outside = at(8 + 2.5 * 12, 18), at(14, 6), at(3, 18)
    assert np.abs(hot - (0.2 * 115 + 0.8 * np.array(HEAT[-1]))).max() <= 1
    assert np.abs(cold - (0.8 * 115 + 0.2 * np.array(HEAT[0]))).max() <= 1
    assert outside.tolist() == [115, 115, 115]


def test_one_token_that_draws_all_attention_does_not_hide_the_rest():
    plain = torch.full((16, 16), 0.001)
    plain[0, 0] = 0.9  # a sink
    with_row = plain.clone()
    with_row[8, 4:12] = 0.01
    pages = [
        attention_map(QUERY, shown, CellMap.stretched(SIZE, (16, 16)), torch.zeros(0, 2)) for shown in (plain, with_row)
    ]
    before, after = (np.asarray(page).astype(int) for page in pages)
    changed = np.abs(after - before).max(-1) > 10
    assert changed.sum() == pytest.approx(8 * (640 / 16) * (480 / 16), rel=0.05)


def test_seeds_are_dots_and_those_behind_candidates_are_ringed():
    cells, points = CellMap.stretched(SIZE, (4, 4)), torch.tensor([[10.0, 10.0], [50.0, 30.0]])
    plain = np.asarray(attention_map(QUERY, torch.rand(4, 4), cells, points))[:-90]
    ringed = np.asarray(attention_map(QUERY, torch.rand(4, 4), cells, points, [(50.0, 30.0)]))[:-90]
    assert (plain[45:] == PAPER).all(-1)[:, 12:-12].any()
    assert not has(plain, SOURCES["core"])
    assert has(ringed, SOURCES["core"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_attention_without_anything_to_show_leaves_the_grey_image(value):
    page = attention_map(QUERY, torch.full((4, 4), value), CellMap.stretched(SIZE, (4, 4)), torch.zeros(0, 2))
    view = np.asarray(page)[100:400, 50:600].astype(int)
    assert (view.max(-1) - view.min(-1)).max() <= (0 if value else 40)


def test_masks_without_an_estimate_or_a_score_are_drawn_like_any_other():
    result = Ranking((Candidate(box(8, 8, 24, 40)),), (Score(None, fallback=True),), (0,))
    assert has(overlay(QUERY, result), RANKS[0])
    assert _line(1, *next(iter(result))) == "1   score failed   given   16.7% of the image"
    assert has(contact_sheet(QUERY, result), SOURCES["given"])


def test_no_candidates_are_said_in_words():
    empty = Ranking((), (), ())
    for page in (overlay(QUERY, empty), contact_sheet(QUERY, empty)):
        assert has(page, INK)
        assert not any(has(page, colour) for colour in RANKS)


# Text


def test_long_questions_are_cut_to_two_lines_that_fit():
    lines = wrapped("the third largest box that is left of the mug " * 20, 20, 400)
    assert len(lines) == 2
    assert lines[-1].endswith("...")
    assert all(font(20).getlength(line) <= 400 for line in lines)
    assert wrapped("a box", 20, 400) == ["a box"]
    assert font(20).getlength(wrapped("x" * 500, 20, 400)[0]) <= 400
