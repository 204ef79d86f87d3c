"""Which samples a line of a table speaks of, and how a mean over them is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from rea2seg.evaluate.rows import KEYS, Row
from rea2seg.metrics import Convention, iou

AVERAGE, APART = "average", "attribute"
"""`average` is the mean of all categories but `attribute`, whose questions ask for no reasoning."""

Kind = Literal["category", "component", "granularity", "average"]


@dataclass(frozen=True)
class Group:
    """Samples that are averaged: those of a category, a component of one, a granularity, or all that count."""

    kind: Kind
    name: str
    rows: tuple[Row, ...]

    @property
    def label(self) -> str:
        """The name that no other group has: categories and the average are called by theirs alone."""
        return f"{self.kind}={self.name}" if self.kind in ("component", "granularity") else self.name

    @property
    def strata(self) -> list[str] | None:
        """For each sample what it is averaged with first: of `average` its category; None for one plain mean."""
        return [row.category for row in self.rows] if self.kind == "average" else None


def groups_of(rows: Sequence[Row]) -> list[Group]:
    """Categories, their components and the granularities where there are several, and the average last."""
    categories = sorted({row.category for row in rows}, key=lambda name: (name == APART, name))
    groups = [Group("category", name, tuple(row for row in rows if row.category == name)) for name in categories]
    components = [component for group in groups for component in _components(group)]
    averaged = [row for row in rows if row.category != APART]
    return [*groups, *components, *_granularities(averaged), *([average_of(averaged)] if averaged else [])]


def average_of(rows: Sequence[Row]) -> Group:
    """The samples that count for the average; where no other is there, those set apart do."""
    return Group("average", AVERAGE, tuple(row for row in rows if row.category != APART) or tuple(rows))


def shared_keys(rows: Sequence[Row]) -> list[str]:
    """The keys that every sample has: a mean over some samples cannot be compared with one over all."""
    return [key for key in KEYS if all(key in row.overlaps for row in rows)]


def ious(rows: Sequence[Row], keys: Sequence[str], convention: Convention) -> Float[np.ndarray, "n keys"]:
    """Per-sample IoUs, one column for each key."""
    values = [[iou(row.overlaps[key], convention) for key in keys] for row in rows]
    return np.array(values, np.float64).reshape(len(rows), len(keys))


def _components(category: Group) -> list[Group]:
    names = sorted({row.component for row in category.rows})
    return [
        Group("component", f"{category.name}/{name}", tuple(row for row in category.rows if row.component == name))
        for name in (names if len(names) > 1 else [])
    ]


def _granularities(rows: Sequence[Row]) -> list[Group]:
    names = sorted({row.granularity for row in rows})
    return [
        Group("granularity", name, tuple(row for row in rows if row.granularity == name))
        for name in (names if len(names) > 1 else [])
    ]
