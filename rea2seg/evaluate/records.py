"""Rows kept on disk as they come, so that an interrupted evaluation goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm

import rea2seg
from rea2seg.config import Config
from rea2seg.errors import OutputError, reason
from rea2seg.evaluate.rows import Row
from rea2seg.evaluate.workers import Judge, rows_of
from rea2seg.metrics import Convention
from rea2seg.output import remove, replacing, write_json

MODEL_CODE = ("torch", "transformers", "peft", "segment-anything", "sam2")
ROWS, COMMAND, METRICS, PAGE = "per_sample.jsonl", "command.json", "metrics.json", "report.html"


class Records:
    """The rows of one command, in a folder or, without one, in memory.

    Rows are kept if the folder holds those of the same fingerprint; any others are given up.
    """

    def __init__(self, folder: Path | None, command: dict[str, Any], fingerprint: str, convention: Convention) -> None:
        self.folder, self.convention = folder, convention
        self.rows: dict[str, Row] = {}
        if folder is None:
            return
        if read_command(folder).get("fingerprint") == fingerprint:
            self.rows = {row.id: row for row in read_rows(folder)}
        for name in (METRICS, PAGE):
            remove(folder / name)
        self._rewrite(self.rows.values())
        write_json(folder / COMMAND, {"command": command, "fingerprint": fingerprint}, sort_keys=True)

    def add(self, row: Row) -> None:
        """Keep a row; it is on disk when this returns. Raises `OutputError` if there is one of its sample already."""
        if row.id in self.rows:
            told = f"{str(self.folder)!r} holds rows of other samples than the first ones"
            raise OutputError(f"{told}: {row.id!r} comes twice; remove the folder, or give another")
        self.rows[row.id] = row
        if self.folder is None:
            return
        try:
            with (self.folder / ROWS).open("a", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
                file.write(self._line(row))
        except OSError as error:
            raise OutputError(f"{str(self.folder / ROWS)!r} cannot be written: {reason(error)}") from error

    def finish(self, ids: Iterable[str], metrics: dict[str, Any]) -> None:
        """The rows in the order of the benchmark, and the metrics: the same bytes however often it was interrupted."""
        if self.folder is not None:
            self._rewrite(self.rows[id] for id in ids)
            write_json(self.folder / METRICS, metrics, sort_keys=True)

    def _rewrite(self, rows: Iterable[Row]) -> None:
        if self.folder is not None:
            with replacing(self.folder / ROWS) as place:
                place.write_text("".join(map(self._line, rows)), "utf-8", "backslashreplace", newline="\n")

    def _line(self, row: Row) -> str:
        return json.dumps(row.to_json(self.convention), ensure_ascii=False, sort_keys=True) + "\n"


def fill(
    every: Sequence[Records], count: int, unit: str, load_judge: Callable[[], Judge], workers: int = 1
) -> list[str]:
    """Add the rows that are still missing of the first samples, with a progress bar in this unit; returns their ids.

    every: one for each run, in the order in which `load_judge`'s judge counts them (see `rows_of`).
    """
    # Rows are kept in the benchmark's order, perhaps more than are wanted now.
    wanted = [[run for run, records in enumerate(every) if sample >= len(records.rows)] for sample in range(count)]
    tasks = [(sample, runs) for sample, runs in enumerate(wanted) if runs]
    missing = [run for _, runs in tasks for run in runs]
    kept = count * len(every) - len(missing)
    if kept:
        print(f"{kept} {unit}s are kept from an earlier run of the same command", file=sys.stderr)
    with (
        tqdm(total=count * len(every), initial=kept, unit=unit, disable=None) as bar,
        closing(rows_of(tasks, load_judge, workers)) as rows,
    ):
        for run, row in zip(missing, rows, strict=True):
            every[run].add(row)
            bar.update()
    return [*every[0].rows][:count]


def read_command(folder: Path) -> dict[str, Any]:
    """What the run in a folder was, with its `fingerprint`; empty if nothing there says so."""
    try:
        kept = json.loads((folder / COMMAND).read_text(encoding="utf-8"))
        return {**kept["command"], "fingerprint": kept["fingerprint"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def read_rows(folder: Path) -> Iterator[Row]:
    """The rows of a folder up to the first line that is not whole."""
    try:
        lines = (folder / ROWS).read_bytes().split(b"\n")
    except (OSError, ValueError):
        return
    # Decoded line by line: whoever is stopped in the middle of a character loses that line alone.
    for line in lines:
        try:
            yield Row.from_json(json.loads(line))
        except (ValueError, KeyError, TypeError):
            return


def fingerprint_of(command: dict[str, Any], config: Config, pictures: Sequence[str] = ()) -> str:
    """Changes with whatever could change a row: command (not its limit), config, code, weights and pictures."""
    asked = {name: value for name, value in command.items() if name != "limit"}
    parts = [json.dumps(asked, sort_keys=True), config.text(), code_stamp(), *_files(config.seats), *_files(pictures)]
    return hashlib.sha256("\n".join(parts).encode(errors="backslashreplace")).hexdigest()


def code_stamp() -> str:
    """The state of this package's code, and the versions of those that hold the models' code."""
    versions = [f"{name} {version(name)}" for name in MODEL_CODE if find_spec(name.replace("-", "_")) is not None]
    digest = hashlib.sha256(" ".join(versions).encode())
    for path in sorted(Path(rea2seg.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _files(node: Any) -> Iterator[str]:
    """Name, size and time of every file that is named, directly or by its folder."""
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list | tuple):
        for item in node:
            yield from _files(item)
    elif isinstance(node, str) and os.path.exists(node):  # unlike the method of Path, False for the empty text
        files = [Path(node)] if Path(node).is_file() else sorted(Path(node).rglob("*"))
        for path in files:
            about = path.stat()
            yield f"{path} {about.st_size} {about.st_mtime_ns}"
