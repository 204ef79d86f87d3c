import gc
import random
import weakref
from dataclasses import replace

import pytest
import torch

from rea2seg.errors import ConfigError
from rea2seg.generator.candidates import AttentionSearch, CoreSearch, PromptSearch
from rea2seg.generator.seeds import SeedSettings, seeds_of, why_no_seeds
from rea2seg.geometry import CellMap
from rea2seg.masks import iou, stability
from rea2seg.structures import Embedding, Grounding, Masks, Prompt, Query, Scene
from tests.fakes import FakeSegmenter

SIZE, GRID = (60, 120), (6, 12)  # cells of 10 x 10 pixels
LOOSE = {"quality": 0.0, "stability": 0.0}


def attention_at(*cells: tuple[int, int, float]) -> torch.Tensor:
    """A little attention everywhere, and these weights at (row, col)."""
    attention = torch.full(GRID, 0.001)
    for row, col, weight in cells:
        attention[row, col] = weight
    return attention


def scene_with(attention: torch.Tensor, segmenter: FakeSegmenter, features: torch.Tensor | None = None) -> Scene:
    """A scene whose initial mask is the fake's disc around the middle of the image."""
    query = Query(torch.zeros(3, *SIZE, dtype=torch.uint8), "the disc", id="7")
    (embedding,) = segmenter.encode([query.image])
    if features is not None:
        embedding = Embedding(features, embedding.canvas)
    grounding = Grounding(torch.zeros(1, 1, 4), attention[None], CellMap.stretched(SIZE, GRID), "It is [SEG].")
    initial = segmenter.decode(embedding, Prompt(token=grounding.token), multimask=False)
    return Scene(query, embedding, grounding, initial)


def test_the_prompt_search_asks_for_three_masks_of_the_mllms_token():
    segmenter = FakeSegmenter()
    scene = scene_with(attention_at(), segmenter)
    found = PromptSearch()(scene, segmenter)
    assert [candidate.source for candidate in found] == ["prompt"] * 3
    assert [candidate.quality for candidate in found] == pytest.approx([0.9, 0.95, 0.92])
    assert [candidate.mask.shape for candidate in found] == [SIZE] * 3
    assert segmenter.prompts[-1].token.equal(scene.grounding.token)
    assert segmenter.prompts[-1].points is None


def test_masks_without_a_pixel_are_dropped():
    segmenter = FakeSegmenter(radii=(-5.0, 20.0, 40.0))
    scene = scene_with(attention_at((3, 6, 0.5)), segmenter)
    assert [candidate.quality for candidate in PromptSearch()(scene, segmenter)] == pytest.approx([0.95, 0.92])
    assert len(AttentionSearch(SeedSettings(kept=1, points=1), **LOOSE)(scene, segmenter)) == 2


def two_materials() -> torch.Tensor:
    """Features of one direction left of the middle of the canvas and another right of it."""
    features = torch.zeros(4, 8, 8)
    features[0, :, :4], features[1, :, 4:] = 1.0, 3.0
    return features


def test_the_core_search_prompts_with_the_core_a_background_point_and_the_initial_mask():
    segmenter = FakeSegmenter(radii=(30.0, 20.0, 40.0))
    # Three cells left of the middle, which are alike, and two right of it.
    attention = attention_at((3, 3, 0.2), (2, 4, 0.2), (3, 4, 0.2), (3, 8, 0.2), (3, 9, 0.2))
    scene = scene_with(attention, segmenter, two_materials())
    seeds = SeedSettings(attended=5, kept=5, points=10)
    found = CoreSearch(seeds)(scene, segmenter)
    prompt = segmenter.prompts[-1]
    assert [candidate.source for candidate in found] == ["core"] * 3
    assert prompt.labels.tolist() == [[1] * 6 + [0]]
    assert prompt.points[0, :6, 0].max() < 50
    assert prompt.points[0, :6].unique(dim=0).shape == (6, 2)
    assert {(35.0, 35.0), (45.0, 25.0), (45.0, 35.0)} <= set(map(tuple, prompt.points[0, :6].tolist()))
    assert prompt.mask.equal(scene.initial.lowres)
    # The disc is in the middle: the lowest cell is in a corner.
    assert prompt.points[0, 6, 0].item() in (5.0, 115.0)


