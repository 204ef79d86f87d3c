"""Curves of runs: what was logged, in one file and in one picture."""

import csv
from pathlib import Path

import pytest
from PIL import Image

from training.curves import main, measures_of, read_run


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A stage that was stopped after step 49, and resumed from its checkpoint of step 24."""
    for version, rows in {2: "24,,0.5\n49,1.5,\n", 10: "49,1.25,\n74,,0.75\n"}.items():
        folder = tmp_path / "segmenter" / "log" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(f"step,train/dice,val/iou/point\n{rows}")
    return tmp_path / "segmenter"


def test_a_resumed_run_counts_as_it_was_done_last(stage: Path) -> None:
    logged = read_run(stage)
    assert logged == {24: {"val/iou/point": 0.5}, 49: {"train/dice": 1.25}, 74: {"val/iou/point": 0.75}}
    assert measures_of([logged]) == ["val/iou/point"]


def test_what_a_run_logged_becomes_one_file_that_reads_the_same(stage: Path, tmp_path: Path) -> None:
    assert main([str(stage), "--csv", str(tmp_path / "all.csv")]) == 0
    with (tmp_path / "all.csv").open(newline="") as file:
        assert [*csv.DictReader(file)][1] == {"step": "49", "train/dice": "1.25", "val/iou/point": ""}
    assert read_run(tmp_path / "all.csv") == read_run(stage)


def test_the_picture_has_a_panel_for_each_measure(stage: Path, tmp_path: Path) -> None:
    out, runs = tmp_path / "curves.png", [str(stage), str(stage)]
    heights = []
    for measures in ([], ["--measures", "val/iou/point", "val/iou/point", "val/iou/point"]):
        assert main([*runs, *measures, "--out", str(out)]) == 0
        picture = Image.open(out).convert("RGB")
        heights.append(picture.height)
        assert len(picture.getcolors(picture.width * picture.height) or []) > 10
    assert heights[1] == 2 * heights[0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["{stage}", "--out", "c.png", "--measures", "val/iou"],
            "no run has the measure 'val/iou': known are val/iou/point",
        ),
        (["{stage}"], "give --out, --csv or both"),
        (["{stage}", "{stage}", "--csv", "c.csv"], "--csv takes a single run"),
        (["{folder}", "--out", "c.png"], "holds no curves"),
        (["{folder}/none.csv", "--out", "c.png"], "holds no curves: No such file"),
        (["{picture}", "--out", "c.png"], "holds no curves"),
        (["{folder}/early.csv", "--out", "c.png"], "no run was validated"),
    ],
)
def test_what_cannot_be_drawn_is_told_in_one_line(
    stage: Path, tmp_path: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "early.csv").write_text("step,train/dice\n24,0.5\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n")
    named = {"stage": stage, "folder": tmp_path, "picture": tmp_path / "picture.png"}
    assert main([argument.format(**named) for argument in arguments]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "c.png").exists()
