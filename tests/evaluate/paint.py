"""A pipeline on paint, questions about it, and rows made by hand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from rea2seg.data.native import write_native
from rea2seg.evaluate.__main__ import main
from rea2seg.evaluate.rows import Found, Row
from rea2seg.generator.candidates import AttentionSearch, CoreSearch, PromptSearch
from rea2seg.metrics import PRESETS, Overlap
from rea2seg.pipeline import Rea2Seg
from rea2seg.ranking import ByEvaluator
from rea2seg.structures import Region, Sample
from tests.fakes import PaintEvaluator, PaintGenerator, PaintSegmenter, canvas_of_paint, painted

LISA = PRESETS["lisa"]
IMAGE = canvas_of_paint()
COLOURS = ("red", "green", "blue")
INSTANCES = tuple(Region(colour, painted(IMAGE, colour)) for colour in COLOURS)
PAINT: dict[str, Any] = {
    "generator": {"class_path": "tests.fakes.PaintGenerator"},
    "segmenter": {"class_path": "tests.fakes.PaintSegmenter"},
    "searches": [
        {"class_path": "rea2seg.generator.candidates.PromptSearch"},
        {"class_path": "rea2seg.generator.candidates.CoreSearch"},
        {"class_path": "rea2seg.generator.candidates.AttentionSearch"},
    ],
    "selector": {
        "class_path": "rea2seg.ranking.ByEvaluator",
        "init_args": {"evaluator": {"class_path": "tests.fakes.PaintEvaluator"}},
    },
}


def sample(place: int, text: str = "the {} box", **about: Any) -> Sample:
    colour = COLOURS[place % 3]
    category = ("geometric", "spatial", "attribute")[(place // 3) % 3]
    granularity = ("object", "part")[place % 2]
    made = Sample(
        f"s{place}", IMAGE, text.format(colour), painted(IMAGE, colour), None, category, "colour", granularity
    )
    return replace(made, **{"instances": INSTANCES, **about})


def pipeline(*searches: Any) -> Rea2Seg:
    found = list(searches) or [PromptSearch(), CoreSearch(), AttentionSearch()]
    return Rea2Seg(PaintSegmenter(), found, ByEvaluator(PaintEvaluator()), PaintGenerator())


def furnish(folder: Path) -> Path:
    """A config and a dataset of nine questions, three in each of three categories."""
    (folder / "paint.yaml").write_text(yaml.safe_dump(PAINT))
    write_native([sample(place) for place in range(9)], folder / "data")
    return folder


def call(shop: Path, *more: str, out: str = "out") -> int:
    where = ["--root", str(shop / "data"), "--config", str(shop / "paint.yaml"), "--out", str(shop / out)]
    return main(["--benchmark", "jsonl", *where, *more])


def metrics_of(shop: Path, out: str = "out") -> dict[str, Any]:
    return json.loads((shop / out / "metrics.json").read_text())


def row_of(metrics: dict[str, Any], category: str) -> dict[str, Any]:
    (row,) = [row for row in metrics["rows"] if row["category"] == category]
    return row


def made_row(place: int, category: str = "a", component: str = "", granularity: str = "object", **ious: float) -> Row:
    """A row whose overlaps have those IoUs, to three decimals."""
    pairs = {key: Overlap(round(1000 * value), 1000) for key, value in ious.items()}
    return Row(str(place), category, component, granularity, pairs, target_area=1000, groups=1)


def found(
    index: int, iou: float, score: float | None = 0.5, source: str = "prompt", quality: float | None = 0.5
) -> Found:
    """A candidate of that true IoU, to three decimals."""
    return Found(index, source, score, quality, Overlap(round(1000 * iou), 1000))


def ranked_row(place: int, *ranking: Found, category: str = "a", **about: Any) -> Row:
    """A row with candidates in the order of a ranking."""
    row = Row(str(place), category, "", "object", {}, target_area=1000, ranking=ranking)
    return replace(row, **about)