def test_seeds_that_are_not_alike_give_no_core():
    segmenter = FakeSegmenter()
    scene = scene_with(attention_at((3, 3, 0.2), (3, 8, 0.2)), segmenter, two_materials())
    before = len(segmenter.prompts)
    assert CoreSearch(SeedSettings(attended=2, kept=2, points=9))(scene, segmenter) == []
    assert len(segmenter.prompts) == before


def test_the_attention_search_decodes_all_seeds_at_once_and_says_where_each_mask_came_from():
    segmenter = FakeSegmenter()
    scene = scene_with(attention_at((3, 3, 0.4), (3, 8, 0.2)), segmenter)
    search = AttentionSearch(SeedSettings(attended=2, kept=2, points=3), **LOOSE)
    before = len(segmenter.prompts)
    found = search(scene, segmenter)
    assert len(segmenter.prompts) == before + 1
    assert segmenter.prompts[-1].points.shape == (3, 1, 2)
    assert segmenter.prompts[-1].labels.tolist() == [[1]] * 3
    for candidate in found:
        x, y = candidate.seed_xy
        assert candidate.mask[int(y), int(x)]
        assert candidate.source == "attention"
    replace(search, chunk=2)(scene, segmenter)
    assert [len(prompt) for prompt in segmenter.prompts[-2:]] == [2, 1]


def test_masks_must_exceed_the_quality_and_reach_the_stability():
    segmenter = FakeSegmenter(slopes=(4.0, 4.0, 0.5))
    scene = scene_with(attention_at((3, 6, 0.4)), segmenter)
    search = AttentionSearch(SeedSettings(attended=1, kept=1, points=1), quality=0.5, stability=0.5)
    qualities = [candidate.quality for candidate in search(scene, segmenter)]
    assert qualities == pytest.approx([0.95, 0.92, 0.9])
    at_threshold = float(torch.tensor(0.92))
    assert [
        candidate.quality for candidate in replace(search, quality=at_threshold)(scene, segmenter)
    ] == pytest.approx([0.95])
    steady = [candidate.quality for candidate in replace(search, stability=0.92)(scene, segmenter)]
    assert steady == pytest.approx([0.95])  # 0.5 logits a pixel are too flat, and a radius of 10 is too small


def test_duplicates_go_and_nine_are_kept():
    segmenter = FakeSegmenter(radii=(12.0, 12.1, 60.0))
    scene = scene_with(torch.rand(GRID, generator=torch.Generator().manual_seed(0)), segmenter)
    search = AttentionSearch(SeedSettings(attended=72, kept=40, points=40), **LOOSE)
    found = search(scene, segmenter)
    assert len(found) == 9
    assert all(candidate.quality == pytest.approx(0.95) for candidate in found)  # 12.1 beats 12.0 at every seed
    everything = replace(search, keep=1000)(scene, segmenter)
    assert 9 < len(everything) < 120
    assert [candidate.seed_xy for candidate in everything[:9]] == [candidate.seed_xy for candidate in found]


def test_the_two_orders():
    segmenter = FakeSegmenter()
    scene = scene_with(attention_at((3, 6, 0.4)), segmenter)
    search = AttentionSearch(SeedSettings(attended=1, kept=1, points=1), **LOOSE)
    by_estimate = [candidate.quality for candidate in search(scene, segmenter)]
    by_attention = [candidate.quality for candidate in replace(search, order="attention")(scene, segmenter)]
    assert by_estimate == pytest.approx([0.95, 0.92, 0.9])
    assert by_attention == pytest.approx([0.9, 0.95, 0.92])  # the smaller the disc, the more attention a pixel


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("setting", ["order", "decisions"])
def test_misspelt_settings_are_refused(setting):
    with pytest.raises(ConfigError, match=f"{setting} must be one of .*, not 'quality'"):
        AttentionSearch(**{setting: "quality"})


