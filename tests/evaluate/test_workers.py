"""Several processes make the rows that one makes, in the same order, and fail in one line."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from rea2seg.errors import InputError, WorkerError
from rea2seg.evaluate.workers import rows_of
from tests.evaluate.paint import call
from tests.evaluate.telling import PATIENCE, TASKS, telling, wait_for
from tests.evaluate.test_ablations import ablate


def lives(process: int) -> bool:
    """Whether a process is still there, and is not one that has ended and waits to be asked for its status."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def unmade():
    raise AssertionError("made without a task")


def test_rows_come_in_the_order_of_the_tasks_whoever_makes_them(tmp_path):
    rows = list(rows_of(TASKS, partial(telling, tmp_path), workers=2))
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


def test_what_a_worker_raises_is_raised_after_the_rows_before_it_and_nobody_waits_for_the_others():
    rows, begun = rows_of(TASKS, partial(telling, bad=1, slow=2), workers=2), time.monotonic()
    assert [next(rows)[:2], next(rows)[:2]] == [(0, 0), (0, 1)]
    with pytest.raises(InputError, match="sample 1 cannot be read"):
        next(rows)
    assert time.monotonic() - begun < PATIENCE


def test_a_worker_that_dies_is_an_error_that_says_how_to_go_on():
    with pytest.raises(WorkerError, match="fewer --workers"):
        list(rows_of(TASKS, partial(telling, deadly=3), workers=2))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes where Linux shows them")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_process_that_started_them(end):
    code = """if True:
        from functools import partial
        from rea2seg.evaluate.workers import rows_of
        from tests.evaluate.telling import TASKS, telling
        for row in rows_of(TASKS, partial(telling, slow=1), workers=2):
            print(row, flush=True)
    """
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **quiet) as run:
        assert run.stdout is not None
        worker = int(run.stdout.readline().split(",")[2])
        assert lives(worker)
        run.send_signal(end)
        run.stdout.read()
    wait_for(lambda: not lives(worker))


def test_the_command_writes_the_same_bytes_with_two_workers(shop):
    call(shop, out="one")
    call(shop, "--limit", "4")
    where = ["--root", str(shop / "data"), "--config", str(shop / "paint.yaml"), "--out", str(shop / "out")]
    command = [sys.executable, "-m", "rea2seg.evaluate", "--benchmark", "jsonl", *where, "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "4 samples are kept" in done.stderr
    for name in ("metrics.json", "per_sample.jsonl"):
        assert (shop / "out" / name).read_bytes() == (shop / "one" / name).read_bytes()


@pytest.mark.usefixtures("undrawn")
def test_variants_are_compared_by_two_workers_as_by_one(shop):
    variants = [{"name": "one", "change": {"selector.group": 1}}, {"name": "bare", "without": ["core"]}]
    ablate(shop, variants=variants, out="one")
    assert ablate(shop, "--workers", "2", variants=variants) == 0
    assert (shop / "out" / "ablations.json").read_bytes() == (shop / "one" / "ablations.json").read_bytes()
