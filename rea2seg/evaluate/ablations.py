"""python -m rea2seg.evaluate.ablations --table configs/evaluate/ablations.yaml --benchmark sgdr-synth --limit 200

A pipeline and its variants on the same samples. The rows of every variant and shuffle are kept in a folder of its own,
so that an interrupted command goes on where it was, and that a new variant runs alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rea2seg.cli import DONE, Parser, add_pipeline_options, chosen_config, run
from rea2seg.config import Config, load_config
from rea2seg.errors import ConfigError
from rea2seg.evaluate.ablation_tables import NOTE, sentences, tables_of
from rea2seg.evaluate.benchmarks import add_benchmark_options, asked_of, benchmark_of
from rea2seg.evaluate.effects import Outcome, outcomes_of
from rea2seg.evaluate.judging import measure
from rea2seg.evaluate.plots import differences_plot
from rea2seg.evaluate.records import Records, fill, fingerprint_of
from rea2seg.evaluate.results import Results, rounded
from rea2seg.evaluate.rows import Row
from rea2seg.evaluate.sharing import Common, Workshop
from rea2seg.evaluate.templates import rendered, write_text
from rea2seg.evaluate.variants import PIPELINE, Table, Variant, changed, read_table
from rea2seg.evaluate.workers import Judge
from rea2seg.metrics import PRESETS, Convention
from rea2seg.output import remove, writable_folder, write_json
from rea2seg.pipeline import Rea2Seg
from rea2seg.structures import Query, Sample

NAME = "ablations"


@dataclass(frozen=True, eq=False)
class Trial:
    """A variant with one of its shuffles, and the rows found so far."""

    variant: Variant
    config: Config
    command: dict[str, Any]
    records: Records


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(lambda: _ablate(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m rea2seg.evaluate.ablations", description="Compare a pipeline with its variants.")
    parser.add_argument("--table", type=Path, required=True, help="a YAML file of variants")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="these variants alone")
    add_benchmark_options(parser)
    add_pipeline_options(parser)
    parser.add_argument("--out", type=Path, help=f"folder for {NAME}.json, .md and .html, and for the rows")
    return parser.parse_args(arguments)


def _ablate(options: argparse.Namespace) -> int:
    """Check everything, go through the samples that are not done yet, report."""
    benchmark, config, table = benchmark_of(options), chosen_config(options).local(), read_table(options.table)
    configs, same = _configs(config, table.only(options.only) if options.only else table, options)
    folder = None if options.out is None else writable_folder(options.out)
    command, convention = asked_of(options, benchmark, config), PRESETS[options.preset]
    trials = list(_trials(configs, table.shuffles, folder, command, benchmark.pictures, convention))
    for name in (f"{NAME}.json", f"{NAME}.md", f"{NAME}.html"):
        if folder is not None:
            remove(folder / name)  # of an earlier run, which may have been another
    load_judge = partial(_load_judge, options, [trial.config for trial in trials])
    ids = fill([trial.records for trial in trials], benchmark.count, "ranking", load_judge, options.workers)
    _report(folder, command, outcomes_of(_runs(trials, ids), convention), same)
    return DONE


def _configs(config: Config, table: Table, options: argparse.Namespace) -> tuple[dict[Variant, Config], list[str]]:
    """The configs of the pipeline and of every variant that differs from it, checked; the names of the others."""
    configs, same = {Variant(PIPELINE, spread=True): config}, []
    for variant in table.variants:
        try:
            # Checked like a config that someone wrote, as it names new arguments and weights; seeds are set by now.
            seats = variant.of(config).seats
            own = load_config(options.config, options.weights, options.device, **seats).local()
        except ConfigError as error:
            raise ConfigError(f"variant {variant.name!r}: {error}") from error
        if own.text() == config.text():
            same.append(variant.name)
        else:
            configs[variant] = own
    return configs, same


def _shuffles(config: Config, count: int) -> Iterator[Config]:
    """The config with its own seed of the shuffle, and with those that follow if its selector has one."""
    selector = config.seats["selector"]
    # A function has no arguments, and so no seed.
    seed: int | None = selector.get("init_args", {}).get("seed") if isinstance(selector, dict) else None
    yield config
    for other in [] if seed is None else range(seed + 1, seed + count):
        yield changed(config, "selector.seed", other)


def _trials(
    configs: Mapping[Variant, Config],
    shuffles: int,
    folder: Path | None,
    command: dict[str, Any],
    pictures: Sequence[str],
    convention: Convention,
) -> Iterator[Trial]:
    """Every variant with each of its shuffles, and with what is kept of it in a folder of its own."""
    for variant, config in configs.items():
        for shuffle, own in enumerate(_shuffles(config, shuffles if variant.spread else 1)):
            asked = {**command, "variant": variant.name, "shuffle": shuffle}
            place = None if folder is None else writable_folder(folder / variant.folder / f"shuffle_{shuffle}")
            records = Records(place, asked, fingerprint_of(asked, own, pictures), convention)
            yield Trial(variant, own, asked, records)


def _load_judge(options: argparse.Namespace, configs: Sequence[Config]) -> Judge:
    """The judge of one run for each of these configs; loads the weights."""
    workshop, benchmark, convention = Workshop(), benchmark_of(options), PRESETS[options.preset]
    pipelines = [workshop.pipeline(config) for config in configs]

    def judge_sample(index: int, runs: Sequence[int]) -> Iterator[Row]:
        sample = benchmark.sample(index)
        common = Common(Query.of(sample.image, sample.query, sample.id))
        return (_row(pipelines[run], sample, common, convention, options.seed) for run in runs)

    return judge_sample


@torch.no_grad()
def _row(pipe: Rea2Seg, sample: Sample, common: Common, convention: Convention, seed: int) -> Row:
    scenes = common.scenes(pipe)
    ranking = pipe.rank(scenes, common.candidates(pipe, scenes))
    return measure(pipe, sample, scenes, ranking, convention, seed)


def _runs(trials: Sequence[Trial], ids: Sequence[str]) -> dict[Variant, list[list[Row]]]:
    """The rows of every variant, one list for each shuffle, in the benchmark's order; on disk they are then whole."""
    runs: dict[Variant, list[list[Row]]] = {}
    for trial in trials:
        rows = [trial.records.rows[id] for id in ids]
        results = Results.of(rows, trial.records.convention)
        trial.records.finish(ids, {"version": version("rea2seg"), "command": trial.command, **results.to_json()})
        runs.setdefault(trial.variant, []).append(rows)
    return runs


