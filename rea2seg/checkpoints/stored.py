"""Tensors as they lie on disk: mapped into memory, so that names and shapes cost nothing and bytes are read on use."""

from __future__ import annotations

import json
import os
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rea2seg.errors import CheckpointError, reason

SINGLE = ("model.safetensors", "pytorch_model.bin")
ENDINGS = (".safetensors", ".bin", ".pt", ".pth")
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.safetensors|\.bin)")
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)
"""What safetensors and torch raise on files that are cut off or have changed."""

_POINTER = b"version https://git-lfs"
_WRAPPER = "model"
"""The key under which SAM 2's files hold all tensors."""


@dataclass(frozen=True)
class KeyMap:
    """Which tensor of a checkpoint is which of the model's.

    prefixes: (in the checkpoint, in the model); the first that fits is exchanged, and a name that none fits is kept.
    unused: regular expressions of names that carry nothing the model needs.
    """

    prefixes: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = ()

    def native(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors under the model's names."""
        used = (name for name in stored if not any(re.fullmatch(pattern, name) for pattern in self.unused))
        return {_exchanged(name, self.prefixes): stored[name] for name in used}

    def stored(self, native: str) -> str:
        """What the checkpoint calls a tensor of the model, for messages."""
        return _exchanged(native, [(own, theirs) for theirs, own in self.prefixes])


def under(prefix: str, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}


def without(prefixes: tuple[str, ...], stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with none of the prefixes."""
    return {name: tensor for name, tensor in stored.items() if not name.startswith(prefixes)}


def stored_tensors(place: Path) -> dict[str, Tensor]:
    """All tensors of a file (safetensors, or a pickle of plain tensors), or of the one set of weights in a folder.

    Raises `CheckpointError` where files are missing, damaged, or hold anything but tensors.
    """
    tensors: dict[str, Tensor] = {}
    for file in weight_files(place):
        tensors |= _read(file)
    return tensors


def weight_files(place: Path) -> list[Path]:
    """The files with the weights: the file itself; or, by their usual names, a folder's single file or its shards."""
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise CheckpointError(f"{place} does not exist: name a folder with weights, or a file of them")
    faults = []
    for found in _sets(place):
        if not isinstance(found, CheckpointError):
            return found
        faults.append(found)
    if faults:
        raise faults[0]
    raise CheckpointError(f"{place} holds neither {' nor '.join(SINGLE)}, whole or in shards: download the weights")


def _sets(folder: Path) -> Iterator[list[Path] | CheckpointError]:
    """Every set of weights that has a usual name, safetensors first, or what is wrong with it."""
    for name in SINGLE:
        single, index = folder / name, folder / f"{name}.index.json"
        if single.is_file():
            yield [single]
        if index.is_file():
            yield _indexed(index)
        for shards in _numbered(folder, single.suffix):
            yield _whole(folder, shards, "the names of the others count")


def _indexed(index: Path) -> list[Path] | CheckpointError:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        # Other paths could lead out of the folder.
        plain = bool(names) and all(name and name == Path(name).name for name in names)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        plain = False
    if not plain:
        return CheckpointError(f"{index} is not the index of a sharded checkpoint: download it again")
    return _whole(index.parent, names, f"{index.name} names")


def _numbered(folder: Path, ending: str) -> list[list[str]]:
    """All names of every set of shards of which one is there."""
    found = (_SHARD.fullmatch(path.name) for path in folder.iterdir())
    sets = sorted({(match[1], match[2]) for match in found if match and match[3] == ending})
    return [[f"{stem}-{number:05}-of-{count}{ending}" for number in range(1, int(count) + 1)] for stem, count in sets]


def _whole(folder: Path, names: Iterable[str], told: str) -> list[Path] | CheckpointError:
    files = [folder / name for name in names]
    # Unlike the method of Path, False for a name that is too long.
    missing = [file.name for file in files if not os.path.isfile(file)]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        return CheckpointError(f"{folder} lacks {', '.join(missing[:3])}{more}, which {told}: download what is missing")
    return files


def only_file(place: Path) -> Path:
    """The file itself, or the only one of a folder that can hold weights, whatever its name (SAM's)."""
    if not place.is_dir():
        return place
    found = sorted(path for path in place.iterdir() if path.suffix in ENDINGS)
    if not found:
        raise CheckpointError(f"{place} holds no weights: put a file there that ends in {', '.join(ENDINGS)}")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise CheckpointError(f"{place} holds several weights ({names}): keep one of them there")
    return found[0]


def _read(file: Path) -> dict[str, Tensor]:
    try:
        with file.open("rb") as stream:
            pointer = stream.read(len(_POINTER)) == _POINTER
        if pointer:
            raise CheckpointError(f"{file} only points to the weights: run `git lfs pull`, or `hf download` it")
        if file.suffix == ".safetensors":
            # One by one: all at once, safetensors would read the whole file.
            with safe_open(file, framework="pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no mapping
        # torch warns of pickles that it then refuses; only its own format since 1.6 can be mapped.
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except UnpicklingError as error:
        # torch's own words recommend to load it all the same.
        raise CheckpointError(
            f"{file} is a pickle of more than tensors, or damaged, and is not read: get the weights as safetensors"
        ) from error
    except _DAMAGE as error:
        raise CheckpointError(f"{file} is damaged or cut off: download it again ({_first(error)})") from error
    return _plain(file, content)


def _plain(file: Path, content: Any) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get(_WRAPPER), Mapping):
        content = content[_WRAPPER]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{file} is not a table of tensors: name the weights of a model, not of a training")
    return {str(name): value for name, value in content.items()}


def _first(error: BaseException) -> str:
    return reason(error).split(". ")[0][:120]


def _exchanged(name: str, prefixes: Iterable[tuple[str, str]]) -> str:
    for old, new in prefixes:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
