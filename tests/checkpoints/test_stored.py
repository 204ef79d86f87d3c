"""Tensors from disk: which files, what is in them, and what is said of those that are damaged."""

import hashlib
import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rea2seg.checkpoints.hashes import known_hash, verify
from rea2seg.checkpoints.stored import KeyMap, only_file, stored_tensors, under, weight_files, without
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
    assert (
        str(caught.value) == f"{tmp_path} holds no weights: put a file there that ends in .safetensors, .bin, .pt, .pth"
    )
    torch.save(TENSORS, tmp_path / "sam_vit_h.pth")
    assert only_file(tmp_path) == tmp_path / "sam_vit_h.pth"
    torch.save(TENSORS, tmp_path / "another.pt")
    with pytest.raises(CheckpointError) as caught:
        only_file(tmp_path)
    told = "holds several weights (another.pt, sam_vit_h.pth): keep one of them there"
    assert str(caught.value) == f"{tmp_path} {told}"


def test_places_without_weights_are_named(tmp_path):
    nowhere = tmp_path / "nowhere"
    assert refusal(nowhere) == f"{nowhere} does not exist: name a folder with weights, or a file of them"
    told = "holds neither model.safetensors nor pytorch_model.bin, whole or in shards: download the weights"
    assert refusal(tmp_path) == f"{tmp_path} {told}"


def touched(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).touch()
    return [folder / name for name in names]


def write_index(folder: Path, *names: str, ending: str = "model.safetensors") -> None:
    (folder / f"{ending}.index.json").write_text(json.dumps({"weight_map": dict(enumerate(names))}))


def numbered(count: int, ending: str = "safetensors", stem: str = "model") -> list[str]:
    return [f"{stem}-{number:05}-of-{count:05}.{ending}" for number in range(1, count + 1)]


def test_shards_are_found_by_their_index_and_by_their_numbers(tmp_path):
    shards = touched(tmp_path, *numbered(2))
    assert weight_files(tmp_path) == shards
    named = touched(tmp_path, "first.safetensors", "second.safetensors")
    write_index(tmp_path, *(file.name for file in named))
    assert weight_files(tmp_path) == named


def test_an_index_whose_files_are_not_there_does_not_hide_a_whole_file(tmp_path):
    write_index(tmp_path, *numbered(2))
    single = touched(tmp_path, "model.safetensors")
    assert weight_files(tmp_path) == single


@pytest.mark.parametrize("index", ["{", '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'])
def test_whole_pickles_are_taken_where_the_safetensors_are_not_whole(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    touched(tmp_path, numbered(2)[1])
    shards = touched(tmp_path, *numbered(3, "bin", "pytorch_model"))
    assert weight_files(tmp_path) == shards


def test_shards_of_an_older_number_do_not_hide_the_whole_set(tmp_path):
    touched(tmp_path, numbered(2)[0])
    shards = touched(tmp_path, *numbered(3))
    assert weight_files(tmp_path) == shards


def test_the_first_set_that_is_not_whole_is_told(tmp_path):
    first, *others = numbered(6)
    write_index(tmp_path, first, *others)
    touched(tmp_path, first, "pytorch_model-00002-of-00002.bin")
    names = f"{', '.join(others[:3])} and 2 more"
    told = f"lacks {names}, which model.safetensors.index.json names: download what is missing"
    assert refusal(tmp_path) == f"{tmp_path} {told}"
    (tmp_path / "model.safetensors.index.json").unlink()
    told = f"lacks {names}, which the names of the others count: download what is missing"
    assert refusal(tmp_path) == f"{tmp_path} {told}"


@pytest.mark.parametrize("name", ["../model.safetensors", "/model.safetensors", "sub/model.safetensors", "", 3, None])
def test_an_index_names_files_of_its_own_folder_only(tmp_path, name):
    save_file(TENSORS, tmp_path / "model.safetensors")
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    save_file(TENSORS, folder / "sub" / "model.safetensors")
    write_index(folder, name)
    told = "model.safetensors.index.json is not the index of a sharded checkpoint: download it again"
    assert refusal(folder) == f"{folder}/{told}"


@pytest.mark.parametrize("index", ["{", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {}}', "[" * 100_000])
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


@pytest.mark.parametrize("name", ["file.safetensors", "new.pth", "old.pth"])
def test_a_file_that_is_cut_or_changed_anywhere_is_read_or_told(tmp_path, name):
    if name == "file.safetensors":
        save_file(TENSORS, tmp_path / name)
    else:
        torch.save(TENSORS, tmp_path / name, _use_new_zipfile_serialization=name == "new.pth")
    whole, chance = (tmp_path / name).read_bytes(), random.Random(0)
    cut = [whole[:length] for length in range(0, len(whole), 3)]
    told = []
    for number, content in enumerate(cut + [whole] * 300):
        spoilt = bytearray(content)
        if number >= len(cut):
            spoilt[chance.randrange(len(whole))] = chance.randrange(256)
        place = tmp_path / f"{number}{Path(name).suffix}"
        place.write_bytes(spoilt)
        try:
            stored_tensors(place)
        except CheckpointError as error:
            told.append(str(error).removeprefix(f"{place} "))
    assert len(told) >= len(cut)
    assert all(text.startswith(("is damaged or cut off: ", "is a pickle of more", "is not a table")) for text in told)
    assert not any("\n" in text for text in told)


def test_what_a_training_saved_is_not_a_models_weights(tmp_path):
    torch.save({"state": {"a": torch.ones(1)}, "epoch": 3}, tmp_path / "last.pt")
    told = "is not a table of tensors: name the weights of a model, not of a training"
    assert refusal(tmp_path / "last.pt") == f"{tmp_path / 'last.pt'} {told}"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_of_git_lfs_is_told_from_a_damaged_file(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 2564550879\n")
    told = "only points to the weights: run `git lfs pull`, or `hf download` it"
    assert refusal(tmp_path) == f"{tmp_path / name} {told}"


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


def test_a_file_that_cannot_be_hashed_is_told(tmp_path):
    folder = tmp_path / "sam_vit_h_4b8939.pth"
    with pytest.raises(CheckpointError) as caught:
        verify(folder)
    told = "change its permissions, or download it again"
    assert str(caught.value) == f"{folder} cannot be read (No such file or directory): {told}"
    folder.mkdir()
    with pytest.raises(CheckpointError) as caught:
        verify(folder)
    assert str(caught.value) == f"{folder} cannot be read (Is a directory): {told}"