def _report(folder: Path | None, command: dict[str, Any], outcomes: Sequence[Outcome], same: Sequence[str]) -> None:
    """The tables and what they say, printed and, where there is a folder, written."""
    tables, told = tables_of(outcomes), sentences(outcomes, same)
    if folder is not None:
        found = {"outcomes": [outcome.to_json() for outcome in outcomes], "sentences": told}
        write_json(folder / f"{NAME}.json", {"version": version("rea2seg"), "command": command, **rounded(found)})
        listed = "\n".join(f"- {line}" for line in told)
        write_text(folder / f"{NAME}.md", "\n\n".join([*(one.markdown() for one in tables), NOTE, listed]) + "\n")
        page = rendered("ablations.html.jinja", command, tables=tables, told=told, note=NOTE, plot=_plot(outcomes))
        write_text(folder / f"{NAME}.html", page)
    print("\n\n".join([*(one.text() for one in tables), NOTE, "\n".join(told)]))


def _plot(outcomes: Sequence[Outcome]) -> str:
    """The differences as a diagram; nothing if there is no variant."""
    names = [one.variant.name for one in outcomes[1:]]
    gaps = {key: [one.headline.differences[key] for one in outcomes[1:]] for key in ("top1", "oracle")}
    return differences_plot(names, gaps) if names else ""


if __name__ == "__main__":
    sys.exit(main())
