"""A config is an import path and keyword arguments for every seat of the pipeline, or the path of a function, in YAML.

    weights: rea2seg://mini/v4                  the root of weights://, unless a person names another; or a table:
    weights:
      segmenter: {repo: facebook/sam2-hiera-large, revision: main, file: sam2_hiera_large.pt}
    note: what a person should know             printed by the commands
    segmenter: {class_path: rea2seg.segmenters.sam.Sam, init_args: {weights: weights://segmenter}}
    searches: [{class_path: ...}, ...]
    selector: {class_path: ..., init_args: {...}}
    generator: {class_path: ..., init_args: {...}}

`rea2seg://mini/v4` is a folder of the installed package. In a table every name is a path, or a repository of the hub
with the `files` to take of its top folder (patterns) or the one `file`; `weights://segmenter` is then that one. A
config names code to run: use those that you trust.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from types import FunctionType
from typing import Any

import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentError, ArgumentParser

from rea2seg.checkpoints.hub import Repository, fetched, repository
from rea2seg.devices import chosen_device
from rea2seg.errors import ConfigError, reason
from rea2seg.protocols import Generator, Search, Segmenter, Selector

PACKAGE, ROOT = "rea2seg://", "weights://"
Sources = str | dict[str, str | Repository] | None
SEATS = ("generator", "segmenter", "searches", "selector")


@dataclass(frozen=True)
class Config:
    """A config whose names, types and paths are checked, and nothing of it loaded. `seats` holds every argument."""

    name: str
    seats: dict[str, Any]
    note: str = ""
    repositories: Mapping[str, Repository] = field(default_factory=dict)

    def build(self) -> dict[str, Any]:
        """The seats themselves, by name, with their weights, which are downloaded if need be.

        Raises `CheckpointError` for weights that cannot be had or do not fit, `ConfigError` for settings that do not.
        """
        parser = _parser()
        seats: dict[str, Any] = vars(parser.instantiate(parser.parse_object(self.local().seats)))
        return seats

    def local(self, download: bool = True) -> Config:
        """The same config with paths in the local cache in place of repositories. Raises `CheckpointError`."""
        return self.placed({name: fetched(source, download) for name, source in self.repositories.items()})

    def placed(self, places: Mapping[str, Path]) -> Config:
        """The same config with those places in place of the repositories of their names; the others stay."""
        left = {name: source for name, source in self.repositories.items() if name not in places}
        known = {name: str(places[name]) for name in self.repositories.keys() - left.keys()}
        seats = _mapped(self.seats, lambda value: known.get(_name(value), value))
        return replace(self, seats=seats, repositories=left)

    def text(self) -> str:
        """All arguments as JSON, to tell one config from another."""
        sources = {name: asdict(source) for name, source in self.repositories.items()}
        return json.dumps(self.seats | ({"weights": sources} if sources else {}), sort_keys=True, default=str)


def load_config(
    source: str | Path,
    weights: str | Path | None = None,
    device: str = "auto",
    seed: int | None = None,
    **given: Any,
) -> Config:
    """Reads a packaged config by name, or a file by path, and checks it.

    weights: a folder that replaces the config's own root of `weights://`. device: replaces every `device`, except that
    `auto` replaces `auto` alone, by the machine's own. seed: replaces every `seed`. An argument with the name of a seat
    replaces that seat. Any other, such as `reasoning`, replaces every argument of that name. Raises `ConfigError`, also
    where nothing takes such an argument.
    """
    name, raw = _read(source)
    raw |= {seat: given.pop(seat) for seat in SEATS if seat in given}
    note = str(raw.pop("note", ""))
    own = _sources(raw.pop("weights", None), name)
    sources = own if weights is None else str(weights)
    seats = _checked(_mapped(raw, lambda value: _resolved(value, sources, own, name)), name)
    for key, value in given.items():
        seats, taken = _filled(seats, key, value)
        if not taken:
            raise ConfigError(f"config {name}: nothing in it takes {key!r}")
    if seed is not None:
        seats, _ = _filled(seats, "seed", seed)
    chosen = chosen_device(device)
    seats, _ = _changed(seats, "device", lambda own: own if device == "auto" and own != "auto" else chosen)
    return Config(name, _checked(seats, name), note, _used(seats, sources))


def config_names() -> list[str]:
    """The names of the packaged pipelines."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _packaged().iterdir() if entry.name.endswith(".yaml"))


def package_path(address: str) -> Path:
    """The place on disk of `rea2seg://folder/file`, which lies inside the installed package."""
    return Path(str(files("rea2seg"))).joinpath(*address.removeprefix(PACKAGE).split("/"))


def _packaged() -> Any:
    try:
        return files("rea2seg.configs")
    except ModuleNotFoundError:  # installed with `pip install -e`, which leaves the folder where it is
        return Path(__file__).parents[1] / "configs"


