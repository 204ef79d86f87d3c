"""Tensors from disk: which files, what is in them, and what is said of those that are damaged."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rea2seg.checkpoints.hashes import known_hash, verify
from rea2seg.checkpoints.stored import KeyMap, only_file, stored_tensors, under, without
from rea2seg.errors import CheckpointError

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


def refusal(place: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        stored_tensors(place)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(found[name].equal(tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_is_read_by_the_usual_name(tmp_path, name):
    write = save_file if name.endswith("safetensors") else torch.save
    write(TENSORS, tmp_path / name)
    assert same(stored_tensors(tmp_path))
    assert same(stored_tensors(tmp_path / name))


def test_safetensors_come_before_pickles(tmp_path):
    torch.save({"old": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert same(stored_tensors(tmp_path))


def test_pickles_of_all_ages_are_read_and_those_of_sam_2_unpacked(tmp_path):
    torch.save(TENSORS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"model": TENSORS}, tmp_path / "sam2.pt")
    assert same(stored_tensors(tmp_path / "old.pth"))
    assert same(stored_tensors(tmp_path / "sam2.pt"))


def test_weights_of_any_name_are_found_where_there_is_only_one(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        only_file(tmp_path)
    assert str(caught.value) == f"{tmp_path} holds no weights: none of its files ends in .safetensors, .bin, .pt, .pth"
    torch.save(TENSORS, tmp_path / "sam_vit_h.pth")
    assert only_file(tmp_path) == tmp_path / "sam_vit_h.pth"
    torch.save(TENSORS, tmp_path / "another.pt")
    with pytest.raises(CheckpointError) as caught:
        only_file(tmp_path)
    told = "holds several weights (another.pt, sam_vit_h.pth): name one of the files"
    assert str(caught.value) == f"{tmp_path} {told}"


def test_places_without_weights_are_named(tmp_path):
    nowhere = tmp_path / "nowhere"
    assert refusal(nowhere) == f"{nowhere} does not exist: name a folder with weights, or a file of them"
    told = "holds neither model.safetensors nor pytorch_model.bin, whole or in shards: download the weights"
    assert refusal(tmp_path) == f"{tmp_path} {told}"


@pytest.mark.parametrize("index", ["{", "{}", '{"weight_map": 3}'])
def test_an_index_that_is_none_is_named(tmp_path, index):
    file = tmp_path / "model.safetensors.index.json"
    file.write_text(index)
    assert refusal(tmp_path) == f"{file} is not the index of a sharded checkpoint: download it again"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
def test_a_file_that_is_cut_off_is_named(tmp_path, name, share):
    (save_file if name.endswith("safetensors") else torch.save)(TENSORS, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
    assert str(tmp_path / name) in refusal(tmp_path)
    assert "damaged" in refusal(tmp_path)


def test_what_a_training_saved_is_not_a_models_weights(tmp_path):
    torch.save({"state": {"a": torch.ones(1)}, "epoch": 3}, tmp_path / "last.pt")
    told = "is not a table of tensors: name the weights of a model, not of a training"
    assert refusal(tmp_path / "last.pt") == f"{tmp_path / 'last.pt'} {told}"


class Trap:
    """What a malicious pickle would do."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("trapped"),)


def test_a_pickle_that_would_run_something_is_refused_and_nothing_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.ones(1), "b": Trap()}, "evil.pt")
    told = "is a pickle of more than tensors, or damaged, and is not read: get the weights as safetensors"
    assert refusal(Path("evil.pt")) == f"evil.pt {told}"
    assert not Path("trapped").exists()


def test_names_are_exchanged_by_the_first_prefix_that_fits_and_back():
    keys = KeyMap((("model.norm.", "deep.norm."), ("model.", "deep.rest.")), unused=(r".*\.inv_freq",))
    stored = dict.fromkeys(("model.norm.weight", "model.x", "y", "model.inv_freq"), torch.ones(1))
    assert list(keys.native(stored)) == ["deep.norm.weight", "deep.rest.x", "y"]
    assert [keys.stored(name) for name in keys.native(stored)] == ["model.norm.weight", "model.x", "y"]
    assert list(under("model.", stored)) == ["norm.weight", "x", "inv_freq"]
    assert list(without(("model.",), stored)) == ["y"]


def test_the_hash_in_a_name_of_segment_anything_is_compared(tmp_path):
    content = b"weights"
    right = tmp_path / f"sam_vit_h_{hashlib.md5(content).hexdigest()[:6]}.pth"
    right.write_bytes(content)
    assert verify(right) == f"{right.name}: md5 as published"
    wrong = tmp_path / "sam_vit_h_4b8939.pth"
    wrong.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        verify(wrong)
    told = "is damaged (its md5 is not 4b8939): delete it and download it again"
    assert str(caught.value) == f"{wrong} {told}"


def test_the_hash_of_a_file_in_the_hubs_cache_is_its_name(tmp_path):
    content = json.dumps({"weights": 1}).encode()
    blob = tmp_path / "blobs" / hashlib.sha256(content).hexdigest()
    blob.parent.mkdir()
    blob.write_bytes(content)
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert known_hash(link) == ("sha256", blob.name)
    assert verify(link) == "model.safetensors: sha256 as published"
    blob.write_bytes(content + b" ")
    with pytest.raises(CheckpointError, match="is damaged"):
        verify(link)
    assert verify(blob) is None
