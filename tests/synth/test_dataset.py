"""What the dataset promises: fixed samples, balanced prefixes, splits that share nothing, files that read back."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from rea2seg.data.native import NativeDataset, write_native
from rea2seg.errors import InputError
from rea2seg.structures import Sample
from rea2seg.synth import SgdrSynth
from rea2seg.synth.__main__ import main
from rea2seg.synth.dataset import SHARES
from rea2seg.synth.queries import COMPONENTS, Question
from rea2seg.synth.vocabulary import SIZES_OF_SPLITS


@cache
def drawn() -> list[tuple[Question, float]]:
    """The first 80 questions of the test split, and the share of the picture that each asks for."""
    rows = [SgdrSynth("test").draw(index) for index in range(80)]
    return [(question, float(question.truth(rendering).mean())) for _, rendering, question in rows]


def test_the_same_seed_writes_the_same_file(tmp_path: Path) -> None:
    write_native(SgdrSynth("test").samples(24), tmp_path)
    digest = hashlib.sha256((tmp_path / "samples.jsonl").read_bytes()).hexdigest()
    assert digest == "878b581f82215ecad1054bd6d94e96d70cbfcbdf57b39685d7d44624676fa886", (
        "other samples: raise VERSION and write the new digest here"
    )


def test_the_test_split_has_the_proportions_of_the_paper() -> None:
    entries = [SgdrSynth("test").entry(index)[0] for index in range(SIZES_OF_SPLITS["test"] or 0)]
    categories = Counter(category for category, _ in entries)
    assert categories == {"discriminative": 279, "geometric": 396, "spatial": 270, "multi-step": 245, "attribute": 110}
    assert set(entries) == set(COMPONENTS)


@pytest.mark.parametrize("length", [40, 130, 400, 1300])
def test_every_prefix_is_stratified(length: int) -> None:
    entries = [SgdrSynth("test").entry(index) for index in range(length)]
    asked = Counter(category for (category, _), _ in entries)
    for category, share in SHARES.items():
        assert abs(asked[category] - share * length / 1300) <= 1
        of_it = Counter(component for (own, component), _ in entries if own == category)
        assert max(of_it.values()) - min(of_it.values()) <= 1
    if length >= 130:
        granularities = Counter(granularity for _, granularity in entries)
        assert min(granularities["part"], granularities["group"]) >= 0.15 * length


def test_training_has_no_end_and_goes_on_in_the_same_proportions() -> None:
    again = [SgdrSynth("train").entry(index)[0][0] for index in range(1300, 2600)]
    assert again == [SgdrSynth("train").entry(index)[0][0] for index in range(1300)]


def test_questions_are_what_the_plan_says() -> None:
    dataset = SgdrSynth("test")
    for index, (question, _) in enumerate(drawn()):
        entry, granularity = dataset.entry(index)
        assert ((question.category, question.component), question.granularity) == (entry, granularity)


def test_targets_are_small_but_not_tiny() -> None:
    shares = [share for _, share in drawn()]
    assert 0.01 <= float(np.median(shares)) <= 0.04
    assert min(shares) >= 24 / 256**2


def test_splits_and_seeds_share_nothing() -> None:
    worlds = [SgdrSynth(split, seed).draw(0)[0] for split in ("train", "val", "test", "no_target") for seed in (0, 1)]
    assert len({world.seed for world in worlds}) == len(worlds)
    assert len({world.things[0].x for world in worlds}) == len(worlds)


def test_a_sample_is_complete() -> None:
    sample = SgdrSynth("val").sample(3)
    world = SgdrSynth("val").draw(3)[0]
    assert (sample.id, sample.split) == ("val-00003", "val")
    assert [region.label.split()[-1] for region in sample.instances] == [thing.kind for thing in world.things]
    assert sample.graph is not None
    assert sample.graph["program"]["operation"] == "Ranked"
    json.dumps(sample.graph)
    target = torch.stack([sample.instances[index].mask for index in sample.graph["target"]]).any(0)
    assert sample.truth is not None
    assert not (sample.truth & ~target).any()


def test_questions_without_target_say_so() -> None:
    for index in range(8):
        sample = SgdrSynth("no_target").sample(index)
        assert sample.truth is None
        assert sample.reasoning.endswith("answer: none.")
    assert all(sample.truth is not None for sample in SgdrSynth("test").samples(4))


def test_unusable_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="no split 'dev'"):
        SgdrSynth("dev")
    with pytest.raises(InputError, match="0 or more"):
        SgdrSynth("test", -1)


def same(one: Sample, other: Sample) -> bool:
    masks = [(one.truth, other.truth)]
    for regions, others in ((one.instances, other.instances), (one.parts, other.parts)):
        if [region.label for region in regions] != [region.label for region in others]:
            return False
        masks += [(region.mask, like.mask) for region, like in zip(regions, others, strict=True)]
    texts = ("id", "query", "category", "component", "granularity", "split", "reasoning")
    return (
        one.image.equal(other.image)
        and json.dumps(one.graph) == json.dumps(other.graph)
        and all(getattr(one, text) == getattr(other, text) for text in texts)
        and all(a is b is None or (a is not None and b is not None and a.equal(b)) for a, b in masks)
    )


def test_what_is_written_can_be_read_back(tmp_path: Path) -> None:
    samples = [*SgdrSynth("val").samples(5), SgdrSynth("no_target").sample(0)]
    assert write_native(samples, tmp_path) == 6
    dataset = NativeDataset(tmp_path)
    assert len(dataset) == 6
    assert all(same(dataset[index], sample) for index, sample in enumerate(samples))
    assert len(NativeDataset(tmp_path, "no_target")) == 1
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


def test_an_id_never_leaves_the_folder(tmp_path: Path) -> None:
    write_native([replace(SgdrSynth("val").sample(0), id="../../a b/ü")], tmp_path / "deep" / "down")
    assert [path.name for path in tmp_path.rglob("*.png")] == ["..%2F..%2Fa%20b%2F%C3%BC.png"]
    assert NativeDataset(tmp_path / "deep" / "down")[0].id == "../../a b/ü"


GOOD = {"id": "a", "image": "images/val-00000.png", "query": "the star", "segmentation": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", "not JSON"),
        ("[]", "a sample is a JSON object"),
        ({"id": 3}, "'id' must be a text"),
        ({"query": ""}, "'query' must be a text"),
        ({"query": "   "}, "line 2: the question is empty"),
        ({"query": "why " * 600}, "line 2: the question has 2,399 characters, more than the limit"),
        ({"image": "images/none.png"}, "line 2: the image .* does not exist"),
        ({"image": "images"}, "line 2: the image .* is not a file"),
        ({"segmentation": ...}, "'segmentation' is missing"),
        ({"image": "../secret.png"}, "inside the dataset"),
        ({"image": "/etc/passwd"}, "inside the dataset"),
        ({"granularity": "whole"}, "'granularity' must be one of"),
        ({"category": 5}, "'category' must be a text"),
        ({"instances": {}}, "'instances' must be a list"),
        ({"parts": [{"label": 1}]}, "each of 'parts'"),
        ({"graph": []}, "'graph' must be an object"),
        ({"split": "test"}, "no samples of the split 'val'"),
    ],
)
def test_a_bad_record_is_named(change: str | dict[str, object], message: str, tmp_path: Path) -> None:
    line = change
    if isinstance(change, dict):
        line = json.dumps({key: value for key, value in {**GOOD, **change}.items() if value is not ...})
    (tmp_path / "images").mkdir()
    (tmp_path / GOOD["image"]).touch()
    (tmp_path / "samples.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(InputError, match=message):
        NativeDataset(tmp_path, "val")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": {"size": [2, 2], "counts": "04"}}, "does not fit the image"),
        ({"segmentation": 7}, "does not fit the image"),
        ({"segmentation": {"size": [256, 256], "counts": "1"}}, "line 1: a mask's run lengths"),
    ],
)
def test_bad_masks_are_named_when_they_are_read(change: dict[str, object], message: str, tmp_path: Path) -> None:
    sample = SgdrSynth("val").sample(0)
    write_native([sample], tmp_path)
    if isinstance(change.get("segmentation"), dict) and change["segmentation"]["size"] == [256, 256]:  # type: ignore[index]
        change = {"segmentation": {"size": list(sample.image.shape[1:]), "counts": "1"}}
    (tmp_path / "samples.jsonl").write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(InputError, match=message):
        NativeDataset(tmp_path)[0]


def test_a_damaged_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    write_native([SgdrSynth("val").sample(0)], tmp_path)
    (tmp_path / GOOD["image"]).write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"line 1: image .* is not a picture"):
        NativeDataset(tmp_path)[0]


def test_an_id_is_used_once(tmp_path: Path) -> None:
    write_native([SgdrSynth("val").sample(0)], tmp_path)
    (tmp_path / "samples.jsonl").write_text(f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}\n")
    with pytest.raises(InputError, match="line 2: the id 'a' is used twice"):
        NativeDataset(tmp_path)


def test_a_missing_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        NativeDataset(tmp_path / "nowhere")


def test_the_command_writes_data_and_sheets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--split", "no_target", "--seed", "3", "--count", "4", "--out", str(tmp_path), "--sheet"]
    assert main(command) == 0
    assert len(NativeDataset(tmp_path)) == 4
    assert len(list(tmp_path.glob("sheet-*.png"))) == 4
    assert (tmp_path / "sheet.png").exists()
    assert "4 samples" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        ["--count", "1"],
        ["--count", "0", "--out", "x"],
        ["--count", "2", "--out", "x", "--seed", "-1"],
        ["--count", "2", "--out", "x", "--split", "dev"],
        ["--count", "2", "--out", "x", "--side", "3"],
        ["--count", "2", "--out", "/dev/null/x"],
    ],
)
def test_the_command_refuses_in_one_line(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
