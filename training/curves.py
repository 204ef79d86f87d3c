"""Curves of training runs side by side, as one picture; and what a run logged, resumed or not, as one CSV.

python -m training.curves runs/mini/segmenter runs/mini/generator --out curves.png
python -m training.curves docs/curves/*.csv --measures val/iou/point val/accuracy/pointing --out docs/curves.png
python -m training.curves runs/mini/segmenter --csv segmenter.csv
"""

import argparse
import csv
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

from rea2seg.cli import DONE, Parser, run
from rea2seg.errors import InputError, reason
from rea2seg.output import replacing

Logged = dict[int, dict[str, float]]
"""By step, the values that a run logged there, by their names."""
COLUMNS = 2
FAMILY = "val/"


def logs_of(place: Path) -> list[Path]:
    """The CSV files of a run: the file itself, or those that Lightning wrote into a stage's folder, oldest first."""
    if not place.is_dir():
        return [place]
    found = (place / "log").glob("version_*/metrics.csv")
    return sorted(found, key=lambda path: int(path.parent.name.removeprefix("version_")))


def read_run(place: Path) -> Logged:
    """What a run logged. Where it was resumed, what was done twice counts as it was done last.

    Raises `InputError` where there is nothing to read.
    """
    logged: Logged = {}
    try:
        for path in logs_of(place):
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    values = {name: float(value) for name, value in row.items() if value and name != "step"}
                    logged.setdefault(int(row["step"]), {}).update(values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{str(place)!r} holds no curves: {reason(error)}") from error
    if not logged:
        raise InputError(f"{str(place)!r} holds no curves")
    return logged


def measures_of(runs: Iterable[Logged]) -> list[str]:
    """The names of all that was logged at validations, in order."""
    return sorted({name for run in runs for row in run.values() for name in row if name.startswith(FAMILY)})


def write_csv(logged: Logged, place: Path) -> None:
    """One row for each step, with a column for each name."""
    names = sorted({name for row in logged.values() for name in row} - {"epoch"})
    with replacing(place) as written, written.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", *names])
        for step, row in sorted(logged.items()):
            writer.writerow([step, *(f"{row[name]:.4g}" if name in row else "" for name in names)])


def draw(runs: dict[str, Logged], measures: Sequence[str], place: Path) -> None:
    """A PNG with a panel for each measure, and in it a line for each run that has it."""
    rows = -(-len(measures) // COLUMNS)
    figure = Figure(figsize=(5.5 * COLUMNS, 3 * rows), layout="constrained")
    panels = [*figure.subplots(rows, COLUMNS, squeeze=False).flat]
    strong, pale = range(0, 20, 2), range(1, 20, 2)
    colours = [colormaps["tab20"](index) for index in (*strong, *pale)]
    for measure, axes in zip(measures, panels, strict=False):
        axes.set_prop_cycle(color=colours)
        for name, logged in runs.items():
            points = [(step + 1, row[measure]) for step, row in sorted(logged.items()) if measure in row]
            if points:
                axes.plot(*zip(*points, strict=True), "o-", ms=3, lw=1.2, label=name)
        axes.set(title=measure, xlabel="steps")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    for unused in panels[len(measures) :]:
        unused.remove()
    with replacing(place) as written:
        figure.savefig(written, format="png", dpi=110)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(lambda: _answer(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m training.curves", description="Draw the curves of training runs.")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of stages, or CSV files")
    parser.add_argument("--measures", nargs="+", metavar="NAME", help="these alone; without, all of validation")
    parser.add_argument("--out", type=Path, help="the picture, a PNG")
    parser.add_argument("--csv", type=Path, help="all that a single run logged")
    options = parser.parse_args(arguments)
    if options.out is None and options.csv is None:
        parser.error("give --out, --csv or both")
    if options.csv is not None and len(options.runs) > 1:
        parser.error("--csv takes a single run")
    return options


def _answer(options: argparse.Namespace) -> int:
    alike = len({place.stem for place in options.runs}) < len(options.runs)
    runs = {str(place) if alike else place.stem: read_run(place) for place in options.runs}
    if options.csv is not None:
        write_csv(next(iter(runs.values())), options.csv)
    if options.out is not None:
        known = measures_of(runs.values())
        if not known:
            raise InputError("no run was validated: there is nothing to draw")
        if unknown := sorted({*(options.measures or [])} - {*known}):
            raise InputError(f"no run has the measure {unknown[0]!r}: known are {', '.join(known)}")
        draw(runs, options.measures or known, options.out)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
