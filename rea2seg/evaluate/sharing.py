"""What several pipelines have in common is made once: seats that are configured alike, and what these find."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rea2seg.config import Config
from rea2seg.pipeline import Rea2Seg
from rea2seg.protocols import Search
from rea2seg.structures import Candidate, Query, Scene


class Workshop:
    """Builds pipelines. What is configured alike is built once, so that models are loaded once; all of it stays.

    Parts of a seat, such as a selector's evaluator, are shared where the seat keeps them under the argument's name.
    """

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def pipeline(self, config: Config) -> Rea2Seg:
        """The pipeline of a config."""
        built = replace(config, seats=self._with_made(config.seats)).build()
        for name, node in config.seats.items():
            self._keep(node, built[name])
        return Rea2Seg(**built)

    def _with_made(self, node: Any) -> Any:
        """The config with what there is already in place of its description."""
        if isinstance(node, list):
            return [self._with_made(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "class_path" in node and (text := _text(node)) in self._made:
            return self._made[text]
        return {name: self._with_made(value) for name, value in node.items()}

    def _keep(self, node: Any, thing: Any) -> None:
        if isinstance(node, list):
            for item, own in zip(node, thing, strict=True):
                self._keep(item, own)
        elif isinstance(node, dict) and "class_path" in node:
            self._made.setdefault(_text(node), thing)
            for name, inner in node.get("init_args", {}).items():
                if isinstance(inner, dict) and hasattr(thing, name):
                    self._keep(inner, getattr(thing, name))


class Common:
    """One question, asked of several pipelines: scenes are shared by those with the same generator and segmenter.

    Candidates are shared search by search, since no search knows of another. Seats are the same if they are one object.
    """

    def __init__(self, query: Query) -> None:
        self.query = query
        self._scenes: dict[tuple[int, int], list[Scene]] = {}
        self._found: dict[tuple[int, int], list[Candidate]] = {}

    def scenes(self, pipe: Rea2Seg) -> list[Scene]:
        """As `pipe.scenes` gives them."""
        key = id(pipe.generator), id(pipe.segmenter)
        if key not in self._scenes:
            self._scenes[key] = pipe.scenes(self.query)
        return self._scenes[key]

    def candidates(self, pipe: Rea2Seg, scenes: Sequence[Scene]) -> list[Candidate]:
        """As `pipe.candidates` gives them; `scenes` are those of `scenes`."""
        return [found for scene in scenes for search in pipe.searches for found in self._of(pipe, scene, search)]

    def _of(self, pipe: Rea2Seg, scene: Scene, search: Search) -> list[Candidate]:
        key = id(scene), id(search)
        if key not in self._found:
            self._found[key] = replace(pipe, searches=[search]).candidates([scene])
        return self._found[key]


def _text(node: dict[str, Any]) -> str:
    return json.dumps(node, sort_keys=True, default=str)
