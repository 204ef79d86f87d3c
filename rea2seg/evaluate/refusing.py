"""python -m rea2seg.evaluate.refusing ANSWERABLE NO_TARGET: how well the best score tells that there is no target.

Two finished runs of `python -m rea2seg.evaluate`, one on questions that have an answer (split `val`, say), one on
questions that have none (split `no_target`, with another data seed than the one to report on). Their scores give the
threshold for `--no-target-below`, without running anything again; `--at` measures one that was chosen elsewhere.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from rea2seg.cli import DONE, Parser, fraction, run, table
from rea2seg.errors import InputError
from rea2seg.evaluate.comparing import Run, read_run
from rea2seg.evaluate.numerals import number
from rea2seg.evaluate.rows import Row


@dataclass(frozen=True)
class Refusals:
    """What a threshold on the best score does. `auroc` is the chance that an answerable question's best score is above
    that of one without target."""

    threshold: float
    refused: float
    """The share of questions without target that are refused, as they should be."""
    falsely: float
    """The share of answerable questions that are refused."""
    auroc: float

    @property
    def balanced(self) -> float:
        """The mean of the shares that are right on either side."""
        return (self.refused + 1 - self.falsely) / 2


def best_scores(rows: Sequence[Row]) -> Float[np.ndarray, " n"]:
    """The best estimate of every question, as the selector compares it with its threshold.

    Without candidates it is below any threshold; where all groups failed, above any.
    """
    known = [[found.score for found in row.ranking if found.score is not None] for row in rows]
    unknown = [math.inf if row.ranking else -math.inf for row in rows]
    return np.array([max(scores, default=other) for scores, other in zip(known, unknown, strict=True)])


def refusals_at(threshold: float, answerable: Float[np.ndarray, " n"], without: Float[np.ndarray, " m"]) -> Refusals:
    """What is refused if no score reaches the threshold."""
    refused, falsely = (float((scores < threshold).mean()) for scores in (without, answerable))
    ranks = rankdata(np.concatenate([answerable, without]))[: len(answerable)]
    above = ranks.sum() - len(answerable) * (len(answerable) + 1) / 2
    return Refusals(threshold, refused, falsely, float(above / (len(answerable) * len(without))))


def best_threshold(answerable: Float[np.ndarray, " n"], without: Float[np.ndarray, " m"]) -> Refusals:
    """The threshold with the best balance, to two decimals; of several the lowest, which refuses least."""
    found = [refusals_at(step / 100, answerable, without) for step in range(101)]
    return max(found, key=lambda one: one.balanced)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(lambda: _report(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m rea2seg.evaluate.refusing", description="Choose or measure --no-target-below.")
    parser.add_argument("answerable", type=Path, help="the folder of a run on questions that have an answer")
    parser.add_argument("no_target", type=Path, help="the folder of a run on questions that have none")
    parser.add_argument("--at", type=fraction, help="a threshold to measure instead of the best for these runs")
    return parser.parse_args(arguments)


ALIKE = ("config", "preset", "reasoning", "without", "seed")
"""What two runs must have in common for their scores to be of one pipeline, as far as a run tells."""


def _report(options: argparse.Namespace) -> int:
    runs = read_run(options.answerable), read_run(options.no_target)
    if differing := [name for name in ALIKE if runs[0].command.get(name) != runs[1].command.get(name)]:
        raise InputError(f"the two runs are of another {', '.join(differing)}: their scores cannot be compared")
    answerable, without = _scores(runs[0], True), _scores(runs[1], False)
    found = best_threshold(answerable, without) if options.at is None else refusals_at(options.at, answerable, without)
    head = ["--no-target-below", "refused without target", "refused falsely", "balanced accuracy", "AUROC"]
    values = [number(value) for value in (found.refused, found.falsely, found.balanced, found.auroc)]
    print(table(head, [[f"{found.threshold:.2f}", *values]]))
    print(f"{len(without)} questions without target, {len(answerable)} with one")
    return DONE


def _scores(asked: Run, answerable: bool) -> Float[np.ndarray, " n"]:
    """The best scores of a run. Raises `InputError` where a question is of the other kind, or nothing has a score."""
    if any(row.has_target != answerable for row in asked.rows):
        wanted = "has a target" if answerable else "has none"
        raise InputError(f"{str(asked.folder)!r} must be a run on questions each of which {wanted}")
    if not any(found.score is not None for row in asked.rows for found in row.ranking):
        raise InputError(f"{str(asked.folder)!r} holds no scores that a threshold could be for")
    return best_scores(asked.rows)


if __name__ == "__main__":
    sys.exit(main())
