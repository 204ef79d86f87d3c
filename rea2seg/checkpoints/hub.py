"""Weights from the Hugging Face hub: one revision of a repository, or what the local cache has of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: httpx's or httpx2's, by version
    CachedRepoTreeNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from rea2seg.errors import CheckpointError, ConfigError, reason

_FLAT = ["*/*"]
"""What lies in subfolders: the hub's `*` crosses `/`."""

_FAULTS = (OSError, HTTPError, RevisionResolutionError, RuntimeError, ValueError)
"""What a download raises: the hub, the network, the disk, xet (RuntimeError), and answers that are not the hub's."""


@dataclass(frozen=True)
class Repository:
    """A repository of the hub at a revision (branch, tag or commit): the one `file`, or all that match `files`.

    files: patterns of names in its top folder; without any, all of that folder.
    """

    repo: str
    revision: str
    files: tuple[str, ...] = ()
    file: str = ""

    def patterns(self) -> list[str] | None:
        """What is downloaded; None stands for everything."""
        return [self.file] if self.file else list(self.files) or None

    def takes(self, name: str) -> bool:
        """Whether a file of the repository, by its path in there, is among those that are downloaded."""
        if self.file:
            return name == self.file
        return "/" not in name and any(fnmatchcase(name, pattern) for pattern in self.files or ("*",))

    def command(self) -> str:
        """How a person gets the same files."""
        wanted = [f"--include '{pattern}'" for pattern in self.patterns() or ()]
        return " ".join(["hf download", self.repo, *wanted, "--revision", self.revision])


def repository(table: dict[Any, Any]) -> Repository:
    """The repository that a config's table describes. Raises `ConfigError`, which begins with what is wrong."""
    if (fault := next(_faults(table), None)) is not None:
        raise ConfigError(fault)
    return Repository(**table | {"files": tuple(table.get("files", ()))})


def _faults(table: dict[Any, Any]) -> Iterator[str]:
    known = ("repo", "revision", "file", "files")
    for key in table:
        if key not in known:
            yield f"{key!r} is none of {', '.join(known)}"
    for key in ("repo", "revision"):
        if key not in table:
            yield f"{key} is missing"
    for key in known[:3]:
        if key in table and not (isinstance(table[key], str) and table[key]):
            yield f"{key} must be text, not {table[key]!r}: put it in quotes"
    if "file" in table and "files" in table:
        yield "file and files exclude each other: keep one"
    files = table.get("files", [])
    if not isinstance(files, list) or not all(isinstance(pattern, str) for pattern in files):
        yield f'files must be a list of patterns, not {files!r}: write ["*.json"]'
    elif nested := [pattern for pattern in files if "/" in pattern]:
        yield f"files takes names of the top folder, not {nested[0]!r}: name the one file with file"


def fetched(source: Repository, download: bool = True) -> Path:
    """The file, or the folder with the files, in the local cache; downloaded if they are not there and may be.

    HF_HUB_OFFLINE, HF_HOME and HF_TOKEN mean what they always do. Raises `CheckpointError`.
    """
    try:
        folder = snapshot_download(
            source.repo,
            revision=source.revision,
            allow_patterns=source.patterns(),
            ignore_patterns=None if source.file else _FLAT,
            local_files_only=not download,
        )
    except _FAULTS as error:
        raise CheckpointError(_told(source, error)) from error
    place = Path(folder, source.file)
    if not (place.is_file() if source.file else any(source.takes(path.name) for path in place.glob("*"))):
        raise CheckpointError(_missing(source))
    return place


def _told(source: Repository, error: BaseException) -> str:
    """What stopped a download, and what to do."""
    # Where the hub answers, but with a fault, that error is the cause of another: that the cache lacks the files.
    if isinstance(error.__cause__, (HfHubHTTPError, FileMetadataError)):
        error = error.__cause__
    if isinstance(error, GatedRepoError):
        return f"{source.repo} asks to accept its terms: do so on its page, then `hf auth login`"
    if isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError)):
        told = f"the hub has no {source.repo} at revision {source.revision!r}, or not for you"
        return f"{told}: check the config, or `hf auth login`"
    if isinstance(error, LocalEntryNotFoundError):
        return _missing(source)
    return f"{source.repo} could not be downloaded ({reason(error)}): try again"


def _missing(source: Repository) -> str:
    """Which files are not here, as far as the hub ever told what there is, and what to do."""
    mend = f"run `{source.command()}` where there is a network, or give a folder with --weights"
    try:
        listing = get_cached_repo_tree(source.repo, revision=source.revision)
    except CachedRepoTreeNotFoundError:
        return f"{source.repo} is not on this machine and the hub was not reached: {mend}"
    if any(source.takes(entry.path) for entry in listing):
        return f"{source.repo} is only partly on this machine and the hub was not reached: {mend}"
    wanted = source.file or f"file that matches {', '.join(source.files or '*')}"
    return f"{source.repo} has no {wanted} at revision {source.revision!r}: check the config"
