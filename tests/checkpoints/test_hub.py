"""Weights from the hub, as far as a machine without a network can show it: the local cache, and what is said."""

from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from rea2seg.checkpoints.hub import Repository, fetched
from rea2seg.errors import CheckpointError

SAM = Repository("facebook/sam2-hiera-large", "main", file="sam2_hiera_large.pt")
LISA = Repository("xinlai/LISA-7B-v1", "43c754e", files=("*.json", "*.bin"))
COMMIT = "0" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def cached(cache: Path, source: Repository, name: str) -> Path:
    folder = cache / f"models--{source.repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / source.revision).write_text(COMMIT)
    file = folder / "snapshots" / COMMIT / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    return file


def refusal(source: Repository, **settings: bool) -> str:
    with pytest.raises(CheckpointError) as caught:
        fetched(source, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("download", [True, False])
def test_what_is_in_the_cache_needs_no_network(cache, download):
    file = cached(cache, SAM, SAM.file)
    assert fetched(SAM, download) == file
    folder = cached(cache, LISA, "config.json").parent
    assert fetched(LISA, download) == folder


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("download", [True, False])
def test_without_a_network_the_command_that_fetches_it_is_told(download):
    told = "xinlai/LISA-7B-v1 is not on this machine and the hub was not reached: run `hf download xinlai/LISA-7B-v1 "
    told += "--include '*.json' --include '*.bin' --revision 43c754e` where there is a network, or give a folder with "
    assert refusal(LISA, download=download) == f"{told}--weights"


def test_a_cache_that_holds_another_file_only_does_not_do(cache):
    cached(cache, SAM, "config.json")
    told = "--include 'sam2_hiera_large.pt' --revision main` where there is a network"
    assert told in refusal(SAM)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (GatedRepoError, "asks to accept its terms: do so on its page, then `hf auth login`"),
        (RepositoryNotFoundError, "at revision 'main', or not for you: check the config, or `hf auth login`"),
    ],
)
def test_what_the_hub_refuses_is_told_in_a_line(error, told, monkeypatch):
    def refuse(*_: object, **__: object) -> str:
        raise error.__new__(error)

    monkeypatch.setattr("rea2seg.checkpoints.hub.snapshot_download", refuse)
    assert refusal(SAM).endswith(told)


def test_a_name_that_is_none_is_told():
    source = Repository("no/such/name", "main")
    told = "the hub has no no/such/name at revision 'main', or not for you: check the config, or `hf auth login`"
    assert refusal(source) == told
