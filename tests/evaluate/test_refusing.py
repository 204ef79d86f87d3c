"""A threshold on the best score: what it refuses, how it is chosen, and the command."""

import json
from pathlib import Path

import numpy as np
import pytest

from rea2seg.evaluate import refusing
from rea2seg.evaluate.refusing import best_scores, best_threshold, refusals_at
from rea2seg.evaluate.rows import Found, Row
from rea2seg.metrics import PRESETS, Overlap

LISA = PRESETS["lisa"]


def row(name: str, *scores: float | None, area: int = 9) -> Row:
    found = tuple(Found(place, "prompt", score, 0.5, Overlap(1, 9)) for place, score in enumerate(scores))
    return Row(name, "geometric", "ordinal", "object", {}, area, found)


def test_the_best_score_counts_as_it_does_for_the_selector() -> None:
    rows = [row("a", 0.2, 0.7, None), row("b", None, None), row("c")]
    assert best_scores(rows).tolist() == [0.7, np.inf, -np.inf]
    assert refusals_at(0.0, best_scores(rows), best_scores(rows)).refused == pytest.approx(1 / 3)


def test_shares_and_area_are_as_counted_by_hand() -> None:
    found = refusals_at(0.5, np.array([0.4, 0.6, 0.9, 0.5]), np.array([0.1, 0.45, 0.6]))
    assert (found.refused, found.falsely) == (pytest.approx(2 / 3), 0.25)
    # Of twelve pairs nine and a half are in order: 0.4 > 0.1, 0.6 > two and ties with one, 0.9 > 3, 0.5 > 2.
    assert found.auroc == pytest.approx((1 + 2.5 + 3 + 2) / 12)
    assert found.balanced == pytest.approx((2 / 3 + 0.75) / 2)


def test_the_threshold_separates_what_can_be_separated_and_refuses_least() -> None:
    found = best_threshold(np.array([0.62, 0.8, 0.9]), np.array([0.1, 0.35]))
    assert (found.threshold, found.balanced, found.auroc) == (0.36, 1.0, 1.0)


def test_what_looks_alike_cannot_be_told_apart() -> None:
    same = np.array([0.2, 0.5, 0.7])
    assert refusals_at(0.6, same, same).auroc == 0.5
    assert best_threshold(same, same).balanced == 0.5


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    kinds = {"with": [row("a", 0.9), row("b", 0.3)], "without": [row("c", 0.2, area=0), row("d", 0.6, area=0)]}
    for name, rows in kinds.items():
        (tmp_path / name).mkdir()
        lines = "".join(json.dumps(one.to_json(LISA)) + "\n" for one in rows)
        (tmp_path / name / "per_sample.jsonl").write_text(lines)
        (tmp_path / name / "command.json").write_text(json.dumps({"command": {"preset": "lisa"}, "fingerprint": ""}))
        (tmp_path / name / "metrics.json").write_text("{}")
    return tmp_path / "with", tmp_path / "without"


def test_the_command_chooses_and_measures(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(run) for run in runs]
    assert refusing.main(paths) == 0
    assert capsys.readouterr().out.splitlines()[2].split() == ["0.21", "0.500", "0.000", "0.750", "0.750"]
    assert refusing.main([*paths, "--at", "0.7"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split() == ["0.70", "1.000", "0.500", "0.750", "0.750"]


def test_runs_of_two_pipelines_are_refused(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    other = {"command": {"preset": "lisa", "config": "large"}, "fingerprint": ""}
    (runs[1] / "command.json").write_text(json.dumps(other))
    assert refusing.main([str(run) for run in runs]) == 2
    assert "the two runs are of another config" in capsys.readouterr().err


def test_a_run_without_scores_has_no_threshold(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    (runs[0] / "per_sample.jsonl").write_text(json.dumps(row("a", None).to_json(LISA)) + "\n")
    assert refusing.main([str(run) for run in runs]) == 2
    assert "holds no scores" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("order", "words"), [((0, 0), "each of which has none"), ((1, 1), "each of which has a target")]
)
def test_runs_of_the_other_kind_are_refused(
    runs: tuple[Path, Path], order: tuple[int, int], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusing.main([str(runs[place]) for place in order]) == 2
    assert words in capsys.readouterr().err
