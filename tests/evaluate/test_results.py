import random

import pytest

from rea2seg.evaluate.groups import groups_of
from rea2seg.evaluate.numerals import signed, typeset
from rea2seg.evaluate.results import Results, rounded
from rea2seg.evaluate.tables import closing_lines, gain_table, giou_table, tables
from tests.evaluate.paint import LISA, made_row


def of_two_categories() -> Results:
    draw = random.Random(0)
    tops = [0.6 + draw.random() / 10 for _ in range(40)]
    rows = [made_row(i, "ab"[i % 2], initial=0.5, top1=top, oracle=0.9, blind=0.4) for i, top in enumerate(tops)]
    return Results.of(rows, LISA)


def test_groups_are_categories_then_their_components_then_granularities_then_the_average():
    rows = [
        made_row(0, "b", "x", "part", top1=1),
        made_row(1, "b", "y", top1=1),
        made_row(2, "a", "x", top1=1),
        made_row(3, "attribute", "x", top1=1),
        made_row(4, "attribute", "z", "group", top1=1),
    ]
    names = [(group.label, len(group.rows)) for group in groups_of(rows)]
    assert names == [
        ("a", 1),
        ("b", 2),
        ("attribute", 2),
        ("component=b/x", 1),
        ("component=b/y", 1),
        ("component=attribute/x", 1),
        ("component=attribute/z", 1),
        ("granularity=object", 2),
        ("granularity=part", 1),
        ("average", 3),
    ]


def test_a_key_that_some_samples_lack_is_left_out_and_attributes_do_not_count():
    rows = [made_row(0, "a", top1=1.0, instance=0.5), made_row(1, "b", top1=0.5), made_row(2, "attribute", top1=0.0)]
    summaries = Results.of(rows, LISA).to_json()["rows"]
    assert [summary["category"] for summary in summaries] == ["a", "b", "attribute", "average"]
    assert summaries[-1]["gIoU"] == summaries[-1]["cIoU"] == {"top1": 0.75}
    assert [one.label for one in Results.of(rows[2:], LISA).summaries] == ["attribute"]


def test_every_line_has_its_interval_and_that_of_the_average_is_drawn_inside_categories():
    rows = [made_row(i, "large" if i < 9 else "small", top1=float(i < 9)) for i in range(10)]
    large, _, average = Results.of(rows, LISA).to_json()["rows"]
    assert large["gIoU_95"] == {"top1": [1.0, 1.0]}
    # Each category is certain; drawn from the pool, it would spread around 0.9.
    assert (average["gIoU"], average["gIoU_95"]) == ({"top1": 0.5}, {"top1": [0.5, 0.5]})


def test_efficiency_is_the_gained_share_of_what_could_be_gained():
    (summary,) = Results.of([made_row(0, "attribute", initial=0.5, top1=0.6, oracle=0.9)], LISA).summaries
    assert summary.efficiency == pytest.approx(0.25)
    (worse,) = Results.of([made_row(0, "attribute", initial=0.5, top1=0.4, oracle=0.5)], LISA).summaries
    assert worse.efficiency is None
    (alone,) = Results.of([made_row(0, "attribute", top1=0.4, oracle=0.5)], LISA).summaries
    assert alone.efficiency is None


def test_gains_are_signed_and_bracketed():
    line = gain_table(of_two_categories()).splitlines()[-1].replace("[", "").replace("]", "").replace(",", "").split()
    name, mean, low, high, gain, lowest, highest = line[0], *map(float, line[1:])
    assert (name, mean, low, high) == ("blind", 0.4, 0.4, 0.4)
    assert 0.2 < lowest < gain < highest


def test_the_table_has_a_line_for_every_group_and_a_column_for_every_key():
    lines = giou_table(of_two_categories().summaries).splitlines()
    assert lines[0].split() == ["gIoU", "n", "initial", "top1", "oracle", "blind", "efficiency"]
    assert [line.split()[:2] for line in lines[2:]] == [["a", "20"], ["b", "20"], ["average", "40"]]


def test_failures_are_told_as_shares():
    results = Results.of([made_row(0, top1=1.0), made_row(1, top1=1.0)], LISA)
    assert closing_lines(results) == "0 of 2 groups fell back (0.00%); 2 samples without candidates"


def test_tables_that_would_be_empty_are_left_out():
    assert "candidates of" not in tables(of_two_categories())
    assert "estimate of IoU" not in tables(of_two_categories())


def test_what_json_has_no_number_for_becomes_null():
    assert rounded({"a": (1 / 3, float("nan"), 2, "text"), "b": None}) == {"a": [0.333333, None, 2, "text"], "b": None}


def test_what_is_rounded_to_nothing_has_no_minus():
    assert [signed(value) for value in (-0.0004, 0.0004, -0.0006)] == ["+0.000", "+0.000", "-0.001"]
    assert [typeset(text) for text in ("-", "[-0.001, +0.2]")] == ["\N{EN DASH}", "[\N{MINUS SIGN}0.001, +0.2]"]
