"""What all commands share: options, errors in one line, exit statuses, tables."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn, get_args

from rea2seg.config import Config, load_config
from rea2seg.devices import Precision, is_out_of_memory
from rea2seg.errors import InputError, Rea2SegError

DONE, UNUSABLE, FAILED, INTERRUPTED = 0, 2, 3, 130


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are errors like all others: one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


def boolean(text: str) -> bool:
    """`true` or `false`."""
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text == "true"


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def natural(text: str) -> int:
    """A whole number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def add_pipeline_options(parser: Parser) -> None:
    """The options that say which pipeline runs, and how."""
    parser.add_argument("--config", default="mini", help="a packaged config or a YAML file (default: mini)")
    parser.add_argument("--weights", type=Path, help="the folder of the config's weights, where they are not its own")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default: auto)")
    parser.add_argument("--precision", choices=get_args(Precision), help="of the large models; int8 and nf4 quantise")
    parser.add_argument("--offload", action="store_true", help="large models take turns on the GPU")
    parser.add_argument("--seed", type=natural, default=0, help="of the pipeline's random choices (default: 0)")
    parser.add_argument("--reasoning", type=boolean, help="true or false: whether the evaluator thinks in words first")
    parser.add_argument(
        "--no-target-below", type=fraction, help="say that there is no target where no mask is estimated at this IoU"
    )


def chosen_config(options: argparse.Namespace) -> Config:
    """The config that those options name, checked."""
    names = ("precision", "reasoning", "no_target_below")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    given |= {"offload": True} if options.offload else {}
    return load_config(options.config, options.weights, options.device, options.seed, **given)


def run(command: Callable[[], int]) -> int:
    """The exit status of a command, after saying in one line what stopped it."""
    # Not every name of a file can be printed everywhere; what cannot becomes its escape, as on stderr.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = command()
        sys.stdout.flush()
    except Rea2SegError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return UNUSABLE
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        told = "use a smaller image, --precision nf4 or --offload; python -m rea2seg.doctor shows what fits"
        print(f"error: out of memory: {told}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output (`| head`) has enough; Python would complain again when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    return status


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first column aligned on the left, the others on the right."""
    widths = [max(len(line[column]) for line in (head, *rows)) for column in range(len(head))]
    lines = []
    for line in (head, *rows):
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        lines.append("  ".join([line[0].ljust(widths[0]), *cells[1:]]).rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
