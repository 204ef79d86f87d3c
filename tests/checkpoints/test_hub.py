"""Weights from the hub, as far as a machine without a network can show it: the local cache, and what is said."""

import json
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.errors
import pytest
import yaml
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils import filter_repo_objects

from rea2seg.checkpoints.hub import Repository, fetched, repository
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
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / source.revision).write_text(COMMIT)
    file = folder / "snapshots" / COMMIT / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    return file


def listed(cache: Path, source: Repository, *names: str) -> None:
    """What the hub's own download remembers of a revision: its commit, and all files of that."""
    folder = cache / f"models--{source.repo.replace('/', '--')}"
    for place in ("refs", "trees"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / "refs" / source.revision).write_text(COMMIT)
    entries = {name: {"size": 7, "blob_id": "1" * 40} for name in names}
    (folder / "trees" / f"{COMMIT}.json").write_text(json.dumps({"format_version": 1, "files": entries}))


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


def test_a_cache_without_any_file_that_matches_does_not_do(cache):
    cached(cache, LISA, "model.safetensors")
    told = "xinlai/LISA-7B-v1 is not on this machine and the hub was not reached: run `hf download xinlai/LISA-7B-v1 "
    assert refusal(LISA).startswith(told)


@pytest.mark.parametrize("download", [True, False])
def test_a_download_that_was_broken_off_is_told_apart(cache, download):
    listed(cache, LISA, "config.json", "a.bin", "b.bin", "other.msgpack")
    told = "xinlai/LISA-7B-v1 is only partly on this machine and the hub was not reached: run `hf download "
    told += "xinlai/LISA-7B-v1 --include '*.json' --include '*.bin' --revision 43c754e` where there is a network, or "
    told += "give a folder with --weights"
    assert refusal(LISA, download=download) == told
    folder = cached(cache, LISA, "config.json").parent
    assert refusal(LISA, download=download) == told
    for name in ("a.bin", "b.bin"):
        (folder / name).touch()
    assert fetched(LISA, download) == folder


@pytest.mark.parametrize("download", [True, False])
def test_what_the_repository_does_not_have_is_told_apart(cache, download):
    listed(cache, SAM, "sam2_hiera_large.yaml", "old/sam2_hiera_large.pt")
    listed(cache, LISA, "model.safetensors", "old/config.json")
    for source, wanted in ((SAM, SAM.file), (LISA, "file that matches *.json, *.bin")):
        told = f"{source.repo} has no {wanted} at revision '{source.revision}': check the config"
        assert refusal(source, download=download) == told
        cached(cache, source, "another.file")
        assert refusal(source, download=download) == told


def test_files_in_subfolders_are_left_out_but_for_one_that_is_named(cache):
    listed(cache, LISA, "config.json", "old/config.json", "old/a.bin")
    folder = cached(cache, LISA, "config.json").parent
    assert fetched(LISA, download=False) == folder
    named = Repository("ybelkada/segment-anything", "main", file="checkpoints/sam.pth")
    listed(cache, named, "config.json", "checkpoints/sam.pth")
    file = cached(cache, named, named.file)
    assert fetched(named, download=False) == file


@pytest.fixture
def refused(monkeypatch, cache):
    """What is said where the hub's download fails in some way, perhaps because of another error."""

    def refuse(error: BaseException, cause: BaseException | None = None) -> str:
        def fail(*_: object, **__: object) -> str:
            raise error from cause

        monkeypatch.setattr("rea2seg.checkpoints.hub.snapshot_download", fail)
        return refusal(SAM)

    assert cache.is_dir()
    return refuse


def blank(kind: type[BaseException]) -> BaseException:
    """An error of the hub's own kinds, which otherwise take a response."""
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (GatedRepoError, "facebook/sam2-hiera-large asks to accept its terms: do so on its page, then `hf auth login`"),
        *[
            (
                kind,
                "the hub has no facebook/sam2-hiera-large at revision 'main', or not for you: check the config, or "
                "`hf auth login`",
            )
            for kind in (RepositoryNotFoundError, RevisionNotFoundError)
        ],
    ],
)
def test_what_the_hub_refuses_is_told_in_a_line(refused, kind, told):
    assert refused(blank(kind)) == told


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (huggingface_hub.errors.HTTPError("peer closed the\nconnection"), "peer closed the connection"),
        (RevisionResolutionError("no commit"), "no commit"),
        (RuntimeError("Data processing error: CAS service error"), "Data processing error: CAS service error"),
        (json.JSONDecodeError("Expecting value", "<html>", 0), "Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_what_goes_wrong_on_the_way_is_told_in_a_line(refused, error, why):
    assert refused(error) == f"facebook/sam2-hiera-large could not be downloaded ({why}): try again"


def test_a_hub_that_answers_with_a_fault_is_not_called_out_of_reach(refused):
    fault = blank(HfHubHTTPError)
    fault.args = ("500 Server Error",)
    told = refused(LocalEntryNotFoundError("nothing cached"), fault)
    assert told == "facebook/sam2-hiera-large could not be downloaded (500 Server Error): try again"
    assert "the hub was not reached" in refused(LocalEntryNotFoundError("nothing cached"), TimeoutError())


def test_a_name_that_is_none_is_told():
    source = Repository("no/such/name", "main")
    told = "the hub has no no/such/name at revision 'main', or not for you: check the config, or `hf auth login`"
    assert refusal(source) == told


PUBLIC = {
    "pickles": [*(f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)), "pytorch_model.bin.index.json"],
    "safetensors": [*(f"model-0000{number}-of-00002.safetensors" for number in (1, 2)), "model.safetensors.index.json"],
    "llama": ["tokenizer.model", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"],
    "qwen": ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json"],
    "whole": ["pytorch_model.bin"],
}
"""Files that the parts of public repositories consist of, `config.json` aside."""

SURPLUS = [
    *("README.md", "trainer_state.json", "training_args.bin", "optimizer.pt", "rng_state_0.pth", "modeling_other.py"),
    *("tf_model.h5", "flax_model.msgpack", "adapter_model.bin", "mm_projector.bin", "consolidated.safetensors"),
    *("checkpoint-500/config.json", "model/model.safetensors", "tokenizer/tokenizer.json", "pytorch_model/a.bin"),
]


@pytest.mark.parametrize(
    ("name", "part", "kinds"),
    [
        ("lisa_7b_v1", "generator", ("pickles", "llama")),
        *[
            (name, "generator", (kind, "llama"))
            for name in ("read_llava15_7b", "rea2seg_llava15_7b")
            for kind in ("pickles", "safetensors")
        ],
        ("rea2seg_lens_3b", "generator", ("safetensors", "qwen")),
        ("lisa_7b_v1", "vision_tower", ("whole",)),
        ("rea2seg_lens_3b", "evaluator", ("safetensors", "qwen")),
    ],
)
def test_the_packaged_configs_take_what_is_needed_and_no_more(name, part, kinds):
    config = Path(__file__).parents[2] / "configs" / f"{name}.yaml"
    source = repository(yaml.safe_load(config.read_text())["weights"][part])
    needed = ["config.json", *(file for kind in kinds for file in PUBLIC[kind])]
    there = needed + SURPLUS
    taken = filter_repo_objects(there, allow_patterns=source.patterns(), ignore_patterns=["*/*"])
    assert list(taken) == needed
    assert [file for file in there if source.takes(file)] == needed
