"""Examples as an evaluator might have read them: at inference it goes on from words and scores of its own."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rea2seg.synth.descriptions import COLUMNS
from rea2seg.synth.worlds import pick
from training.examples import Example

CELL = re.compile(rf"\b[{COLUMNS}][0-9]\b")
"""Where something is, as `rea2seg.synth.descriptions.cell` says it."""


def beside(rng: np.random.Generator, cell: str) -> str:
    """A cell that shares an edge with this one."""
    place = np.array([COLUMNS.index(cell[0]), int(cell[1])])
    near = place + pick(rng, [(0, 1), (0, -1), (1, 0), (-1, 0)])
    column, row = np.where((near < 0) | (near > 9), 2 * place - near, near)
    return f"{COLUMNS[column]}{row}"


def misread_scores(rng: np.random.Generator, scores: Sequence[float]) -> list[float]:
    """Scores as an evaluator might have written them: each some way off, one in seven anything. Ours."""
    near = np.clip(rng.normal(scores, 0.2), 0.0, 1.0)
    anything = rng.random(len(scores))
    read: list[float] = np.where(rng.random(len(scores)) < 0.15, anything, near).tolist()
    return read


def misread(rng: np.random.Generator, example: Example) -> Example:
    """The example as an evaluator might have read it: of all things three in ten are seen a cell beside their own, in
    all that is said of them, and in three of ten the answer is any of the cells that were named. Scores, and the words
    for them, are those of `misread_scores`. Ours."""
    named = sorted(set(CELL.findall(example.reasoning)))
    everything = sorted(set(CELL.findall(" ".join([example.reasoning, *example.under]))))
    seen = {cell: beside(rng, cell) if rng.random() < 0.3 else cell for cell in everything}
    steps, mark, answer = example.reasoning.rpartition("answer:")
    if rng.random() < 0.3:
        answer = CELL.sub(lambda _: pick(rng, named), answer)

    def as_seen(words: str) -> str:
        return CELL.sub(lambda found: seen[found[0]], words)

    reasoning, under = as_seen(steps + mark + answer), [as_seen(words) for words in example.under]
    return replace(example, reasoning=reasoning, under=under, scores=misread_scores(rng, example.scores))