@pytest.mark.parametrize("broken", ["attention", "initial"])
def test_without_finite_maps_only_the_prompt_search_finds_anything(broken):
    segmenter = FakeSegmenter()
    scene = scene_with(attention_at((3, 3, torch.nan)) if broken == "attention" else attention_at(), segmenter)
    if broken == "initial":
        scene = replace(
            scene, initial=Masks(scene.initial.lowres * torch.nan, scene.initial.quality, scene.initial.canvas)
        )
    assert [len(search(scene, segmenter)) for search in (PromptSearch(), CoreSearch(), AttentionSearch())] == [3, 0, 0]
    assert f"the {broken}" in why_no_seeds(scene)


def test_without_a_generator_the_searches_find_nothing():
    segmenter = FakeSegmenter()
    scene = replace(scene_with(attention_at(), segmenter), grounding=None, initial=None)
    assert [search(scene, segmenter) for search in (PromptSearch(), CoreSearch(), AttentionSearch())] == [[], [], []]


def test_a_scene_without_seeds_says_why():
    scene = scene_with(attention_at(), FakeSegmenter())
    assert why_no_seeds(scene) is None
    assert "no initial mask" in why_no_seeds(replace(scene, initial=None))
    away = replace(scene.grounding, cells=replace(scene.grounding.cells, left=1e4))
    assert "no image token looks at the image" in why_no_seeds(replace(scene, grounding=away))


def test_a_scene_is_not_kept_by_what_was_searched_in_it():
    segmenter = FakeSegmenter()
    scene = scene_with(attention_at((3, 3, 0.4)), segmenter)
    CoreSearch()(scene, segmenter)
    gone = weakref.ref(scene)
    del scene
    gc.collect()
    assert gone() is None


def test_the_searches_of_a_scene_share_its_cells_and_seeds():
    segmenter = FakeSegmenter()
    scene, other = (scene_with(attention_at((3, col, 0.4)), segmenter) for col in (3, 8))
    assert scene.cells is scene.cells
    assert scene.cells is not other.cells
    assert seeds_of(scene, SeedSettings()).points.equal(seeds_of(scene, SeedSettings()).points)


def test_deciding_on_low_resolution_logits_finds_what_full_size_finds():
    """The contract allows differences within 0.005 of a threshold; for smooth discs of all sizes there are none."""
    rng, compared, disputed = random.Random(0), 0, 0
    for trial in range(25):
        radii = tuple(rng.uniform(4, 30) for _ in range(3))
        # A band of 2 / slope pixels around the outline: stabilities on both sides of the threshold.
        slopes = tuple(rng.uniform(20, 80) / radius for radius in radii)
        segmenter = FakeSegmenter(radii=radii, slopes=slopes)
        scene = scene_with(torch.rand(GRID, generator=torch.Generator().manual_seed(trial)), segmenter)
        search = AttentionSearch(SeedSettings(points=16), quality=0.8, overlap=0.99, keep=1000, decisions="full")
        points = seeds_of(scene, search.seeds).points
        full, lowres = search(scene, segmenter), replace(search, decisions="lowres")(scene, segmenter)
        masks = segmenter.decode(scene.embedding, Prompt(points[:, None], torch.ones(16, 1, dtype=torch.long)), True)
        coarse = stability(masks.canvas.content(masks.lowres), 1.0).flatten() >= 0.9
        disputed += int((coarse != (stability(masks.upsample(), 1.0) >= 0.9)).sum())
        assert [candidate.seed_xy for candidate in lowres] == [candidate.seed_xy for candidate in full]
        assert all(iou(a.mask, b.mask) >= 0.99 for a, b in zip(lowres, full, strict=True))
        compared += len(full)
    assert compared > 200
    assert disputed > 20  # coarse counts alone would have decided these otherwise
