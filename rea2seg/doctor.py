"""python -m rea2seg.doctor --config C [--weights DIR] [--run]: whether a pipeline's weights are whole and fit.

Nothing is downloaded, and without `--run` nothing is loaded: names, shapes and texts are read, and files whose hash is
known are hashed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from rea2seg.checkpoints.hashes import verify
from rea2seg.checkpoints.hub import fetched
from rea2seg.checkpoints.stored import only_file, weight_files
from rea2seg.cli import DONE, FAILED, Parser, add_pipeline_options, chosen_config, run, table
from rea2seg.config import ROOT, Config
from rea2seg.devices import Precision
from rea2seg.errors import Rea2SegError, reason
from rea2seg.findings import GIGABYTE, Finding, Footprint, peak
from rea2seg.infer import answer
from rea2seg.pipeline import Rea2Seg
from rea2seg.structures import Query
from rea2seg.synth import SgdrSynth

WEIGHTS = ("weights", "adapter", "vision_tower", "token_decoder", "token_heads")
"""The arguments of seats that are places of weights."""
PLANS: tuple[tuple[str, Precision | None, bool | None], ...] = (
    ("as configured", None, None),
    ("--offload", None, True),
    ("--precision bfloat16", "bfloat16", False),
    ("--precision bfloat16 --offload", "bfloat16", True),
    ("--precision int8", "int8", False),
    ("--precision nf4", "nf4", False),
    ("--precision nf4 --offload", "nf4", True),
)
CARDS = (16, 24, 48, 80)
"""GiB of common GPUs."""
FREE = 0.1
"""Ours: the share of a GPU that is left to CUDA itself and to fragments."""


@dataclass(frozen=True)
class Row:
    """A line of the report; what failed says what is wrong and how to mend it."""

    part: str
    passed: bool
    check: str
    detail: str


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(lambda: _doctor(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m rea2seg.doctor", description="Check a pipeline's weights without loading them.")
    add_pipeline_options(parser)
    parser.add_argument("--run", action="store_true", help="also load everything and answer a question about a drawing")
    return parser.parse_args(arguments)


def _doctor(options: argparse.Namespace) -> int:
    config = chosen_config(options)
    places: dict[str, Path] = {}
    rows = [_show(row) for row in cached_rows(config, places)]
    local = config.placed(places)
    footprints: list[Footprint] = []
    hashed: set[Path] = set()
    for part, kind, settings in examinable(local.seats):
        named = [str(settings[name]) for name in WEIGHTS if settings.get(name) is not None]
        if absent := [address for address in named if address.startswith(ROOT)]:
            rows.append(_show(Row(part, False, "weights", f"not examined without {', '.join(absent)}")))
            continue
        rows += [_show(row) for row in hash_rows(part, map(Path, named), hashed)]
        rows += [_show(row) for row in examined(part, kind, settings, footprints)]
    if footprints:
        print(f"\n{memory_table(footprints)}\n")
    if options.run and all(row.passed for row in rows):
        rows += [_show(row) for row in run_rows(local)]
    failed = sum(not row.passed for row in rows)
    print(f"{len(rows) - failed} checks passed, {failed} failed")
    return FAILED if failed else DONE


def _show(row: Row) -> Row:
    """Said as soon as it is known: hashing and loading take their time."""
    print(f"{'ok' if row.passed else 'FAIL':5} {row.part:10} {row.check:9} {row.detail}", flush=True)
    return row


def cached_rows(config: Config, places: dict[str, Path]) -> Iterator[Row]:
    """Whether what the config takes from the hub is in the local cache; where it is, goes to `places`."""
    for name, source in config.repositories.items():
        try:
            places[name] = fetched(source, download=False)
            yield Row(name, True, "files", f"{source.repo} at {source.revision}: {places[name]}")
        except Rea2SegError as error:
            yield Row(name, False, "files", str(error))


def examinable(node: Any, part: str = "") -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Every seat of a config, however deep, whose class can be examined: its name, the class, its arguments."""
    if isinstance(node, Mapping) and "class_path" in node:
        module, _, name = node["class_path"].rpartition(".")
        kind, settings = getattr(import_module(module), name), node.get("init_args") or {}
        if hasattr(kind, "examine"):
            yield part, kind, settings
        yield from examinable(settings, part)
    elif isinstance(node, Mapping):
        for key, inner in node.items():
            yield from examinable(inner, key)
    elif isinstance(node, list):
        for inner in node:
            yield from examinable(inner, part)


