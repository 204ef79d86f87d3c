"""The rows of `training.scoring_data` as questions for the evaluator, alone or among fresh scenes."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from rea2seg.errors import InputError
from rea2seg.images import load_image
from rea2seg.masks import decode_rle
from training.examples import Drawn, Example, Source, group_sizes
from training.scoring_data import ROWS


class ScoredRows:
    """Draws pictures with their questions; every twentieth picture belongs to `val`. A group is drawn
    at random, a share `short` of them smaller than `group`. What a question mentions is not known here."""

    def __init__(self, folder: str, group: int = 5, short: float = 0.15) -> None:
        self.folder, self.group, self.short = Path(folder), group, short
        by_image: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        try:
            for line in (self.folder / ROWS).read_text().splitlines():
                row = json.loads(line)
                if len(row["candidates"]) > 1:
                    by_image[row["image"]].append(row)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{self.folder / ROWS} holds no scoring data: {error}") from error
        images = sorted(by_image)
        self.images = {
            "train": [by_image[name] for place, name in enumerate(images) if place % 20],
            "val": [by_image[name] for place, name in enumerate(images) if not place % 20],
        }
        if not all(self.images.values()):
            told = f"two candidates or more in {len(images)} pictures: at least 2 must"
            raise InputError(f"{self.folder / ROWS} has {told}")

    def __call__(self, rng: np.random.Generator, count: int, split: str, masks: bool) -> Drawn:
        pictures = self.images[split]
        rows = pictures[int(rng.integers(len(pictures)))]
        chosen = [rows[int(index)] for index in rng.permutation(len(rows))[:count]]
        sizes = group_sizes(rng, len(chosen), self.group if masks else 0, self.short)
        examples = [self.example_of(rng, row, size) for row, size in zip(chosen, sizes, strict=True)]
        return load_image(self.folder / rows[0]["image"]), examples

    def example_of(self, rng: np.random.Generator, row: dict[str, Any], group: int) -> Example:
        """One question with a random group of its candidates."""
        order = rng.permutation(len(row["candidates"]))[:group]
        members = [row["candidates"][int(index)] for index in order]
        truth = decode_rle(row["segmentation"]).numpy()
        return Example(
            text=row["query"],
            reasoning=row["reasoning"],
            truth=truth,
            mention="",
            mentioned=np.zeros_like(truth),
            masks=[decode_rle(member["segmentation"]).numpy() for member in members],
            scores=[member["iou"] for member in members],
            under=[member["under"] for member in members],
        )


class Mixed:
    """Fresh scenes, but a share of the pictures with masks are scored rows, whose mistakes are those of a generator.

    The share is ours; no other was compared.
    """

    def __init__(self, fresh: Source, scored: Source, share: float = 0.5) -> None:
        self.fresh, self.scored, self.share = fresh, scored, share

    def __call__(self, rng: np.random.Generator, count: int, split: str, masks: bool) -> Drawn:
        source = self.scored if masks and rng.random() < self.share else self.fresh
        return source(rng, count, split, masks)
