"""Rea2Seg: a question about an image becomes a scene, the scene candidate masks, and these a ranking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rea2seg.config import load_config
from rea2seg.errors import InputError
from rea2seg.generator.seeds import why_no_seeds
from rea2seg.images import ImageSource, load_image
from rea2seg.protocols import Generator, Search, Segmenter, Selector
from rea2seg.structures import Candidate, Embedding, Grounding, Prompt, Query, Ranking, Scene


@dataclass(frozen=True, eq=False)
class Rea2Seg:
    """The pipeline: four seats, and the order in which they speak. Ablations are shorter lists of searches."""

    segmenter: Segmenter
    searches: Sequence[Search]
    selector: Selector
    generator: Generator | None = None

    @classmethod
    def from_config(
        cls,
        config: str | Path = "mini",
        weights: str | Path | None = None,
        device: str = "auto",
        seed: int | None = None,
        **given: Any,
    ) -> Rea2Seg:
        """The pipeline of a packaged config or a YAML file; for the arguments see `rea2seg.config.load_config`.

        Raises `ConfigError` for a config that cannot be used, `CheckpointError` for weights that do not fit or cannot
        be had.
        """
        return cls(**load_config(config, weights, device, seed, **given).build())

    def __call__(self, image: ImageSource, query: str) -> Ranking:
        """All candidate masks for a question about an image, best first. Raises `InputError` for one of the two."""
        return self.many(image, [query])[0]

    def many(self, image: ImageSource, queries: Sequence[str]) -> list[Ranking]:
        """A ranking for each question about one image, which every model encodes once. Raises `InputError`."""
        if isinstance(queries, str):
            raise InputError("many questions are a list of texts; for a single one call the pipeline itself")
        pixels = load_image(image)
        asked = [Query.of(pixels, text) for text in queries]
        return [self.answer(scenes) for scenes in self.scenes_of(asked)]

    def answer(self, scenes: Sequence[Scene]) -> Ranking:
        """The ranking of one question: discover its candidates, then compare them."""
        return self.rank(scenes, self.candidates(scenes))

    @torch.no_grad()
    def encode(self, query: Query) -> Embedding:
        """The image as the segmenter sees it, for every question about it."""
        return self.segmenter.encode([query.image])[0]

    def scenes(self, query: Query, embedding: Embedding | None = None) -> list[Scene]:
        """What the generator grounds and the segmenter first makes of it: one scene for each target it names."""
        return self.scenes_of([query], embedding)[0]

    @torch.no_grad()
    def scenes_of(self, queries: Sequence[Query], embedding: Embedding | None = None) -> list[list[Scene]]:
        """The scenes of each of several questions about one image; `InputError` if they are about several."""
        if not queries:
            return []
        if any(query.image is not queries[0].image for query in queries):
            raise InputError("the questions are about several images: ask those about one image at a time")
        embedding = embedding or self.encode(queries[0])
        if self.generator is None:
            return [[Scene(query, embedding)] for query in queries]
        groundings = self.generator.ground(queries)
        return [
            [self._scene(query, embedding, target) for target in each_target(grounding)]
            for query, grounding in zip(queries, groundings, strict=True)
        ]

    def _scene(self, query: Query, embedding: Embedding, grounding: Grounding) -> Scene:
        initial = self.segmenter.decode(embedding, Prompt(token=grounding.token), multimask=False)
        return Scene(query, embedding, grounding, initial)

    @torch.no_grad()
    def candidates(self, scenes: Sequence[Scene]) -> list[Candidate]:
        """The masks that all searches find, scene by scene, in the order of the searches."""
        return [found for scene in scenes for search in self.searches for found in search(scene, self.segmenter)]

    @torch.no_grad()
    def rank(self, scenes: Sequence[Scene], candidates: Sequence[Candidate]) -> Ranking:
        """The selector's order of the candidates of one question, with every warning so far."""
        ranking = self.selector(scenes[0], candidates)
        told = [warning for scene in scenes for warning in warnings_about(scene)]
        return replace(ranking, warnings=(*dict.fromkeys(told), *ranking.warnings))


def each_target(grounding: Grounding) -> list[Grounding]:
    """One grounding for each `[SEG]` of a reply."""
    count = len(grounding.token)
    return [
        replace(grounding, token=grounding.token[i, None], attention=grounding.attention[i, None]) for i in range(count)
    ]


def warnings_about(scene: Scene) -> list[str]:
    """The generator's own remarks, then what keeps searches from having seeds."""
    if scene.grounding is None:
        return []
    missing = why_no_seeds(scene)
    return [*scene.grounding.flags, *([missing] if missing else [])]
