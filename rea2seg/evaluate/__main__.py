"""python -m rea2seg.evaluate --benchmark sgdr-synth --split test --limit 400 --out out/eval"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

from rea2seg.cli import DONE, Parser, add_pipeline_options, chosen_config, run
from rea2seg.evaluate.benchmarks import add_benchmark_options, asked_of, benchmark_of
from rea2seg.evaluate.comparing import Run, compare, comparison_json, comparison_table, read_run, require_paired
from rea2seg.evaluate.judging import load_judge
from rea2seg.evaluate.page import write_page
from rea2seg.evaluate.records import Records, fill, fingerprint_of
from rea2seg.evaluate.results import Results
from rea2seg.evaluate.tables import tables
from rea2seg.evaluate.variants import SEARCHES, without
from rea2seg.metrics import PRESETS
from rea2seg.output import writable_folder, write_json


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(lambda: _answer(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m rea2seg.evaluate", description="Measure a pipeline on a benchmark.")
    add_benchmark_options(parser, required=False)  # not with two runs to compare
    parser.add_argument("--without", choices=sorted(SEARCHES), nargs="+", action="extend", default=[], help="ablation")
    add_pipeline_options(parser)
    parser.add_argument("--out", type=Path, help="folder for report.html, metrics.json, per_sample.jsonl")
    parser.add_argument(
        "--compare",
        type=Path,
        nargs="+",
        metavar="RUN",
        default=[],
        help="the folder of another run on the same samples; two such folders are compared without running anything",
    )
    options = parser.parse_args(arguments)
    if len(options.compare) > 2:
        parser.error("--compare takes the folder of one run, or those of two")
    if len(options.compare) == 2 and options.benchmark:
        parser.error("--compare with two runs runs nothing: leave out --benchmark, or one of the runs")
    if len(options.compare) < 2 and not options.benchmark:
        parser.error("the following arguments are required: --benchmark")
    return options


def _answer(options: argparse.Namespace) -> int:
    if len(options.compare) == 2:
        first, second = map(read_run, options.compare)
        return _compare(first, second, options.out)
    return _evaluate(options)


def _compare(first: Run, second: Run, out: Path | None) -> int:
    """Two finished runs, sample by sample."""
    require_paired(first.command, second)
    lines = compare(first.rows, second.rows, PRESETS[first.command["preset"]])
    if out is not None:
        write_json(writable_folder(out) / "comparison.json", comparison_json(lines, first, second), sort_keys=True)
    print(comparison_table(lines, "first run", "second run"))
    return DONE


def _evaluate(options: argparse.Namespace) -> int:
    """Check everything, go through the samples that are not done yet, report."""
    benchmark = benchmark_of(options)
    config = without(chosen_config(options), options.without)
    command = {**asked_of(options, benchmark, config), "without": sorted(set(options.without))}
    convention = PRESETS[options.preset]
    others = [read_run(folder) for folder in options.compare]
    for other in others:
        require_paired(command, other)
    folder = None if options.out is None else writable_folder(options.out)
    config = config.local()  # what was downloaded lies in a folder of its commit, which the fingerprint then sees
    records = Records(folder, command, fingerprint_of(command, config, benchmark.pictures), convention)
    ids = fill([records], benchmark.count, "sample", partial(load_judge, options, config), options.workers)
    rows = [records.rows[id] for id in ids]
    results = Results.of(rows, convention)
    records.finish(ids, {"version": version("rea2seg"), "command": command, **results.to_json()})
    if folder is not None:
        write_page(folder, command, results, rows, benchmark, convention)
    print(tables(results))
    for other in others:
        print(f"\n{comparison_table(compare(rows, other.rows, convention), 'this run', 'the other')}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
