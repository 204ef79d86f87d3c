"""All numbers of an evaluation, from the rows of its samples: what `metrics.json`, the tables and the report show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np

from rea2seg.evaluate.calibration import Calibration, Estimate, calibrate
from rea2seg.evaluate.coverage import Recall, best_of_first, recall_by_source
from rea2seg.evaluate.groups import Group, Kind, average_of, groups_of, ious, shared_keys
from rea2seg.evaluate.rows import Row
from rea2seg.metrics import Convention, Interval, bootstrap, ciou


@dataclass(frozen=True)
class Summary:
    """One line of the tables. gIoU and cIoU by key; failures are numbers of groups and of samples."""

    kind: Kind
    name: str
    label: str
    n: int
    giou: dict[str, Interval]
    ciou: dict[str, float]
    fallback: int
    no_candidates: int

    @property
    def efficiency(self) -> float | None:
        """How much of what the ranking could gain it does gain: (top1 - initial) / (oracle - initial), of the means.

        None without an initial mask, or where no candidate is better than it.
        """
        if "initial" not in self.giou:
            return None
        top1, initial, oracle = (self.giou[key].mean for key in ("top1", "initial", "oracle"))
        return (top1 - initial) / (oracle - initial) if oracle > initial else None

    def to_json(self) -> dict[str, Any]:
        """A row of `metrics.json`."""
        return {
            "category": self.label,
            "n": self.n,
            "gIoU": {key: interval.mean for key, interval in self.giou.items()},
            "gIoU_95": {key: [interval.low, interval.high] for key, interval in self.giou.items()},
            "cIoU": self.ciou,
            "efficiency": self.efficiency,
            "failures": {"fallback": self.fallback, "no_candidates": self.no_candidates},
        }


@dataclass(frozen=True)
class Results:
    """What an evaluation found. `gains` are top1 minus every other key, averaged like `average`.

    `no_target` samples have a place in the rows and in `best_of_first`, where they count as the convention says, and
    none in `recall` and `calibration`: there is nothing that could be found. `refused` of them, and `falsely_refused`
    of the others, were answered with `no target`, which a threshold of the selector allows for.
    """

    summaries: list[Summary]
    gains: dict[str, Interval]
    best_of_first: dict[str, list[Interval]]
    recall: list[Recall]
    calibration: list[Calibration]
    no_target: int
    refused: int
    falsely_refused: int
    groups: int
    fallback: int
    no_candidates: int

    @property
    def headline(self) -> Summary:
        """The average, or where no sample counts for it, the one category that there is."""
        return next((one for one in self.summaries if one.kind == "average"), self.summaries[0])

    @classmethod
    def of(cls, rows: Sequence[Row], convention: Convention) -> Results:
        """All of it, from the rows alone."""
        keys = shared_keys(rows)
        estimates = (calibrate(rows, convention, estimate) for estimate in get_args(Estimate))
        return cls(
            summaries=[summarise(group, keys, convention) for group in groups_of(rows)],
            gains=_gains(average_of(rows), convention),
            best_of_first=best_of_first(rows, convention),
            recall=recall_by_source(rows, convention),
            calibration=[one for one in estimates if one.candidates],
            no_target=sum(not row.has_target for row in rows),
            refused=sum(row.no_target and not row.has_target for row in rows),
            falsely_refused=sum(row.no_target and row.has_target for row in rows),
            groups=sum(row.groups for row in rows),
            fallback=sum(row.fallback for row in rows),
            no_candidates=sum(not row.ranking for row in rows),
        )

    def to_json(self) -> dict[str, Any]:
        """What `metrics.json` says beside version and command: six decimals, null where there is no number."""
        found: dict[str, Any] = rounded(
            {
                "rows": [summary.to_json() for summary in self.summaries],
                "best_of_first": {name: [one.mean for one in line] for name, line in self.best_of_first.items()},
                "recall": [asdict(line) for line in self.recall],
                "calibration": [asdict(one) for one in self.calibration],
                "no_target": {
                    "samples": self.no_target,
                    "refused": self.refused,
                    "falsely_refused": self.falsely_refused,
                },
            }
        )
        return found


def summarise(group: Group, keys: Sequence[str], convention: Convention) -> Summary:
    """The line of one group; of the average every category counts alike, for cIoU too."""
    rows, strata = group.rows, group.strata or [""] * len(group.rows)
    parts = [[row for row, own in zip(rows, strata, strict=True) if own == name] for name in sorted(set(strata))]
    intervals = bootstrap(ious(rows, keys, convention), group.strata)
    return Summary(
        kind=group.kind,
        name=group.name,
        label=group.label,
        n=len(rows),
        giou=dict(zip(keys, intervals, strict=True)),
        ciou={key: float(np.mean([ciou([row.overlaps[key] for row in part]) for part in parts])) for key in keys},
        fallback=sum(row.fallback for row in rows),
        no_candidates=sum(not row.ranking for row in rows),
    )


def rounded(value: Any) -> Any:
    """A value for JSON with its numbers to six decimals, and null for NaN."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def _gains(group: Group, convention: Convention) -> dict[str, Interval]:
    keys = [key for key in shared_keys(group.rows) if key != "top1"]
    lead = ious(group.rows, ["top1"], convention) - ious(group.rows, keys, convention)
    return dict(zip(keys, bootstrap(lead, group.strata), strict=True))
