"""`report.html`: the whole evaluation as one file that a browser shows without anything else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rea2seg.evaluate.benchmarks import Benchmark
from rea2seg.evaluate.pictures import Cases, Picture, pictures_of, telling_cases
from rea2seg.evaluate.plots import best_of_first_plot, calibration_plot, groups_plot, recall_plot
from rea2seg.evaluate.records import PAGE
from rea2seg.evaluate.results import Results
from rea2seg.evaluate.rows import Row
from rea2seg.evaluate.templates import rendered, write_text
from rea2seg.metrics import Convention

KINDS = {
    "category": "By category",
    "component": "By component",
    "granularity": "By granularity",
}


@dataclass(frozen=True)
class Shown:
    """A sample with its pictures."""

    row: Row
    query: str
    pictures: list[Picture]


def write_page(
    folder: Path,
    command: dict[str, Any],
    results: Results,
    rows: Sequence[Row],
    benchmark: Benchmark,
    convention: Convention,
) -> None:
    """Write the report of rows in the benchmark's order. Nothing is asked of a model."""
    write_text(folder / PAGE, page(command, results, list(_cases(rows, benchmark, convention))))


def page(command: dict[str, Any], results: Results, cases: Sequence[tuple[Cases, list[Shown]]]) -> str:
    """The report as HTML; all text from outside is escaped."""
    by_kind = {title: [one for one in results.summaries if one.kind == kind] for kind, title in KINDS.items()}
    return rendered(
        "page.html.jinja",
        command,
        results=results,
        headline=results.headline,
        tables={title: summaries for title, summaries in by_kind.items() if summaries},
        plots=_plots(results),
        cases=cases,
    )


def _plots(results: Results) -> dict[str, Markup]:
    initial = results.headline.giou.get("initial")
    plots = {"groups": groups_plot(results.summaries)}
    if results.best_of_first:
        plots["best_of_first"] = best_of_first_plot(results.best_of_first, None if initial is None else initial.mean)
    if results.recall:
        plots["recall"] = recall_plot(results.recall)
    if results.calibration:
        plots["calibration"] = calibration_plot(results.calibration)
    return plots


def _cases(rows: Sequence[Row], benchmark: Benchmark, convention: Convention) -> Iterator[tuple[Cases, list[Shown]]]:
    for cases in telling_cases(rows, convention):
        shown = []
        for place in cases.places:
            sample = benchmark.sample(place)
            shown.append(Shown(rows[place], sample.query, pictures_of(sample, rows[place], convention)))
        yield cases, shown
