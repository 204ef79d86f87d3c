"""Files that are either whole or not there."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from rea2seg.errors import OutputError, reason


def writable_folder(path: str | Path) -> Path:
    """The folder, made where it is missing; an error now rather than after the work if it cannot be written."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, ValueError) as error:
        raise OutputError(f"the folder {str(path)!r} cannot be written: {reason(error)}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place to write to, which takes the name `path` when all went well."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        raise OutputError(f"{str(path)!r} cannot be written: {reason(error)}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, value: Any, sort_keys: bool = False) -> None:
    """Indented JSON; NaN and infinity, which JSON does not know, are refused.

    A lone surrogate, as in the name of a file, is no character that UTF-8 could hold: it becomes its escape, here and
    wherever else JSON is written.
    """
    with replacing(path) as place:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, sort_keys=sort_keys)
        place.write_text(text + "\n", encoding="utf-8", errors="backslashreplace", newline="\n")


def finite(value: float | None) -> float | None:
    """A number for JSON, to six decimals; None for what JSON has no number for."""
    return None if value is None or not math.isfinite(value) else round(value, 6)


def write_picture(path: Path, picture: Image.Image) -> None:
    """A PNG."""
    with replacing(path) as place:
        picture.save(place, "PNG")


def write_mask(path: Path, mask: Bool[Tensor, "h w"]) -> None:
    """A grey PNG: 255 inside, 0 outside."""
    write_picture(path, Image.fromarray(mask.cpu().numpy().astype(np.uint8) * 255))


def remove(path: Path) -> None:
    """The file is gone, whether or not it was there."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{str(path)!r} cannot be removed: {reason(error)}") from error
