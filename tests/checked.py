"""Where calls are checked while tests run: in the modules that name shapes of arrays.

The types of all others are mypy's alone: scenes and questions call thousands of small functions, which take half as
long again when each call is checked.
"""

from pathlib import Path

import jaxtyping

ROOT = Path(__file__).parents[1]


def with_shapes() -> list[str]:
    files = [file for package in ("rea2seg", "training") for file in sorted((ROOT / package).rglob("*.py"))]
    return [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in files
        if "from jaxtyping import" in file.read_text()
    ]


jaxtyping.install_import_hook(with_shapes(), "beartype.beartype")
