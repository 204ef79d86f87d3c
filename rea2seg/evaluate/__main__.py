"""python -m rea2seg.evaluate --benchmark sgdr-synth --split test --limit 400 --out out/eval"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rea2seg.cli import DONE, Parser, add_pipeline_options, chosen_config, natural, positive, run
from rea2seg.config import Config
from rea2seg.errors import ConfigError, InputError
from rea2seg.evaluate.benchmarks import NAMES, Benchmark, open_benchmark
from rea2seg.evaluate.judging import Row, judge
from rea2seg.evaluate.records import Records, fingerprint_of, read_command, read_rows
from rea2seg.evaluate.report import category_rows, comparison_table, difference_table, failure_line, metric_table
from rea2seg.metrics import PRESETS
from rea2seg.output import writable_folder
from rea2seg.pipeline import Rea2Seg

SEARCHES = {"prompt": "PromptSearch", "core": "CoreSearch", "attention": "AttentionSearch"}
PAIRED = ("benchmark", "samples", "split", "data_seed", "preset")
"""What two runs must have in common, beside the ids, for their rows to be of the same questions and masks."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(lambda: _evaluate(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m rea2seg.evaluate", description="Measure a pipeline on a benchmark.")
    parser.add_argument("--benchmark", choices=NAMES, required=True)
    parser.add_argument("--root", type=Path, help="the folder of a jsonl benchmark: images/ and samples.jsonl")
    parser.add_argument("--split", default="test", help="(default: test)")
    parser.add_argument(
        "--data-seed", type=natural, default=0, help="of a drawn benchmark (default: 0, the shipped one)"
    )
    parser.add_argument("--limit", type=positive, help="the first samples only")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="lisa", help="how IoU is counted (default: lisa)")
    parser.add_argument("--without", choices=sorted(SEARCHES), nargs="+", action="extend", default=[], help="ablation")
    add_pipeline_options(parser)
    parser.add_argument("--out", type=Path, help="folder for metrics.json and per_sample.jsonl")
    parser.add_argument("--compare", type=Path, help="the folder of another run on the same samples")
    return parser.parse_args(arguments)


def _evaluate(options: argparse.Namespace) -> int:
    """Check everything, load, go through the samples that are not done yet, report."""
    benchmark = open_benchmark(options.benchmark, options.root, options.split, options.data_seed, options.limit)
    config = _without(chosen_config(options), options.without)
    command, convention = _command(options, benchmark, config), PRESETS[options.preset]
    others = _other_run(options.compare, command)
    folder = None if options.out is None else writable_folder(options.out)
    pipe = Rea2Seg(**config.build())
    records = Records(folder, command, fingerprint_of(command, config), convention)
    rows = _rows(pipe, benchmark, records, options.seed)
    summaries = category_rows(rows, convention)
    records.finish([row.id for row in rows], {"version": version("rea2seg"), "command": command, "rows": summaries})
    print(metric_table(summaries, "gIoU"), metric_table(summaries, "cIoU"), sep="\n\n", end="\n\n")
    print(difference_table(rows, convention), failure_line(rows), sep="\n\n")
    if others:
        print(f"\n{comparison_table(rows, others, convention)}")
    return DONE


def _other_run(folder: Path | None, command: dict[str, Any]) -> list[Row]:
    if folder is None:
        return []
    rows, other = list(read_rows(folder)), read_command(folder)
    if not rows:
        raise InputError(f"--compare: {str(folder)!r} holds no per_sample.jsonl of a run")
    if differing := [name for name in PAIRED if other.get(name) != command[name]]:
        raise InputError(f"--compare: {str(folder)!r} holds a run of another {', '.join(differing)}")
    return rows


def _without(config: Config, names: Sequence[str]) -> Config:
    """The config with some of its searches left out."""
    searches = [(search["class_path"].rsplit(".", 1)[-1], search) for search in config.seats["searches"]]
    for name in names:
        if SEARCHES[name] not in {own for own, _ in searches}:
            raise ConfigError(f"config {config.name} has no {name} search to leave out")
    kept = [search for own, search in searches if own not in {SEARCHES[name] for name in names}]
    if not kept:
        raise ConfigError("--without leaves no search to find candidates with")
    return replace(config, seats={**config.seats, "searches": kept})


def _command(options: argparse.Namespace, benchmark: Benchmark, config: Config) -> dict[str, Any]:
    """What was asked, without paths and machines."""
    names = ("benchmark", "split", "data_seed", "seed", "preset", "reasoning")
    asked = {name: getattr(options, name) for name in names}
    asked |= {"samples": benchmark.stamp, "limit": benchmark.count}
    return {**asked, "without": sorted(set(options.without)), "config": config.name}


def _rows(pipe: Rea2Seg, benchmark: Benchmark, records: Records, seed: int) -> list[Row]:
    """One row for each sample, in the benchmark's order."""
    if records.rows:
        print(f"{len(records.rows)} samples are kept from an earlier run of the same command", file=sys.stderr)
    rows = []
    for index in tqdm(range(benchmark.count), unit="sample", disable=None):
        sample = benchmark.sample(index)
        if sample.id not in records.rows:
            records.add(judge(pipe, sample, benchmark.other_question(index), records.convention, seed))
        rows.append(records.rows[sample.id])
    return rows


if __name__ == "__main__":
    sys.exit(main())
