"""The rows of many samples, made here or by several processes side by side."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache

import torch

from rea2seg.errors import Rea2SegError
from rea2seg.evaluate.rows import Row

Task = tuple[int, Sequence[int]]
"""The index of a sample, and the places of those who want a row of it."""
RowsOf = Callable[[int, Sequence[int]], Iterable[Row]]
"""The rows of a task, in the order of its places."""


class WorkerError(Rea2SegError):
    """A process that ended before its work was done."""


def rows_of(tasks: Sequence[Task], make: Callable[[], RowsOf], workers: int = 1) -> Iterator[Row]:
    """The rows of all tasks in their order.

    What `make` makes is made once in every process, and not at all if there are no tasks; with several workers it must
    be picklable, and the threads of this process are shared among them. Raises `WorkerError`, and what a task raises.
    """
    if not tasks:
        return
    if workers == 1:
        made = make()
        for index, places in tasks:
            yield from made(index, places)
        return
    threads = max(torch.get_num_threads() // workers, 1)
    # Not forked: threads of PyTorch that are running now would be missing there, and waited for without end.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start, (make, threads))
    try:
        for rows in pool.map(_work, tasks):
            yield from rows
    except BrokenProcessPool as error:
        told = "what is done is kept: give the same command again with fewer --workers"
        raise WorkerError(f"a worker was stopped, perhaps for want of memory; {told}") from error
    finally:
        pool.shutdown(cancel_futures=True)


_make: Callable[[], RowsOf]
"""In a worker: what makes that which its tasks are done with."""


def _start(make: Callable[[], RowsOf], threads: int) -> None:
    global _make
    # Dies without a word where a terminal interrupts them all; whoever started it says so.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(threads)
    _make = make


@cache
def _made() -> RowsOf:
    return _make()


def _work(task: Task) -> list[Row]:
    return list(_made()(*task))
