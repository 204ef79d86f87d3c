"""The generator's candidates as rows for the evaluator, written once and drawn from ever after."""

import json
import shutil
from inspect import signature

import numpy as np
import pytest
import torch

from rea2seg.errors import InputError
from rea2seg.images import load_image
from rea2seg.masks import decode_rle, iou
from tests.training.stages import CONFIGS, SCORING
from training import scoring_data as module
from training.scored_rows import Mixed, ScoredRows
from training.scoring_data import scoring_data


@pytest.fixture
def rows(work):
    return [json.loads(line) for line in (work / "scoring/rows.jsonl").read_text().splitlines()]


def test_rows_are_complete(work, rows):
    assert {row["image"] for row in rows} == {f"images/0-{index:06d}.png" for index in range(3)}
    assert len({row["id"] for row in rows}) == len(rows) == 6
    for row in rows:
        assert row["category"] in signature(scoring_data).parameters["categories"].default
        assert row["query"]
        assert row["reasoning"]
        truth = decode_rle(row["segmentation"])
        assert truth.any()
        assert tuple(truth.shape) == load_image(work / "scoring" / row["image"]).shape[1:]
        assert {candidate["source"] for candidate in row["candidates"]} >= {"prompt"}
        for candidate in row["candidates"]:
            assert candidate["iou"] == pytest.approx(iou(decode_rle(candidate["segmentation"]), truth), abs=1e-6)
            assert candidate["under"]


@pytest.mark.parametrize("kept", ["all", "half of the last line", "the first line of the last scene", "no images"])
def test_scoring_data_resumes_to_the_same_file(work, tmp_path, kept):
    whole = (work / "scoring/rows.jsonl").read_text()
    lines = whole.splitlines(keepends=True)
    cut = {
        "all": whole,
        "half of the last line": whole[: -len(lines[-1]) // 2],
        "the first line of the last scene": "".join(lines[:-1]),
        "no images": "",
    }[kept]
    (tmp_path / "rows.jsonl").write_text(cut)
    shutil.copy(work / "scoring/settings.json", tmp_path)
    scoring_data(**SCORING | {"weights": work / "shipped", "out": tmp_path})
    assert (tmp_path / "rows.jsonl").read_text() == whole


def test_scoring_data_of_other_settings_are_not_mixed(work):
    with pytest.raises(InputError, match="other weights or settings"):
        scoring_data(**SCORING | {"weights": work / "shipped", "out": work / "scoring", "per_scene": 1})
    assert len((work / "scoring/rows.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize("change", [("layers: [3, 4]", "layers: [2, 3]"), ("keep: 9", "keep: 6")])
def test_rows_of_a_pipeline_with_other_arguments_are_not_gone_on_with(work, tmp_path, change):
    (tmp_path / "other.yaml").write_text((CONFIGS.parent / "mini.yaml").read_text().replace(*change))
    with pytest.raises(InputError, match="other weights or settings"):
        scoring_data(
            **SCORING | {"weights": work / "shipped", "out": work / "scoring", "pipeline": str(tmp_path / "other.yaml")}
        )


def test_rows_are_gone_on_with_though_their_weights_lie_elsewhere(work, tmp_path):
    shutil.copytree(work / "shipped", tmp_path / "shipped")
    out = tmp_path / "scoring"
    out.mkdir()
    for name in ("rows.jsonl", "settings.json"):
        shutil.copy(work / "scoring" / name, out)
    scoring_data(**SCORING | {"weights": tmp_path / "shipped", "out": out})
    assert [file.name for file in (out / "images").iterdir()] == ["0-000002.png"], "only the last scene is done again"
    for name in ("rows.jsonl", "settings.json"):
        assert (out / name).read_bytes() == (work / "scoring" / name).read_bytes()


def test_fewer_scenes_than_there_are_remove_none(work, tmp_path):
    for name in ("rows.jsonl", "settings.json"):
        shutil.copy(work / "scoring" / name, tmp_path)
    scoring_data(**SCORING | {"weights": work / "shipped", "out": tmp_path, "scenes": 2})
    assert (tmp_path / "rows.jsonl").read_bytes() == (work / "scoring/rows.jsonl").read_bytes()


def test_rows_of_another_version_of_the_scenes_are_not_gone_on_with(work, monkeypatch):
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    with pytest.raises(InputError, match="other weights or settings"):
        scoring_data(**SCORING | {"weights": work / "shipped", "out": work / "scoring"})


def test_scored_rows_give_groups_of_their_candidates(work, rows):
    source, queries = ScoredRows(str(work / "scoring"), group=2, short=0.0), {row["query"]: row for row in rows}
    for split in ("train", "val"):
        image, examples = source(np.random.default_rng(0), 2, split, masks=True)
        assert len(examples) == 2
        for one in examples:
            row = queries[one.text]
            assert load_image(work / "scoring" / row["image"]).equal(image)
            assert one.reasoning == row["reasoning"]
            assert len(one.masks) == len(one.scores) == len(one.under) == 2
            known = {(candidate["iou"], candidate["under"]) for candidate in row["candidates"]}
            assert {*zip(one.scores, one.under, strict=True)} <= known
            truth = decode_rle(row["segmentation"])
            assert one.scores == pytest.approx([iou(torch.from_numpy(mask), truth) for mask in one.masks], abs=1e-6)
    _, examples = source(np.random.default_rng(0), 2, "train", masks=False)
    assert examples[0].masks == []


def test_scored_rows_without_candidates_to_compare_are_refused(tmp_path, rows):
    lonely = [row | {"candidates": row["candidates"][:1]} for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lonely))
    with pytest.raises(InputError, match="two candidates or more in 0 pictures: at least 2 must"):
        ScoredRows(str(tmp_path))


def test_scored_rows_are_a_share_of_the_pictures_with_masks():
    fresh, scored = (torch.full((3, 1, 1), value, dtype=torch.uint8) for value in (0, 1))
    mixed = Mixed(lambda *_: (fresh, []), lambda *_: (scored, []), share=0.25)
    rng = np.random.default_rng(0)
    with_masks, without = ([mixed(rng, 2, "train", masks)[0] for _ in range(200)] for masks in (True, False))
    assert 30 < sum(image is scored for image in with_masks) < 70
    assert all(image is fresh for image in without)
