"""python -m rea2seg.infer --image IMG --query TEXT: candidate masks for a question about an image, best first."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from rea2seg.cli import DONE, Parser, add_pipeline_options, chosen_config, positive, run, table
from rea2seg.config import Config
from rea2seg.generator.candidates import AttentionSearch, CoreSearch
from rea2seg.generator.seeds import seeds_of
from rea2seg.masks import bbox_xywh, encode_rle
from rea2seg.output import finite, remove, writable_folder, write_json, write_mask, write_picture
from rea2seg.pipeline import Rea2Seg
from rea2seg.structures import Candidate, Query, Ranking, Scene, Score
from rea2seg.visualize import attention_map, contact_sheet, overlay


@dataclass(frozen=True, eq=False)
class Result:
    """A ranking with what led to it, and the seconds that the steps took."""

    query: Query
    scenes: list[Scene]
    ranking: Ranking
    seconds: dict[str, float]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(lambda: _infer(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m rea2seg.infer", description="Segment what a question about an image asks for.")
    parser.add_argument("--image", required=True, help="a picture: PNG, JPEG, WebP, GIF, BMP, TIFF or PPM")
    parser.add_argument("--query", required=True, help="what to look for, in words")
    parser.add_argument("--top-k", type=positive, default=3, help="masks to write as pictures (default: 3)")
    parser.add_argument("--out", type=Path, default=Path("out/infer"), help="folder for results (default: out/infer)")
    add_pipeline_options(parser)
    return parser.parse_args(arguments)


def _infer(options: argparse.Namespace) -> int:
    """Check everything, then load, then look."""
    query = Query.of(options.image, options.query)
    config = chosen_config(options)
    folder = writable_folder(options.out)
    seconds: dict[str, float] = {}
    with _timed(seconds, "load"):
        pipe = Rea2Seg(**config.build())
    result = answer(pipe, query, seconds)
    for warning in result.ranking.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    written = _write(folder, pipe, result, config, options)
    print(ranking_table(result.ranking))
    if result.ranking.no_target:
        print("no target: nothing in the image seems to be meant")
    print(f"{', '.join(written)} in {folder}" + (f"\n{config.note}" if config.note else ""))
    return DONE


def answer(pipe: Rea2Seg, query: Query, seconds: dict[str, float]) -> Result:
    """The pipeline step by step, with a watch that adds to `seconds`."""
    with _timed(seconds, "ground"):
        scenes = pipe.scenes(query)
    with _timed(seconds, "search"):
        candidates = pipe.candidates(scenes)
    with _timed(seconds, "rank"):
        ranking = pipe.rank(scenes, candidates)
    return Result(query, scenes, ranking, seconds)


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    start = perf_counter()
    yield
    seconds[step] = round(perf_counter() - start, 3)


def record(result: Result, config: Config, image_path: str) -> dict[str, Any]:
    """`result.json`: everything that was found, best first."""
    ranking, (height, width) = result.ranking, result.query.size
    grounding = result.scenes[0].grounding
    judged = zip(ranking.indices, ranking.candidates, ranking.scores, strict=True)
    return {
        "version": version("rea2seg"),
        "config": config.name,
        "query": result.query.text,
        "image": {"path": image_path, "width": width, "height": height},
        "no_target": ranking.no_target,
        "ranking": [_entry(rank, *one) for rank, one in enumerate(judged, 1)],
        "reply": None if grounding is None else grounding.reply,
        "warnings": list(ranking.warnings),
        "timings_s": result.seconds,
    }


def _entry(rank: int, index: int, candidate: Candidate, score: Score) -> dict[str, Any]:
    return {
        "rank": rank,
        "index": index,
        "source": candidate.source,
        "score": finite(score.iou),
        "confidence": finite(score.confidence),
        "fallback": score.fallback,
        "quality": finite(candidate.quality),
        "seed_xy": candidate.seed_xy,
        "segmentation": encode_rle(candidate.mask),
        "bbox": bbox_xywh(candidate.mask),
        "area": int(candidate.mask.sum()),
        "reasoning": score.reasoning,
    }


def ranking_table(ranking: Ranking) -> str:
    """The ranking as text."""
    rows = []
    for rank, (candidate, score) in enumerate(ranking, 1):
        share = f"{100 * float(candidate.mask.float().mean()):.1f}%"
        rows.append([str(rank), str(score), candidate.source, f"{candidate.quality:.3f}", share])
    return table(["rank", "score", "source", "quality", "area"], rows)


def _write(folder: Path, pipe: Rea2Seg, result: Result, config: Config, options: argparse.Namespace) -> list[str]:
    """All files of a result, and their names. Those of an earlier result that this one has not are removed."""
    pictures = {
        "overlay.png": overlay(result.query, result.ranking, options.top_k),
        "candidates.png": contact_sheet(result.query, result.ranking),
    }
    if any(scene.grounding for scene in result.scenes):
        pictures["attention.png"] = attention_picture(pipe, result)
    masks = {f"mask_{rank}.png": best.mask for rank, best in enumerate(result.ranking.top(options.top_k), 1)}
    if (folder / "result.json").exists():
        for path in folder.iterdir():
            if re.fullmatch(r"mask_\d+\.png|attention\.png", path.name) and path.name not in {*masks, *pictures}:
                remove(path)
    for name, mask in masks.items():
        write_mask(folder / name, mask)
    for name, picture in pictures.items():
        write_picture(folder / name, picture)
    write_json(folder / "result.json", record(result, config, options.image))
    return ["result.json", *masks, *pictures]


def attention_picture(pipe: Rea2Seg, result: Result) -> Image.Image:
    """Where the MLLM looked: of several targets, the highest attention to any of them."""
    groundings = [scene.grounding for scene in result.scenes if scene.grounding is not None]
    attention = torch.cat([grounding.attention for grounding in groundings]).amax(0)
    chosen = [candidate.seed_xy for candidate in result.ranking.candidates if candidate.seed_xy is not None]
    points = seed_points(pipe, result.scenes)
    return attention_map(result.query, attention, groundings[0].cells, points, chosen)


def seed_points(pipe: Rea2Seg, scenes: Sequence[Scene]) -> Float[Tensor, "p 2"]:
    """The points (x, y) that the searches start from, one row each."""
    found = [torch.zeros(0, 2)]
    for search in pipe.searches:
        if isinstance(search, (AttentionSearch, CoreSearch)):
            seeds = [seeds_of(scene, search.seeds) for scene in scenes]
            found += [one.points for one in seeds if one is not None]
    distinct: Tensor = torch.unique(torch.cat(found), dim=0)
    return distinct


if __name__ == "__main__":
    sys.exit(main())