def hash_rows(part: str, places: Iterable[Path], hashed: set[Path]) -> Iterator[Row]:
    """Whether the files at these places are those that were published, where that is known; no file twice."""
    for file in (file for place in places for file in _files(place) if file not in hashed):
        hashed.add(file)
        try:
            if (told := verify(file)) is not None:
                yield Row(part, True, "hash", told)
        except Rea2SegError as error:
            yield Row(part, False, "hash", str(error))


def _files(place: Path) -> list[Path]:
    try:
        return weight_files(place) if (place / "config.json").is_file() else [only_file(place)]
    except Rea2SegError:
        return []  # the examination of the seat says what is wrong


def examined(part: str, kind: Any, settings: Mapping[str, Any], footprints: list[Footprint]) -> Iterator[Row]:
    """The findings about one seat, up to the first fault; what it needs of memory is added to `footprints`."""
    try:
        for found in kind.examine(**settings):
            if isinstance(found, Finding):
                yield Row(part, True, found.check, found.detail)
            else:
                footprints.append(found)
    except Rea2SegError as error:
        yield Row(part, False, "weights", " ".join(str(error).split()))


def memory_table(footprints: Sequence[Footprint]) -> str:
    """Gigabytes on one GPU for each way to place the models, and the smallest common card that holds them."""
    here = torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else None
    rows = []
    for name, precision, offload in PLANS:
        needed = peak(footprints, precision, offload)
        card = next((f"{size} GB" for size in CARDS if needed < (1 - FREE) * size * 2**30), "several")
        fits = "" if here is None else ("fits" if needed < (1 - FREE) * here else "too large")
        rows.append([name, f"{needed / GIGABYTE:.2f}", card, fits])
    return table(["memory, estimated", "GB", "card", "this GPU" if here else ""], rows)


def run_rows(config: Config) -> Iterator[Row]:
    """Loads everything and answers one question about a drawing, which only mini can be expected to understand."""
    sample = SgdrSynth("val", 0).sample(0)
    seconds: dict[str, float] = {}
    try:
        pipe = Rea2Seg(**config.build())
        yield Row("pipeline", True, "load", "every model is loaded")
        result = answer(pipe, Query(sample.image, sample.query, sample.id), seconds)
    except (Rea2SegError, RuntimeError) as error:
        # RuntimeError: what torch raises where memory, devices or kernels fail, which this run is to find out.
        done = ", ".join(seconds) or "nothing"
        yield Row("pipeline", False, "run", f"{reason(error)} (done before: {done})")
        return
    spent = ", ".join(f"{step} {time:.1f} s" for step, time in seconds.items())
    yield Row("pipeline", True, "run", f"{len(result.scenes)} target(s), {len(result.ranking)} candidates; {spent}")
    for scene in result.scenes:
        if scene.grounding is not None and scene.initial is not None:
            numbers = (scene.grounding.token, scene.grounding.attention, scene.initial.lowres)
            finite = all(bool(tensor.isfinite().all()) for tensor in numbers)
            told = "are finite" if finite else "are not finite: try --precision float32"
            yield Row("generator", finite, "numbers", f"prompt token, attention and initial mask {told}")
    fallbacks = sum(score.fallback for score in result.ranking.scores)
    told = f"{fallbacks} of {len(result.ranking)} candidates could not be scored"
    yield Row("evaluator", fallbacks == 0, "numbers", told)
    if torch.cuda.is_available():
        cards = range(torch.cuda.device_count())
        spent = ", ".join(f"{torch.cuda.max_memory_allocated(card) / GIGABYTE:.2f} GB" for card in cards)
        yield Row("pipeline", True, "memory", f"{spent} at the most")


if __name__ == "__main__":
    sys.exit(main())
