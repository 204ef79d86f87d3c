"""Every example runs on the shipped weights, in a folder of its own."""

import re
import runpy
from pathlib import Path

import pytest

from rea2seg.images import load_image
from rea2seg.synth import SgdrSynth

FOLDER = Path(__file__).parents[1] / "examples"
README = (FOLDER.parent / "README.md").read_text()
EXAMPLES = sorted(FOLDER.glob("*.py"))


def test_the_scene_of_the_examples_is_the_first_of_the_test_split() -> None:
    sample = SgdrSynth("test").sample(0)
    assert load_image(FOLDER / "scene.png").equal(sample.image)
    assert (FOLDER / "scene.txt").read_text().strip() == sample.query


def test_the_readme_tells_what_its_example_prints(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(FOLDER / "segment_one_image.py"), run_name="__main__")
    printed = [float(told) for told in re.findall(r"truth ([0-9.]+)", capsys.readouterr().out)]
    told = re.search(r"first mask has IoU ([0-9.]+) with the truth, the second ([0-9.]+)", " ".join(README.split()))
    assert told is not None
    assert [float(number) for number in told.groups()] == pytest.approx(printed[:2], abs=0.01)


def test_the_python_of_the_readme_runs(monkeypatch) -> None:
    monkeypatch.chdir(FOLDER.parent)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["ranking"].scores[0].iou is not None


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs(example: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip()
