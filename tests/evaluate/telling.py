"""Tasks whose "rows" tell who made them; in a module of their own: workers import it, and it imports little else."""

import os
import time
from collections.abc import Callable

import torch

from rea2seg.errors import InputError

TASKS = [(index, [0, 1]) for index in range(4)]
PATIENCE = 60.0
"""Seconds after which something that should happen has not."""


def telling(meet=None, slow=-1, bad=-1, deadly=-1):
    """What makes "rows" that say where they come from. Some tasks take long, fail or end their process; the first one
    waits until a second process has begun too, where `meet` is a folder to meet in."""

    def rows(index, places):
        if meet:
            (meet / str(os.getpid())).touch()
            wait_for(lambda: index > 0 or len(list(meet.iterdir())) > 1)
        time.sleep(PATIENCE * (index == slow))
        if index == bad:
            raise InputError(f"sample {index} cannot be read")
        if index == deadly:
            os._exit(1)
        return [(index, place, os.getpid(), torch.get_num_threads()) for place in places]

    return rows


def wait_for(happens: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.05)
