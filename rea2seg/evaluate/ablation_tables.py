"""The outcomes of ablations as tables, for a terminal and for a README, and as plain sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rea2seg.cli import table
from rea2seg.evaluate.effects import Effect, Outcome
from rea2seg.evaluate.numerals import number, signed, signed_ends
from rea2seg.metrics import Interval

NOTE = (
    "Differences are paired, variant minus pipeline, with 95% bootstrap intervals. Where several shuffles are named,"
    " top1 and top3 are means over them, and the two numbers are the top1 of the worst and of the best shuffle."
)


@dataclass(frozen=True)
class TextTable:
    """A table of text: its head, and its lines."""

    head: list[str]
    lines: list[list[str]]

    def text(self) -> str:
        """For a terminal."""
        return table(self.head, self.lines)

    def markdown(self) -> str:
        """For a README."""
        rule = ["---"] * len(self.head)
        return "\n".join(f"| {' | '.join(line)} |" for line in (self.head, rule, *self.lines))


def tables_of(outcomes: Sequence[Outcome]) -> list[TextTable]:
    """The headline's table, then the differences by category where there are several."""
    tables = [headline_table(outcomes)]
    if len(outcomes[0].effects) > 1:
        tables += [category_table(outcomes, key) for key in ("top1", "oracle")]
    return tables


def headline_table(outcomes: Sequence[Outcome]) -> TextTable:
    """One line for each variant, the pipeline first."""
    first = outcomes[0].headline
    differences = ["top1 difference", "oracle difference"]
    head = [f"gIoU: {first.label}, n = {first.n}", "candidates", "top1", "shuffles", "top3", "oracle", *differences]
    return TextTable(head, [[one.variant.name, *_cells(one.headline)] for one in outcomes])


def category_table(outcomes: Sequence[Outcome], key: str) -> TextTable:
    """The difference in one key, one column for each category."""
    head = [f"{key} difference", *(f"{effect.label} ({effect.n})" for effect in outcomes[0].effects)]
    lines = [[one.variant.name, *(_gap(effect.differences[key]) for effect in one.effects)] for one in outcomes[1:]]
    return TextTable(head, lines)


def sentences(outcomes: Sequence[Outcome], same: Sequence[str]) -> list[str]:
    """What holds and what does not; `same` names the variants that are the pipeline itself."""
    initial = outcomes[0].headline.giou.get("initial")
    started = [] if initial is None else [f"The initial mask, before any search, has a gIoU of {number(initial)}."]
    itself = [f"The pipeline itself is: {', '.join(same)}."] if same else []
    return [*itself, *started, *(sentence(outcome) for outcome in outcomes[1:])]


def sentence(outcome: Outcome) -> str:
    """The claim that a variant is there to test, with a yes or a no; without a claim, whether it is better or worse."""
    variant, gaps = outcome.variant, outcome.headline.differences
    named = f"{variant.name} ({variant.shows})" if variant.shows else variant.name
    told = ", ".join(f"{key} {_gap(gaps[key])}" for key in ("top1", "oracle"))
    if variant.claim:
        return f"{variant.claim}: {'yes' if outcome.holds else 'no'}. Difference of {named}: {told}."
    return f"{named[0].upper()}{named[1:]}: {_verdict(gaps['top1'])}, {told}."


def _cells(effect: Effect) -> list[str]:
    means = [number(effect.giou[key]) for key in ("top1", "top3", "oracle")]
    shuffles = effect.by_shuffle
    spread = f"{len(shuffles)}: {number(min(shuffles))} to {number(max(shuffles))}" if len(shuffles) > 1 else ""
    gaps = [_gap(effect.differences[key]) if effect.differences else "" for key in ("top1", "oracle")]
    return [f"{effect.candidates:.1f}", means[0], spread, *means[1:], *gaps]


def _gap(difference: Interval) -> str:
    return f"{signed(difference.mean)} {signed_ends(difference)}"


def _verdict(difference: Interval) -> str:
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "no difference in top1 that stands out from chance"
