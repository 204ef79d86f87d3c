"""Weights from the Hugging Face hub: one revision of a repository, or what the local cache has of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from rea2seg.errors import CheckpointError, reason


@dataclass(frozen=True)
class Repository:
    """A repository of the hub at a revision (branch, tag or commit): all `files` that match, or one `file` of it."""

    repo: str
    revision: str
    files: tuple[str, ...] = ()
    file: str = ""

    def patterns(self) -> list[str] | None:
        """What is downloaded; None stands for everything."""
        return [self.file] if self.file else list(self.files) or None

    def command(self) -> str:
        """How a person gets the same files."""
        wanted = [f"--include '{pattern}'" for pattern in self.patterns() or ()]
        return " ".join(["hf download", self.repo, *wanted, "--revision", self.revision])


def fetched(source: Repository, download: bool = True) -> Path:
    """The file, or the folder with the files, in the local cache; downloaded if they are not there and may be.

    HF_HUB_OFFLINE, HF_HOME and HF_TOKEN mean what they always do. Raises `CheckpointError`.
    """
    try:
        folder = snapshot_download(
            source.repo, revision=source.revision, allow_patterns=source.patterns(), local_files_only=not download
        )
    except LocalEntryNotFoundError as error:
        raise _absent(source) from error
    except GatedRepoError as error:
        raise CheckpointError(
            f"{source.repo} asks to accept its terms: do so on its page, then `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        told = f"the hub has no {source.repo} at revision {source.revision!r}, or not for you"
        raise CheckpointError(f"{told}: check the config, or `hf auth login`") from error
    except OSError as error:
        raise CheckpointError(f"{source.repo} could not be downloaded ({reason(error)}): try again") from error
    place = Path(folder, source.file)
    if not place.exists():
        raise _absent(source)
    return place


def _absent(source: Repository) -> CheckpointError:
    told = f"{source.repo} is not on this machine and the hub was not reached"
    return CheckpointError(
        f"{told}: run `{source.command()}` where there is a network, or give a folder with --weights"
    )