def _read(source: str | Path) -> tuple[str, dict[str, Any]]:
    """The config's name and its content."""
    path = Path(source)
    by_path = path.suffix in {".yaml", ".yml"} or len(path.parts) != 1
    known = ", ".join(config_names())
    if not by_path and path.name not in config_names():
        raise ConfigError(f"no config is called {str(source)!r}: give the path of a YAML file, or one of {known}")
    place = path if by_path else _packaged() / f"{path.name}.yaml"
    try:
        content = yaml.safe_load(place.read_text(encoding="utf-8"))
    except OSError as error:
        told = f"config {str(source)!r} cannot be read ({reason(error)})"
        raise ConfigError(f"{told}: give the path of a YAML file, or one of {known}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"config {str(source)!r} is not YAML in UTF-8: {reason(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"config {str(source)!r} holds no keys")
    return path.stem, content


def _sources(given: Any, name: str) -> Sources:
    """The root of all weights, or the source of each."""
    if given is None or isinstance(given, str):
        return given
    told = "a path, or a table of names with a path or with repo, revision and file or files"
    if not isinstance(given, dict):
        raise ConfigError(f"config {name}: weights must be {told}, not {given!r}")
    return {str(part): _source(source, f"config {name}: weights of {str(part)!r}") for part, source in given.items()}


def _source(given: Any, where: str) -> str | Repository:
    if isinstance(given, str):
        return given
    if not isinstance(given, dict):
        raise ConfigError(f"{where} must be a path, or a table with repo, revision and file or files, not {given!r}")
    try:
        return repository(given)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _resolved(value: Any, sources: Sources, own: Sources, name: str) -> Any:
    """The one place where addresses of weights become paths, which must exist, but for those of repositories.

    own: the config's sources, where a person named others: for what is missing, they say how to get it.
    """
    if not isinstance(value, str) or not value.startswith((PACKAGE, ROOT)):
        return value
    address = value
    if value.startswith(ROOT):
        part = value.removeprefix(ROOT)
        if sources is None:
            raise ConfigError(f"config {name} comes without weights: give their folder with --weights DIR")
        if isinstance(sources, str):
            value = f"{sources}/{part}"
        elif part not in sources:
            raise ConfigError(f"config {name}: {value} is not in its table of weights: {', '.join(sources)}")
        elif isinstance(source := sources[part], str):
            value = source
        else:
            return value
    path = package_path(value) if value.startswith(PACKAGE) else Path(value)
    if not os.path.exists(path):  # unlike the method of Path, False for a name that is too long
        told = f"config {name}: the weights {str(path)!r} do not exist"
        known = own.get(_name(address)) if isinstance(own, dict) else None
        if isinstance(known, Repository):
            raise ConfigError(f"{told}: put them there, `{known.command()} --local-dir {path}`")
        raise ConfigError(f"{told}; --weights DIR names another folder")
    return str(path)


def _name(value: Any) -> str:
    """Of `weights://generator` the name `generator`; nothing of anything else."""
    return value.removeprefix(ROOT) if isinstance(value, str) and value.startswith(ROOT) else ""


def _used(seats: dict[str, Any], sources: Sources) -> dict[str, Repository]:
    """The repositories that are still addressed."""
    names = {_name(value) for value in _values(seats)}
    known = sources if isinstance(sources, dict) else {}
    return {name: source for name, source in known.items() if name in names and isinstance(source, Repository)}


def _values(node: Any) -> Iterator[Any]:
    if isinstance(node, (dict, list)):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from _values(inner)
    else:
        yield node


def _mapped(node: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(node, dict):
        return {key: _mapped(value, change) for key, value in node.items()}
    if isinstance(node, list):
        return [_mapped(value, change) for value in node]
    return change(node)


def _changed(node: Any, key: str, change: Callable[[Any], Any]) -> tuple[Any, int]:
    """The config with every argument of that name changed, and how many there are."""
    if isinstance(node, list):
        items = [_changed(item, key, change) for item in node]
        return [item for item, _ in items], sum(count for _, count in items)
    if not isinstance(node, dict):
        return node, 0
    named = {name: (change(item), 1) if name == key else _changed(item, key, change) for name, item in node.items()}
    return {name: item for name, (item, _) in named.items()}, sum(count for _, count in named.values())


def _filled(node: Any, key: str, value: Any) -> tuple[Any, int]:
    return _changed(node, key, lambda _: value)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    # Built in this order: what is most likely to be wrong comes before what takes longest to load.
    parser.add_argument("--searches", type=list[Search], required=True)
    parser.add_argument("--generator", type=Generator)
    parser.add_argument("--segmenter", type=Segmenter, required=True)
    parser.add_argument("--selector", type=Selector, required=True)
    return parser


def _checked(seats: dict[str, Any], name: str) -> dict[str, Any]:
    """Every argument of every seat, defaults included; misspelt keys and classes that do not fit are errors."""
    try:
        checked: dict[str, Any] = _parser().parse_object(deepcopy(seats)).as_dict()
    except (ArgumentError, TypeError, ValueError) as error:
        # jsonargparse appends general advice, which is left out.
        complaint = reason(error).split("Subclass types expect")[0].strip()
        raise ConfigError(f"config {name}: {complaint}") from error
    return {seat: _mapped(value, _import_path) for seat, value in checked.items()}


def _import_path(value: Any) -> Any:
    """Of a function, which jsonargparse puts in the place of its import path, that path again."""
    return f"{value.__module__}.{value.__qualname__}" if isinstance(value, FunctionType) else value
