import pytest

from rea2seg.errors import InputError
from rea2seg.evaluate.comparing import compare, comparison_table
from tests.evaluate.paint import LISA, made_row


def test_runs_are_paired_by_id_whatever_their_order():
    first = [made_row(place, "ab"[place % 2], top1=0.5 + place / 100) for place in range(20)]
    second = [made_row(place, "ab"[place % 2], top1=0.4 + place / 100) for place in range(20)]
    lines = compare(first, second[::-1], LISA)
    assert [(line.label, line.n, line.key) for line in lines] == [
        ("a", 10, "top1"),
        ("b", 10, "top1"),
        ("average", 20, "top1"),
    ]
    for line in lines:
        assert line.difference.mean == pytest.approx(0.1)
        assert line.first - line.second == pytest.approx(0.1)
    assert lines[-1].p < 0.001 < lines[0].p < 0.01


def test_a_key_that_one_run_lacks_is_left_out():
    first, second = [made_row(0, top1=0.5, initial=0.5)], [made_row(0, top1=0.5)]
    assert {line.key for line in compare(first, second, LISA)} == {"top1"}
    assert {line.key for line in compare(second, first, LISA)} == {"top1"}


def test_samples_that_the_other_run_lacks_are_refused_and_others_are_not_missed():
    rows = [made_row(place, top1=0.5) for place in range(3)]
    assert compare(rows[:2], rows, LISA)[0].n == 2
    with pytest.raises(InputError, match="lacks 1 of these samples, such as '2'"):
        compare(rows, rows[:2], LISA)


def test_keys_without_any_difference_are_only_named():
    first = [made_row(place, top1=0.5, blind=0.1) for place in range(4)]
    second = [made_row(place, top1=0.6, blind=0.1) for place in range(4)]
    lines = comparison_table(compare(first, second, LISA), "A", "B").splitlines()
    assert lines[0].startswith("gIoU: A minus B")
    assert [line.split()[:6] for line in lines if " top1 " in line] == [
        [label, "4", "top1", "0.500", "0.600", "-0.100"] for label in ("a", "average")
    ]
    assert lines[-1] == "no sample differs in: blind"
    assert not any(" blind " in line for line in lines[:-1])
