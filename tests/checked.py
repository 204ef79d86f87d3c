"""Where calls are checked while tests run: everywhere but in what scenes and questions are made of.

These call thousands of small functions, which take half as long again when each call is checked; their types are mypy's
alone, unless they name shapes of arrays.
"""

from pathlib import Path

import jaxtyping

ROOT = Path(__file__).parents[1]


def modules() -> list[str]:
    """By their full names, because a package's name would stand for all of its modules."""
    files = [file for package in ("rea2seg", "training") for file in sorted((ROOT / package).rglob("*.py"))]
    return [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in files
        if file.parent.name != "synth" or "from jaxtyping import" in file.read_text()
    ]


jaxtyping.install_import_hook(modules(), "beartype.beartype")
