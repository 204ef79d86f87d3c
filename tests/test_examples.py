"""Every example runs on the shipped weights, in a folder of its own."""

import runpy
from pathlib import Path

import pytest

from rea2seg.images import load_image
from rea2seg.synth import SgdrSynth

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))


def test_the_scene_of_the_examples_is_the_first_of_the_test_split() -> None:
    sample = SgdrSynth("test").sample(0)
    assert load_image(FOLDER / "scene.png").equal(sample.image)
    assert (FOLDER / "scene.txt").read_text().strip() == sample.query


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs(example: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip()
