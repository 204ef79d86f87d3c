"""The rows of many samples, made here or by several processes side by side.

`load_judge()` runs once in every process and loads the weights. The judge that it returns makes the rows of a sample,
one for each run that asks for it: in `evaluate` there is one run, in `ablations` one for each variant and shuffle.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache

import torch

from rea2seg.errors import WorkerError
from rea2seg.evaluate.rows import Row

Task = tuple[int, Sequence[int]]
"""The index of a sample, and those of the runs that want a row of it."""
Judge = Callable[[int, Sequence[int]], Iterable[Row]]
"""The rows of a task, in the order of its runs."""


def rows_of(tasks: Sequence[Task], load_judge: Callable[[], Judge], workers: int = 1) -> Generator[Row, None, None]:
    """The rows of all tasks in their order. Close the generator if you stop early.

    Without tasks nothing is loaded. With several workers `load_judge` is pickled by its name, which must not lie in a
    package's `__main__`; the threads of this process are shared among them. Raises `WorkerError`, and what a task
    raises.
    """
    if not tasks:
        return
    if workers == 1:
        judge = load_judge()
        for sample, runs in tasks:
            yield from judge(sample, runs)
        return
    threads = max(torch.get_num_threads() // workers, 1)
    # Not forked: threads of PyTorch that are running now would be missing there, and waited for without end.
    context = multiprocessing.get_context("spawn")
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(workers, context, _start, (load_judge, threads))
    try:
        # Workers inherit it: where a terminal interrupts them all, this process alone says so and ends them.
        with _ignoring_interrupts():
            found = pool.map(_work, tasks)
        for rows in found:
            yield from rows
    except BrokenProcessPool as error:
        told = "what is done is kept: give the same command again with fewer --workers"
        raise WorkerError(f"a worker was stopped, perhaps for want of memory; {told}") from error
    except BaseException:
        # Nobody wants what is still being done.
        for child in multiprocessing.active_children():
            if child not in others:
                child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_load_judge: Callable[[], Judge]
"""In a worker: what loads its judge."""


def _start(load_judge: Callable[[], Judge], threads: int) -> None:
    global _load_judge
    _load_judge = load_judge
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Whoever is killed cannot end its workers, which would wait for tasks without end."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@cache
def _judge() -> Judge:
    return _load_judge()


def _work(task: Task) -> list[Row]:
    return list(_judge()(*task))
