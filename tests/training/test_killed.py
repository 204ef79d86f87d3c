"""Whenever a run is killed, the same command ends with the same bytes as one that nobody disturbed."""

import csv
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest
import torch

from rea2seg.config import package_path
from tests.training.conftest import small_tokenizer
from tests.training.stages import EVALUATORS, train
from training.resuming import WholeCheckpoints, refreshed
from training.scoring_data import scoring_data
from training.ship import ship

STEPS = 14
"""SOAP looks for new axes every ten steps; a validation lies in the middle and one at the end."""
MINI = package_path("rea2seg://mini/v4")


def stage(name: str, precision: str = "32-true") -> None:
    """A stage with tiny numbers and all manners of the real one: workers, checkpoints, validations, exports."""
    more = {"trainer.val_check_interval": STEPS // 2, "trainer.precision": precision, "data.workers": 1}
    train(name, STEPS, "--ckpt_path", "last", **more)


def score(weights: Path = MINI) -> None:
    scoring_data(Path("runs/mini/scoring"), weights, scenes=5, per_scene=1)


def begin(folder: Path, work: Callable[..., None], *arguments: object) -> multiprocessing.context.ForkServerProcess:
    """A process of its own that works in a folder. One that has imported everything serves them all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_work, args=(folder, work, arguments))
    process.start()
    return process


def _work(folder: Path, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    with chdir(folder):
        work(*arguments)


def finish(folder: Path, work: Callable[..., None], *arguments: object) -> None:
    process = begin(folder, work, *arguments)
    process.join()
    assert process.exitcode == 0


def kill(sign: Path, pause: float, folder: Path, work: Callable[..., None], *arguments: object) -> None:
    """Begin the work, and kill it a moment after a file has appeared."""
    process = begin(folder, work, *arguments)
    while not sign.exists() and process.is_alive():
        time.sleep(0.002)
    time.sleep(pause)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def kill_at(step: int, folder: Path, name: str, *arguments: object) -> None:
    """Kill a stage a tenth of a second or less after it has written the checkpoint of a step."""
    sign, pause = folder / f"runs/mini/{name}/checkpoints/epoch=0-step={step}.ckpt", random.Random(name + str(step))
    kill(sign, pause.uniform(0, 0.1), folder, stage, name, *arguments)


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def logged(folder: Path) -> dict[tuple[str, str], set[str]]:
    """Every value of every step in the logs of all runs of a stage, without what depends on the clock."""
    values: dict[tuple[str, str], set[str]] = {}
    for log in folder.glob("log/*/metrics.csv"):
        for row in csv.DictReader(log.read_text().splitlines()):
            for name in row.keys() - {"step", "epoch", "train/steps_per_second"}:
                if row[name]:
                    values.setdefault((name, row["step"]), set()).add(row[name])
    return values


def folders(tmp_path: Path, tokenizer) -> tuple[Path, Path]:
    for name in ("whole", "killed"):
        tokenizer.save_pretrained(tmp_path / name / "runs/mini/tokenizer")
    return tmp_path / "whole", tmp_path / "killed"


@pytest.mark.parametrize(
    ("name", "precision", "kills"), [("vision_generator", "32-true", [2, 8]), ("segmenter", "bf16-mixed", [9])]
)
def test_a_stage_that_was_killed_exports_the_same_bytes(tmp_path, tokenizer, name, precision, kills):
    whole, killed = folders(tmp_path, tokenizer)
    finish(whole, stage, name, precision)
    for step in kills:
        kill_at(step, killed, name, precision)
    finish(killed, stage, name, precision)
    exported = files(whole / f"runs/mini/{name}/weights")
    assert files(killed / f"runs/mini/{name}/weights") == exported
    finish(killed, stage, name, precision)
    assert files(killed / f"runs/mini/{name}/weights") == exported, "a finished stage exports what it exported"
    undisturbed, resumed = (logged(folder / f"runs/mini/{name}") for folder in (whole, killed))
    assert {key for key in undisturbed if key[0].startswith("val/")} <= resumed.keys()
    assert all(resumed[key] == undisturbed[key] for key in resumed)
    # A kill costs at most the row of the step whose checkpoint was written last.
    assert len({step for _, step in undisturbed} - {step for _, step in resumed}) <= len(kills)


def test_scoring_data_that_were_killed_have_the_same_rows_and_pictures(tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    finish(tmp_path / "whole", score)
    images = tmp_path / "killed/runs/mini/scoring/images"
    kill(images / "0-000002.png", random.Random("scoring_data").uniform(0, 0.1), tmp_path / "killed", score)
    finish(tmp_path / "killed", score)
    left_behind = [name for name in os.listdir(images) if name.endswith(".part")]
    whole, killed = (files(tmp_path / f"{name}/runs/mini/scoring") for name in ("whole", "killed"))
    assert {name: data for name, data in killed.items() if name.split("/")[-1] not in left_behind} == whole
    assert whole["rows.jsonl"].count(b"\n") == 5


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_all_of_mini_killed_twice_in_every_stage_ships_the_same_bytes(tmp_path, tokenizer, precision):
    shipped = Path("runs/mini/shipped")
    for folder in folders(tmp_path, tokenizer):
        for names in (
            ("segmenter", "vision_generator", "generator"),
            EVALUATORS,
        ):
            for name in names:
                for step in (3, 8) if folder.name == "killed" else ():
                    kill_at(step, folder, name, precision)
                finish(folder, stage, name, precision)
            finish(folder, ship, Path("runs/mini"), shipped)
            if folder.name == "killed":
                kill(folder / "runs/mini/scoring/images/0-000002.png", 0.05, folder, score, shipped)
            finish(folder, score, shipped)
    whole, killed = (tmp_path / name / "runs/mini" for name in ("whole", "killed"))
    assert files(killed / "shipped") == files(whole / "shipped")
    assert (killed / "scoring/rows.jsonl").read_bytes() == (whole / "scoring/rows.jsonl").read_bytes()


def test_a_tokenizer_is_the_same_every_time(tmp_path, tokenizer):
    small_tokenizer().save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "first")
    assert files(tmp_path / "again") == files(tmp_path / "first")


class Cut(Exception):
    """What stands for a kill inside this process."""


class CutOff:
    """Writes half of itself."""

    def __reduce__(self):
        raise Cut


def test_a_checkpoint_that_is_cut_off_leaves_the_one_before(tmp_path):
    checkpoint = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"step": 1}, checkpoint)
    with pytest.raises(Cut):
        WholeCheckpoints().save_checkpoint({"step": 2, "rest": CutOff()}, checkpoint)
    assert torch.load(checkpoint) == {"step": 1}
    WholeCheckpoints().save_checkpoint({"step": 3}, checkpoint)
    assert torch.load(checkpoint) == {"step": 3}
    assert os.listdir(tmp_path) == ["last.ckpt"]


def export_half(weights: Path) -> None:
    with refreshed(weights) as folder:
        (folder / "model").write_text("tw")
        raise Cut


def test_an_export_that_is_cut_off_leaves_the_one_before(tmp_path):
    weights = tmp_path / "weights"
    with refreshed(weights) as folder:
        (folder / "model").write_text("one")
        (folder / "config").write_text("same")
    os.utime(weights / "config", (0, 0))
    with pytest.raises(Cut):
        export_half(weights)
    assert files(weights) == {"model": b"one", "config": b"same"}
    with refreshed(weights) as folder:
        (folder / "model").write_text("two")
        (folder / "config").write_text("same")
    assert files(weights) == {"model": b"two", "config": b"same"}
    assert (weights / "config").stat().st_mtime == 0
    assert os.listdir(tmp_path) == ["weights"]
