"""Whether a file is the one that was published, where its name tells what its hash must be."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from tqdm import tqdm

from rea2seg.errors import CheckpointError, reason

_SAM = re.compile(r"sam_vit_[bhl]_([0-9a-f]{6})\.pth")
_BLOB = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 24


def known_hash(file: Path) -> tuple[str, str] | None:
    """The algorithm and the beginning of the hash.

    segment-anything puts the MD5 into the names of its files, and the hub's cache names large files by their SHA-256.
    """
    if found := _SAM.fullmatch(file.name):
        return "md5", found[1]
    blob = file.resolve().name
    return ("sha256", blob) if file.is_symlink() and _BLOB.fullmatch(blob) else None


def verify(file: Path) -> str | None:
    """What was compared, in words, or None where no hash is known.

    Raises `CheckpointError` where it differs, or where the file cannot be read.
    """
    known = known_hash(file)
    if known is None:
        return None
    algorithm, wanted = known
    try:
        found = _digest(file, algorithm)
    except OSError as error:
        raise CheckpointError(
            f"{file} cannot be read ({reason(error)}): change its permissions, or download it again"
        ) from error
    if not found.startswith(wanted):
        raise CheckpointError(f"{file} is damaged (its {algorithm} is not {wanted}): delete it and download it again")
    return f"{file.name}: {algorithm} as published"


def _digest(file: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm)
    progress = tqdm(total=file.stat().st_size, unit="B", unit_scale=True, desc=file.name, leave=False, delay=2)
    with file.open("rb") as stream, progress:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            progress.update(len(chunk))
    return digest.hexdigest()
