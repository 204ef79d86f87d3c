import base64
import io
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rea2seg.data.native import write_native
from rea2seg.drawing import ORANGE, SKY
from rea2seg.evaluate.judging import judge
from rea2seg.evaluate.pictures import SHOWN, pictures_of, telling_cases
from tests.evaluate.paint import LISA, call, furnish, made_row, metrics_of, pipeline, row_of, sample
from tests.fakes import PaintEvaluator

VOID = ("meta", "br", "img", "path", "use", "rect")


class Page(HTMLParser):
    """What a browser would see: tags that are open, addresses, texts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop after an evaluation."""
    shop = furnish(tmp_path_factory.mktemp("shop"))
    assert call(shop) == 0
    return shop


def test_the_report_is_one_whole_file_that_needs_nothing_else(finished):
    page = Page(finished / "out" / "report.html")
    assert page.open == []
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert (page.tags.count("svg"), page.tags.count("img") > 0) == (4, True)
    assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in page.addresses)
    text = (finished / "out" / "report.html").read_text()
    assert "url(http" not in text
    assert "@import" not in text
    assert str(finished) not in text


def test_the_report_says_what_the_metrics_say(finished):
    texts, metrics = Page(finished / "out" / "report.html").texts, metrics_of(finished)
    for name in ("geometric", "attribute", "average"):
        for value in row_of(metrics, name)["gIoU"].values():
            assert f"{value:.3f}" in texts
    for line in metrics["recall"]:
        assert f"{100 * line['at_75']:.1f}%" in texts


def test_a_run_that_is_already_done_loads_nothing_and_makes_the_same_report(finished, monkeypatch):
    report = finished / "out" / "report.html"
    before = report.read_bytes()
    report.unlink()
    monkeypatch.setattr(PaintEvaluator, "__init__", lambda *_, **__: pytest.fail("weights were loaded"))
    assert call(finished) == 0
    assert report.read_bytes() == before


def test_no_text_of_a_dataset_can_break_the_page(shop):
    mark = "<script>alert('red')</script> & $\\alpha$ \u56db \udc81"
    odd = [
        sample(place, mark, category=("<i>$x^$</i>", "\u56db\udc81")[place % 2], component=mark) for place in range(4)
    ]
    write_native(odd, shop / "data")
    assert call(shop) == 0
    page = Page(shop / "out" / "report.html")
    assert "script" not in page.tags
    assert mark.replace("\udc81", "\\udc81") in page.texts
    assert "<i>$x^$</i>" in page.texts
    assert "<i>$x^$</i> (2)" in page.texts  # in a diagram


def test_long_names_leave_room_for_the_diagram(shop):
    write_native([sample(place, category="long " * 40 + str(place % 2)) for place in range(4)], shop / "data")
    assert call(shop) == 0
    assert f"{'long ' * 7}long… (2)" in Page(shop / "out" / "report.html").texts


def test_questions_that_nothing_answers_go_through_everything(shop, capsys):
    odd = [sample(place, truth=None if place % 2 else sample(place).truth) for place in range(6)]
    write_native(odd, shop / "data")
    assert call(shop) == 0
    assert metrics_of(shop)["no_target"] == {"samples": 3, "refused": 0, "falsely_refused": 0}
    assert "3 samples have no target: recall and calibration leave them out" in capsys.readouterr().out
    assert "Answered where nothing fits" in (shop / "out" / "report.html").read_text()
    write_native([replace(one, truth=None) for one in odd], shop / "data")
    assert call(shop, out="none") == 0
    told = metrics_of(shop, "none")
    assert (told["no_target"]["samples"], told["recall"], told["calibration"]) == (6, [], [])
    assert row_of(told, "average")["gIoU"]["top1"] == 0.0
    assert row_of(told, "average")["efficiency"] is None


def test_telling_cases_are_the_extremes_and_equals_stay_in_order():
    rows = [made_row(0, initial=0.9, top1=0.9, oracle=0.9), made_row(1, initial=0.2, top1=0.9, oracle=0.9)]
    rows += [made_row(2, initial=0.2, top1=0.1, oracle=0.8), made_row(3, initial=0.1, top1=0.1, oracle=0.3)]
    rows += [made_row(4, initial=0.2, top1=0.9, oracle=0.9)]
    rows += [replace(made_row(5, initial=0.0, top1=0.0, oracle=0.0), target_area=0)]
    rows += [made_row(6, top1=0.9, oracle=0.9), made_row(7, initial=0.8, top1=0.85, oracle=0.9)]
    found = {cases.title: cases.places for cases in telling_cases(rows, LISA)}
    assert found == {
        "Gained most": [1, 4],
        "Lost most in the ranking": [2, 3],
        "Found worst": [3],
        "Answered where nothing fits": [5],
    }
    many = [made_row(place, initial=0.1, top1=0.9, oracle=0.9) for place in range(20)]
    assert [cases.places for cases in telling_cases(many, LISA)] == [list(range(SHOWN))]


def test_pictures_show_the_target_and_three_masks_with_what_was_thought_of_them():
    one = sample(0)
    row = judge(pipeline(), one, "the blue box", LISA)
    target, initial, top1, best = pictures_of(one, row, LISA)
    assert (target.title, target.note) == ("target", f"{int(one.truth.sum())} pixels")
    assert (initial.title, initial.note) == ("initial mask", f"IoU {16 * 32 / (20 * 36):.3f}")
    assert top1.note == best.note == f"IoU 1.000, scored 1.000, rank 1 of {len(row.ranking)}, prompt search"
    pixels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(p.uri.split(",")[1])))) for p in (target, initial)]
    assert all(picture.shape == (320, 320, 3) for picture in pixels)
    assert [near(pixels[0], SKY), near(pixels[0], ORANGE)] == [True, False]
    assert [near(pixels[1], SKY), near(pixels[1], ORANGE)] == [True, True]


def near(pixels: np.ndarray, colour: tuple[int, int, int]) -> bool:
    """Whether some pixels have about that colour; JPEG changes them a little."""
    return bool((np.abs(pixels.astype(int) - colour).max(axis=2) < 40).sum() > 20)


def test_a_sample_without_target_or_candidates_has_the_pictures_that_there_are():
    one = sample(0, truth=None)
    row = judge(pipeline(lambda *_: []), one, "x", LISA)
    target, initial = pictures_of(one, row, LISA)
    assert (target.note, initial.note) == ("none", "IoU 0.000")
