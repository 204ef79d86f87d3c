"""Where the samples of an evaluation come from."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rea2seg.cli import Parser, natural, positive
from rea2seg.config import Config
from rea2seg.data.native import FILE, NativeDataset
from rea2seg.errors import InputError
from rea2seg.metrics import PRESETS
from rea2seg.structures import Sample
from rea2seg.synth import SgdrSynth
from rea2seg.synth.vocabulary import SIZES_OF_SPLITS, VERSION

NAMES = ("sgdr-synth", "jsonl")
ENDLESS = 400
"""Samples of a split without end, where no limit is given. Ours: 2 cores evaluate them in minutes."""


@dataclass(frozen=True)
class Benchmark:
    """`count` samples to evaluate, of `size` that there are; None is no end.

    `question` is the query of a sample, which may cost less than all of it. `stamp` differs where questions or masks
    do; `pictures` are the files of the images, if they lie in files.
    """

    count: int
    sample: Callable[[int], Sample]
    question: Callable[[int], str]
    size: int | None = None
    stamp: str = ""
    pictures: tuple[str, ...] = ()

    def other_question(self, index: int) -> str | None:
        """The question of the next sample that asks something else, the first following the last; None if none does."""
        own, size = self.question(index), self.size
        following = (index + step if size is None else (index + step) % size for step in range(1, size or 1000))
        return next((other for other in map(self.question, following) if other != own), None)


def open_benchmark(name: str, root: Path | None, split: str, data_seed: int, limit: int | None) -> Benchmark:
    """The benchmark of that name; `root` is a folder in the native form for `jsonl`."""
    if name == "sgdr-synth":
        if root is not None:
            raise InputError("sgdr-synth is drawn when it is needed: --root belongs to --benchmark jsonl")
        sample = lru_cache(4)(SgdrSynth(split, data_seed).sample)
        drawn = SIZES_OF_SPLITS[split]
        count = limit or ENDLESS if drawn is None else min(limit or drawn, drawn)
        return Benchmark(count, sample, lambda index: sample(index).query, drawn, f"version {VERSION}")
    if root is None:
        raise InputError("--benchmark jsonl needs --root DIR, a folder with images/ and samples.jsonl")
    dataset = NativeDataset(root, split)
    size = len(dataset)
    stamp = hashlib.sha256((root / FILE).read_bytes()).hexdigest()
    sample = lru_cache(4)(dataset.__getitem__)
    return Benchmark(min(limit or size, size), sample, dataset.question, size, stamp, dataset.pictures())


def add_benchmark_options(parser: Parser, required: bool = True) -> None:
    """The options that say what a pipeline is measured on, by how many processes, and how IoU is counted."""
    parser.add_argument("--benchmark", choices=NAMES, required=required, help="what to run on")
    parser.add_argument("--root", type=Path, help="the folder of a jsonl benchmark: images/ and samples.jsonl")
    parser.add_argument("--split", default="test", help="(default: test)")
    parser.add_argument(
        "--data-seed", type=natural, default=0, help="of a drawn benchmark (default: 0, the shipped one)"
    )
    parser.add_argument("--limit", type=positive, help="the first samples only")
    parser.add_argument(
        "--workers",
        type=positive,
        default=1,
        help="processes that share the samples; each loads the weights (default: 1)",
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="lisa", help="how IoU is counted (default: lisa)")


def benchmark_of(options: argparse.Namespace) -> Benchmark:
    """The benchmark that those options name."""
    return open_benchmark(options.benchmark, options.root, options.split, options.data_seed, options.limit)


def asked_of(options: argparse.Namespace, benchmark: Benchmark, config: Config) -> dict[str, Any]:
    """What was asked of a pipeline, without paths and machines."""
    names = ("benchmark", "split", "data_seed", "seed", "preset", "reasoning", "no_target_below")
    asked = {name: getattr(options, name) for name in names}
    return {**asked, "samples": benchmark.stamp, "limit": benchmark.count, "config": config.name}
