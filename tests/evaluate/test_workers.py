"""Several processes make the rows that one makes, in the same order, and fail in one line."""

import os
import time
from functools import partial

import pytest
import torch

from rea2seg.errors import InputError
from rea2seg.evaluate.workers import WorkerError, rows_of
from tests.evaluate.paint import call
from tests.evaluate.test_ablations import ablate

TASKS = [(index, [0, 1]) for index in range(4)]


def telling(slow=-1, bad=-1, deadly=-1):
    """What makes "rows" that say where they come from; some tasks are slow, some fail, some end their process."""

    def rows(index, places):
        time.sleep(index == slow)
        if index == bad:
            raise InputError(f"sample {index} cannot be read")
        if index == deadly:
            os._exit(1)
        return [(index, place, os.getpid(), torch.get_num_threads()) for place in places]

    return rows


def unmade():
    raise AssertionError("made without a task")


def test_rows_come_in_the_order_of_the_tasks_whoever_makes_them():
    rows = list(rows_of(TASKS, partial(telling, slow=0), workers=2))
    assert [row[:2] for row in rows] == [(index, place) for index, places in TASKS for place in places]
    makers = {row[2] for row in rows}
    assert len(makers) == 2
    assert os.getpid() not in makers
    assert {row[3] for row in rows} == {max(torch.get_num_threads() // 2, 1)}


def test_one_worker_is_this_process_and_gives_every_row_when_it_is_made():
    assert {row[2] for row in rows_of(TASKS, telling)} == {os.getpid()}
    rows = rows_of(TASKS, partial(telling, bad=1))
    assert [next(rows)[:2], next(rows)[:2]] == [(0, 0), (0, 1)]
    with pytest.raises(InputError):
        next(rows)


@pytest.mark.parametrize("workers", [1, 2])
def test_without_a_task_nothing_is_made(workers):
    assert not list(rows_of([], unmade, workers))


def test_what_a_worker_raises_is_raised_after_the_rows_before_it():
    rows = rows_of(TASKS, partial(telling, bad=1), workers=2)
    assert [next(rows)[:2], next(rows)[:2]] == [(0, 0), (0, 1)]
    with pytest.raises(InputError, match="sample 1 cannot be read"):
        next(rows)


def test_a_worker_that_dies_is_an_error_that_says_how_to_go_on():
    with pytest.raises(WorkerError, match="fewer --workers"):
        list(rows_of(TASKS, partial(telling, deadly=3), workers=2))


@pytest.mark.usefixtures("unreported")
def test_the_command_writes_the_same_bytes_with_two_workers(shop, capsys):
    call(shop, out="one")
    assert call(shop, "--limit", "4", "--workers", "2") == 0
    assert call(shop, "--workers", "2") == 0
    assert "4 samples are kept" in capsys.readouterr().err
    for name in ("metrics.json", "per_sample.jsonl"):
        assert (shop / "out" / name).read_bytes() == (shop / "one" / name).read_bytes()


@pytest.mark.usefixtures("unreported")
def test_variants_are_compared_by_two_workers_as_by_one(shop):
    variants = [{"name": "one", "change": {"selector.group": 1}}, {"name": "bare", "without": ["core"]}]
    ablate(shop, variants=variants, out="one")
    assert ablate(shop, "--workers", "2", variants=variants) == 0
    assert (shop / "out" / "ablations.json").read_bytes() == (shop / "one" / "ablations.json").read_bytes()
