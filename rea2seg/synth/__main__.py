"""python -m rea2seg.synth --split test --seed 0 --count 64 --out out/synth --sheet"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from rea2seg.data.native import write_native
from rea2seg.errors import InputError, OutputError, Rea2SegError
from rea2seg.structures import Sample
from rea2seg.synth.dataset import SgdrSynth, sgdr_synth
from rea2seg.synth.render import SIDE
from rea2seg.synth.sheet import COLUMNS, contact_sheet
from rea2seg.synth.vocabulary import SPLITS

_ON_A_SHEET = 5 * COLUMNS
_SIDES = (160, 2048)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = _Parser(prog="python -m rea2seg.synth", description="Write a part of SGDR-Synth as a dataset.")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--seed", type=int, default=0, help="data seed; the benchmark is seed 0 (default: 0)")
    parser.add_argument("--count", type=int, required=True, help="how many samples, from the first on")
    parser.add_argument("--out", type=Path, required=True, help="folder for images/ and samples.jsonl")
    parser.add_argument("--side", type=int, default=SIDE, help=f"long side of the pictures (default: {SIDE})")
    parser.add_argument("--sheet", action="store_true", help="also draw a contact sheet for each component")
    options = parser.parse_args(arguments)
    if options.count < 1:
        parser.error(f"--count must be 1 or more, not {options.count}")
    if options.seed < 0:
        parser.error(f"--seed must be 0 or more, not {options.seed}")
    if not _SIDES[0] <= options.side <= _SIDES[1]:
        parser.error(f"--side must be from {_SIDES[0]} to {_SIDES[1]}, not {options.side}")
    return options


def write(dataset: SgdrSynth, count: int, folder: Path, sheet: bool) -> None:
    """Write the first samples of a dataset, and sheets of those that come first in each component."""
    shown: defaultdict[str, list[Sample]] = defaultdict(list)

    def drawn() -> Iterator[Sample]:
        for sample in tqdm(dataset.samples(count), total=count, unit="sample", disable=None):
            if sheet and len(shown[sample.component]) < _ON_A_SHEET:
                shown[sample.component].append(sample)
            yield sample

    write_native(drawn(), folder)
    for component, samples in shown.items():
        file = folder / f"sheet-{component.replace(' ', '-')}.png"
        try:
            contact_sheet(samples).save(file)
        except OSError as error:
            raise OutputError(f"cannot write {str(file)!r}: {error.strerror or error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 unusable arguments, 130 interrupted."""
    try:
        options = parse(arguments)
        dataset = sgdr_synth(options.split, options.seed, options.side)
        write(dataset, options.count, options.out, options.sheet)
    except Rea2SegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(f"{options.count} samples in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
