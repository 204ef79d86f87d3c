from pathlib import Path

import pytest

from tests.evaluate.paint import furnish


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with a config and a dataset of nine questions, three in each of three categories."""
    return furnish(tmp_path)


@pytest.fixture
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without report.html, which takes a second to draw."""
    monkeypatch.setattr("rea2seg.evaluate.__main__.write_page", lambda *_: None)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the diagram, which takes a second to draw."""
    monkeypatch.setattr("rea2seg.evaluate.ablations.differences_plot", lambda *_: "")
