"""The results for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rea2seg.cli import table
from rea2seg.evaluate.calibration import Calibration
from rea2seg.evaluate.coverage import LEVELS, Recall
from rea2seg.evaluate.numerals import ends, number, percent, signed, signed_ends
from rea2seg.evaluate.results import Results, Summary
from rea2seg.metrics import Interval

FIRST = (1, 2, 3, 5, 10, 15)
"""The K that a terminal has room for."""


def tables(results: Results) -> str:
    """Everything, one table after the other."""
    parts = [
        giou_table(results.summaries),
        ciou_table(results.summaries),
        gain_table(results),
        best_of_first_table(results.best_of_first),
        recall_table(results.recall),
        calibration_table(results.calibration),
        closing_lines(results),
    ]
    return "\n\n".join(part for part in parts if part)


def giou_table(summaries: Sequence[Summary]) -> str:
    """One line for each group, one column for each key, and how much of what could be gained the ranking gains."""
    keys = list(summaries[0].giou)
    lines = [
        [one.label, str(one.n), *(number(one.giou[key].mean) for key in keys), percent(one.efficiency)]
        for one in summaries
    ]
    return table(["gIoU", "n", *keys, "efficiency"], lines)


def ciou_table(summaries: Sequence[Summary]) -> str:
    """The same for cIoU."""
    keys = list(summaries[0].ciou)
    return table(["cIoU", "n", *keys], [[s.label, str(s.n), *(number(s.ciou[key]) for key in keys)] for s in summaries])


def gain_table(results: Results) -> str:
    """The average's gIoU of every key with its interval, and what top1 is better by."""
    means = results.headline.giou
    gains = {key: [signed(gain.mean), signed_ends(gain)] for key, gain in results.gains.items()}
    lines = [[key, number(mean.mean), ends(mean), *gains.get(key, ["", ""])] for key, mean in means.items()]
    return table([f"gIoU: {results.headline.label}", "mean", "95% interval", "top1 minus it", "95% interval"], lines)


def best_of_first_table(curves: dict[str, list[Interval]]) -> str:
    """The curves at some K."""
    lines = [[name, *(number(line[k - 1].mean) for k in FIRST)] for name, line in curves.items()]
    return table(["gIoU: best of the first K by", *(f"K={k}" for k in FIRST)], lines) if lines else ""


def recall_table(recall: Sequence[Recall]) -> str:
    """What each search finds."""
    head = ["candidates of", *(f"IoU >= {level}" for level in LEVELS), "mean best IoU", "mean count", "best alone"]
    lines = [
        [one.source, percent(one.at_50), percent(one.at_75), number(one.best), f"{one.count:.1f}", percent(one.alone)]
        for one in recall
    ]
    return table(head, lines) if lines else ""


def calibration_table(calibration: Sequence[Calibration]) -> str:
    """How far the evaluator's score and the segmenter's quality can be believed."""
    head = ["estimate of IoU", "candidates", "Spearman within", "95% interval", "pooled", "ECE", "mean error", "bias"]
    lines = [
        [
            one.estimate,
            str(one.candidates),
            number(one.within.mean),
            ends(one.within),
            number(one.pooled),
            *(number(value) for value in (one.ece, one.error)),
            signed(one.bias),
        ]
        for one in calibration
    ]
    return table(head, lines) if lines else ""


def closing_lines(results: Results) -> str:
    """What could not be scored, as a share of what was to be, and what the tables above leave out."""
    share = f" ({100 * results.fallback / results.groups:.2f}%)" if results.groups else ""
    told = [
        f"{results.fallback} of {results.groups} groups fell back{share};"
        f" {results.no_candidates} samples without candidates"
    ]
    constant = [f"{one.constant} by {one.estimate}" for one in results.calibration if one.constant]
    if constant:
        told.append(f"samples without a Spearman, since they have too few values or equal ones: {', '.join(constant)}")
    if results.no_target:
        told.append(f"{results.no_target} samples have no target: recall and calibration leave them out")
    if results.refused or results.falsely_refused:
        told.append(
            f"answered with no target: {results.refused} of the {results.no_target} samples that have none,"
            f" {results.falsely_refused} that have one"
        )
    return "\n".join(told)
