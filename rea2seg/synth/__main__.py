"""python -m rea2seg.synth --split test --seed 0 --count 64 --out out/synth --sheet"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from rea2seg.cli import DONE, Parser, natural, positive, run
from rea2seg.data.native import write_native
from rea2seg.output import write_picture
from rea2seg.structures import Sample
from rea2seg.synth.dataset import SgdrSynth
from rea2seg.synth.render import SIDE
from rea2seg.synth.sheet import COLUMNS, contact_sheet
from rea2seg.synth.vocabulary import SPLITS

_ON_A_SHEET = 5 * COLUMNS
_SIDES = (160, 2048)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(lambda: _synth(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m rea2seg.synth", description="Write a part of SGDR-Synth as a dataset.")
    parser.add_argument("--split", choices=SPLITS, default="test", help="(default: test)")
    parser.add_argument("--seed", type=natural, default=0, help="data seed; the benchmark is seed 0 (default: 0)")
    parser.add_argument("--count", type=positive, required=True, help="how many samples, from the first on")
    parser.add_argument("--out", type=Path, required=True, help="folder for images/ and samples.jsonl")
    parser.add_argument("--side", type=int, default=SIDE, help=f"long side of the pictures (default: {SIDE})")
    parser.add_argument(
        "--sheet", action="store_true", help="also draw contact sheets: one of each component, one of all"
    )
    options = parser.parse_args(arguments)
    if not _SIDES[0] <= options.side <= _SIDES[1]:
        parser.error(f"--side must be from {_SIDES[0]} to {_SIDES[1]}, not {options.side}")
    return options


def _synth(options: argparse.Namespace) -> int:
    """Write the first samples of a split, and sheets of those that come first in each component."""
    dataset = SgdrSynth(options.split, options.seed, options.side)
    shown: defaultdict[str, list[Sample]] = defaultdict(list)

    def drawn() -> Iterator[Sample]:
        for sample in tqdm(dataset.samples(options.count), total=options.count, unit="sample", disable=None):
            if options.sheet and len(shown[sample.component]) < _ON_A_SHEET:
                shown[sample.component].append(sample)
            yield sample

    count = write_native(drawn(), options.out)
    for component, samples in shown.items():
        write_picture(options.out / f"sheet-{component.replace(' ', '-')}.png", contact_sheet(samples))
    if shown:
        write_picture(options.out / "sheet.png", contact_sheet([samples[0] for samples in shown.values()]))
    print(f"{count} samples in {options.out}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
