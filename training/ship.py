"""The folder that mini ships, from the folders its stages wrote: half precision, nothing else changed.

python -m training.ship --runs runs/mini --out rea2seg/mini/v4
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from rea2seg.cli import DONE, Parser, run
from rea2seg.errors import InputError
from training.resuming import refreshed

FOLDERS = {
    "segmenter": "segmenter/weights",
    "generator": "generator/weights",
    "evaluator": "evaluator_stage1/weights",
    "evaluator/adapter": "evaluator_stage2/weights",
    "evaluator_small": "evaluator_small/weights",
}
"""Where each shipped folder comes from, relative to `--runs`."""
LEFT_OUT = {"README.md", ".gitattributes"}
"""What PEFT writes beside an adapter and nobody needs."""


def halve(source: Path, target: Path) -> None:
    """Copy a safetensors file with its float32 tensors in float16."""
    tensors = {n: t.half() if t.dtype == torch.float32 else t for n, t in load_file(source).items()}
    save_file(tensors, target, metadata={"format": "pt"})


def ship(runs: Path, out: Path) -> None:
    """Write every folder of mini that the runs have, and say which they are. Raises `InputError` if they have none.

    An adapter that was trained on an earlier evaluator than the one beside it is left out, also one that `out` has.
    """
    present = {name: runs / origin for name, origin in FOLDERS.items() if (runs / origin).is_dir()}
    if not present:
        raise InputError(f"{str(runs)!r} has no weights of any stage")
    base, adapter = (present.get(name) for name in ("evaluator", "evaluator/adapter"))
    if base and (adapter is None or written(adapter) < written(base)):
        if present.pop("evaluator/adapter", None):
            print(f"{adapter} was trained on an earlier {base} and is left out: train it again")
        shutil.rmtree(out / "evaluator/adapter", ignore_errors=True)
    with refreshed(out) as unfinished:
        for name, origin in present.items():
            print(f"{origin} -> {out / name}")
            (unfinished / name).mkdir(parents=True, exist_ok=True)
            for file in sorted(origin.iterdir()):
                copy(file, unfinished / name / file.name)


def written(folder: Path) -> float:
    """When the weights in a folder were written."""
    return max(file.stat().st_mtime for file in folder.glob("*.safetensors"))


def copy(file: Path, target: Path) -> None:
    """Copy one file of a stage, if anybody needs it."""
    if file.suffix == ".safetensors":
        halve(file, target)
    elif file.name == "adapter_config.json":
        # Which folder its base came from is of no use elsewhere: the adapter lies inside its base's folder.
        settings = json.loads(file.read_text()) | {"base_model_name_or_path": None}
        target.write_text(json.dumps(settings, indent=2) + "\n")
    elif file.is_file() and file.name not in LEFT_OUT:
        shutil.copyfile(file, target)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(lambda: _answer(arguments))


def _answer(arguments: Sequence[str] | None) -> int:
    parser = Parser(prog="python -m training.ship", description="Write the folder that mini ships.")
    parser.add_argument("--runs", type=Path, required=True, help="the folder of the stages")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    options = parser.parse_args(arguments)
    ship(options.runs, options.out)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
