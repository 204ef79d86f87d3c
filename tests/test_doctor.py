import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from rea2seg import doctor
from rea2seg.config import load_config, package_path
from rea2seg.devices import Placement
from rea2seg.findings import BYTES, Footprint, footprint, peak, stored_as
from tests.public.sam2 import write_sam2

MINI = package_path("rea2seg://mini/v4")


@pytest.fixture
def mini(tmp_path: Path) -> Path:
    """A copy of mini's weights to spoil; files are linked until they are written anew."""
    folder = tmp_path / "mini"
    shutil.copytree(MINI, folder, copy_function=lambda source, target: Path(target).symlink_to(source))
    return folder


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    status = doctor.main([*arguments, "--device", "cpu"])
    printed = capsys.readouterr()
    assert printed.err == ""
    return status, printed.out.splitlines()


def test_mini_is_well_and_nothing_of_it_is_loaded(capsys, monkeypatch):
    monkeypatch.setattr("rea2seg.checkpoints.strict.Blueprint.load", lambda *_: pytest.fail("a model was loaded"))
    status, lines = report(capsys, "--config", "mini")
    assert status == 0
    assert lines[-1] == "11 checks passed, 0 failed"
    assert "ok    generator  ids       [SEG] is 6 of 640" in lines
    assert "ok    generator  image     192 px become 144 tokens" in lines
    assert "ok    evaluator  image     at most 256 tokens of the picture, 16 of each mask" in lines
    assert sum(line.startswith("--precision nf4") for line in lines) == 2


def test_a_run_answers_a_question_with_every_part(capsys):
    status, lines = report(capsys, "--config", "mini", "--run")
    assert status == 0
    assert "ok    evaluator  numbers   0 of 15 candidates could not be scored" in lines
    assert any(line.startswith("ok    pipeline   run       1 target(s), 15 candidates; ground") for line in lines)


def test_every_part_is_looked_at_and_each_fault_comes_with_its_mend(capsys, mini):
    for name in ("generator/tokenizer.json", "segmenter/model.safetensors"):
        (mini / name).unlink()
    (mini / "segmenter/model.safetensors").write_bytes(b"cut off")
    status, lines = report(capsys, "--config", "mini", "--weights", str(mini), "--run")
    assert status == 3
    faults = [line for line in lines if line.startswith("FAIL")]
    assert faults[1].startswith(
        f"FAIL  segmenter  weights   {mini / 'segmenter/model.safetensors'} is damaged or cut off"
    )
    told = "has no tokenizer (tokenizer.json, tokenizer.model, vocab.json): save the tokenizer beside the model"
    assert faults[0] == f"FAIL  generator  weights   {mini / 'generator'} {told}"
    assert len(faults) == 2
    assert "ok    evaluator  image     at most 256 tokens of the picture, 16 of each mask" in lines
    assert not any("pipeline" in line for line in lines)


def test_weights_that_were_never_downloaded_are_told_with_the_command(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    status, lines = report(capsys, "--config", "rea2seg_lens_3b")
    assert status == 3
    assert lines[0].startswith("FAIL  generator  files     OuyBin/LENS_ReasonSeg_CoT is not on this machine")
    assert "run `hf download OuyBin/LENS_ReasonSeg_CoT --include" in lines[0]
    assert lines[-1] == "0 checks passed, 6 failed"


def test_what_is_here_is_examined_and_what_is_not_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--facebook--sam2-hiera-large"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    write_sam2(folder / "snapshots" / ("0" * 40) / "sam2_hiera_large.pt")
    status, lines = report(capsys, "--config", "rea2seg_lens_3b")
    assert status == 3
    assert any(line.startswith("ok    segmenter  files     facebook/sam2-hiera-large at main: ") for line in lines)
    assert any(line.startswith("ok    segmenter  tensors   SAM 2 900 float32") for line in lines)
    assert "FAIL  generator  weights   not examined without weights://generator" in lines
    assert "FAIL  evaluator  weights   not examined without weights://evaluator" in lines


def test_a_wrong_hash_is_a_fault(capsys, mini, tmp_path):
    shutil.copytree(mini / "segmenter", tmp_path / "other", symlinks=True)
    config = (Path(__file__).parents[1] / "configs" / "mini.yaml").read_text()
    file = tmp_path / "other" / "sam_vit_b_01ec64.pth"
    torch.save({"a": torch.ones(1)}, file)
    changed = config.replace("weights: weights://segmenter", f"weights: {file}").replace("rea2seg://mini/v4", str(mini))
    (tmp_path / "own.yaml").write_text(changed)
    status, lines = report(capsys, "--config", str(tmp_path / "own.yaml"))
    assert status == 3
    told = "is damaged (its md5 is not 01ec64): delete it and download it again"
    assert f"FAIL  segmenter  hash      {file} {told}" in lines


def test_everything_that_can_be_examined_is_found_however_deep():
    seats = load_config("mini").seats
    assert [part for part, _, _ in doctor.examinable(seats)] == ["generator", "segmenter", "evaluator"]


# Memory


def test_weights_are_counted_by_precision():
    model = torch.nn.ModuleDict({"language_model": torch.nn.Linear(100, 10), "tower": torch.nn.Linear(10, 10)})
    own = footprint(model, 0, Placement("cpu", "bfloat16"))
    assert (own.language, own.other) == (1010, 110)
    assert own.weights() == 2 * 1120
    assert own.weights("float32") == 4 * 1120
    assert own.weights("nf4") == pytest.approx(1010 * 0.515869 + 2 * 110, abs=1e-2)


def test_models_take_turns_where_they_are_offloaded_and_the_segmenter_stays():
    half = Placement("cpu", "bfloat16")
    generator, evaluator = Footprint(7_000, 300, 50, half), Footprint(8_000, 300, 70, half)
    segmenter = Footprint(0, 600, 30)
    stages = [generator, evaluator, segmenter]
    assert peak(stages) == 2 * 7_300 + 2 * 8_300 + 4 * 600 + 70
    assert peak(stages, offload=True) == 2 * 8_300 + 4 * 600 + 70
    turns = [replace(one, placement=replace(half, offload=True)) for one in (generator, evaluator)]
    assert peak([*turns, segmenter]) == peak(stages, offload=True)
    assert peak([*turns, segmenter], offload=False) == peak(stages)
    assert peak(stages, "nf4", offload=True) == pytest.approx(8_000 * BYTES["nf4"] + 2 * 300 + 4 * 600 + 70)


def test_the_precisions_of_stored_tensors_are_counted():
    stored = {"a": torch.ones(1), "b": torch.ones(1).half(), "c": torch.ones(1).half()}
    assert stored_as(stored) == "2 float16, 1 float32"
