"""Variants of a pipeline: its config with searches left out or arguments changed, as a table in YAML names them.

    shuffles: 5                                 how many shuffles the pipeline and the variants with `spread` go through
    variants:
      - name: groups of one
        shows: what it brings to see several masks at once
        change: {selector.group: 1}
        claim: Groups of five beat groups of one
      - name: without core
        without: [core]

A key of `change` leads from a seat through the names of arguments; a search is named like in `without`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentError, ArgumentParser

from rea2seg.config import Config
from rea2seg.errors import ConfigError, reason, require_positive

SEARCHES = {"prompt": "PromptSearch", "core": "CoreSearch", "attention": "AttentionSearch"}
PIPELINE = "pipeline"
"""What the pipeline itself is called among its variants."""


@dataclass(frozen=True, eq=False)
class Variant:
    """A pipeline with something changed; `shows` says in a few words what it is there for.

    spread: whether it goes through several shuffles. claim: what holds if the pipeline itself is better than this in
    top1 or oracle, with an interval beyond 0 and `by` at least.
    """

    name: str
    shows: str = ""
    without: Sequence[str] = ()
    change: Mapping[str, Any] = field(default_factory=dict)
    spread: bool = False
    claim: str = ""
    by: float = 0.0

    @property
    def folder(self) -> str:
        """The name as that of a folder."""
        return self.name.replace(" ", "_")

    def of(self, config: Config) -> Config:
        """The config with this variant's changes, not checked yet. `ConfigError` for what it does not have."""
        if self.without:
            config = without(config, self.without)
        for key, value in self.change.items():
            config = changed(config, key, value)
        return config


@dataclass(frozen=True)
class Table:
    """The variants to compare with the pipeline, and the number of shuffles."""

    variants: tuple[Variant, ...]
    shuffles: int = 1

    def __post_init__(self) -> None:
        require_positive(shuffles=self.shuffles)
        folders = [PIPELINE, *(variant.folder for variant in self.variants)]
        for variant in self.variants:
            if folders.count(variant.folder) > 1:
                raise ConfigError(f"more than one is called {variant.name!r}, the pipeline itself included: rename it")
            if not re.fullmatch(r"\w[\w ,.-]*", variant.name):
                raise ConfigError(f"a variant cannot be called {variant.name!r}: take letters, digits and spaces")

    def only(self, names: Sequence[str]) -> Table:
        """The same with the variants of these names alone."""
        known = [variant.name for variant in self.variants]
        if missing := [name for name in names if name not in known]:
            raise ConfigError(f"no variant is called {missing[0]!r}: choose from {', '.join(known)}")
        return replace(self, variants=tuple(variant for variant in self.variants if variant.name in names))


def read_table(path: Path) -> Table:
    """The table in a YAML file; a misspelt key or a value of the wrong type is a `ConfigError` that names it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--shuffles", type=int, default=1)
    parser.add_argument("--variants", type=list[Variant], required=True)
    try:
        read = parser.instantiate(parser.parse_object(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError, ArgumentError, yaml.YAMLError) as error:
        raise ConfigError(f"the table of variants {str(path)!r} cannot be used: {reason(error)}") from error
    return Table(tuple(read.variants), read.shuffles)


def without(config: Config, names: Sequence[str]) -> Config:
    """The config with some of its searches left out."""
    searches = config.seats["searches"]
    for name in names:
        if not any(_is_called(search, name) for search in searches):
            raise ConfigError(f"config {config.name} has no {name} search to leave out")
    kept = [search for search in searches if not any(_is_called(search, name) for name in names)]
    if not kept:
        raise ConfigError(f"leaving out {', '.join(names)} leaves no search to find candidates with")
    return replace(config, seats={**config.seats, "searches": kept})


def changed(config: Config, key: str, value: Any) -> Config:
    """The config with one argument changed, such as `searches.attention.keep`."""
    try:
        return replace(config, seats=_changed_at(config.seats, key.split("."), value))
    except LookupError as error:
        raise ConfigError(f"config {config.name} has no {key!r} to change: there is no {error.args[0]!r}") from error


def _changed_at(node: Any, path: Sequence[str], value: Any) -> Any:
    """The node with what lies at the end of the path exchanged; `LookupError` with the first name that is not there."""
    if not path:
        return value
    name, *rest = path
    if isinstance(node, list):
        if not any(_is_called(item, name) for item in node):
            raise LookupError(name)
        return [_changed_at(item, rest, value) if _is_called(item, name) else item for item in node]
    if isinstance(node, dict) and "class_path" in node:
        return {**node, "init_args": _changed_at(node.get("init_args", {}), path, value)}
    if not isinstance(node, dict) or name not in node:
        raise LookupError(name)
    return {**node, name: _changed_at(node[name], rest, value)}


def _is_called(search: Mapping[str, Any] | str, name: str) -> bool:
    """Whether a search of a config is meant by `core`, or by the name of its class or function."""
    path: str = search if isinstance(search, str) else search["class_path"]
    return path.rsplit(".", 1)[-1] == SEARCHES.get(name, name)
