"""Two runs on the same samples, compared sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rea2seg.cli import table
from rea2seg.errors import InputError
from rea2seg.evaluate.groups import Group, groups_of, ious, shared_keys
from rea2seg.evaluate.numerals import number, signed, signed_ends
from rea2seg.evaluate.records import COMMAND, METRICS, ROWS, read_command, read_rows
from rea2seg.evaluate.results import rounded
from rea2seg.evaluate.rows import Row
from rea2seg.metrics import PERMUTATIONS, PRESETS, Convention, Interval, bootstrap, sign_flip, stratified_mean

PAIRED = ("benchmark", "samples", "split", "data_seed", "preset")
"""What two runs must have in common, beside the ids, for their rows to be of the same questions and masks."""


@dataclass(frozen=True)
class Run:
    """A finished evaluation: what was asked, and the rows of its samples in the benchmark's order."""

    folder: Path
    command: dict[str, Any]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Difference:
    """The first run's gIoU minus the second's, with its interval and the p-value of the sign-flip test."""

    label: str
    n: int
    key: str
    first: float
    second: float
    difference: Interval
    p: float


def read_run(folder: Path) -> Run:
    """The run in a folder. Raises `InputError` where there is none, or none that came to its end."""
    rows, command = tuple(read_rows(folder)), read_command(folder)
    if not rows or command.get("preset") not in PRESETS:
        raise InputError(f"{str(folder)!r} holds no {ROWS} and {COMMAND} of a run")
    if not (folder / METRICS).exists():
        raise InputError(f"the run in {str(folder)!r} has not come to its end: give its command again")
    return Run(folder, command, rows)


def require_paired(command: dict[str, Any], other: Run) -> None:
    """Refuses a run on other questions, masks or conventions than those of a command, or on fewer samples."""
    if differing := [name for name in PAIRED if other.command.get(name) != command.get(name)]:
        raise InputError(f"--compare: {str(other.folder)!r} holds a run of another {', '.join(differing)}")
    # Rows are those of the benchmark's first samples.
    if lacking := max(command["limit"] - len(other.rows), 0):
        raise InputError(f"--compare: the run in {str(other.folder)!r} lacks {lacking} of these samples")


def compare(rows: Sequence[Row], others: Sequence[Row], convention: Convention) -> list[Difference]:
    """Group by group, the keys that both runs have; samples that only the other run has are left out."""
    known = {row.id: row for row in others}
    if missing := [row.id for row in rows if row.id not in known]:
        raise InputError(f"--compare: the other run lacks {len(missing)} of these samples, such as {missing[0]!r}")
    keys = shared_keys([*rows, *(known[row.id] for row in rows)])
    return [line for group in groups_of(rows) for line in _differences(group, known, keys, convention)]


def comparison_table(lines: Sequence[Difference], first: str, second: str) -> str:
    """The differences as text; keys in which no sample differs are only named."""
    same = [key for key in _keys(lines) if all(line.difference == _NOTHING for line in lines if line.key == key)]
    told = [_cells(line) for line in lines if line.key not in same]
    head = [f"gIoU: {first} minus {second}", "n", "key", first, second, "difference", "95% interval", "p"]
    note = f"p: paired sign-flip test, {PERMUTATIONS} permutations, seed 0; not corrected for the number of lines"
    return "\n".join([table(head, told), note, *([f"no sample differs in: {', '.join(same)}"] if same else [])])


def comparison_json(lines: Sequence[Difference], first: Run, second: Run) -> dict[str, Any]:
    """The same for `comparison.json`: what was compared, and every line."""
    asked = {"first": _asked(first), "second": _asked(second), "permutations": PERMUTATIONS}
    return {**asked, "rows": rounded([asdict(line) for line in lines])}


_NOTHING = Interval(0.0, 0.0, 0.0)


def _asked(run: Run) -> dict[str, Any]:
    return {name: value for name, value in run.command.items() if name != "fingerprint"}


def _keys(lines: Sequence[Difference]) -> list[str]:
    return list(dict.fromkeys(line.key for line in lines))


def _cells(line: Difference) -> list[str]:
    gap = line.difference
    means = [number(line.first), number(line.second), signed(gap.mean)]
    return [line.label, str(line.n), line.key, *means, signed_ends(gap), f"{line.p:.4f}"]


def _differences(group: Group, known: dict[str, Row], keys: Sequence[str], convention: Convention) -> list[Difference]:
    first = ious(group.rows, keys, convention)
    second = ious([known[row.id] for row in group.rows], keys, convention)
    means = [map(float, stratified_mean(values, group.strata)) for values in (first, second)]
    gaps, chances = bootstrap(first - second, group.strata), sign_flip(first - second, group.strata)
    found = zip(keys, *means, gaps, chances, strict=True)
    return [Difference(group.label, len(group.rows), *line) for line in found]
