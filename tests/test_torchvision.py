"""torchvision beside a torch it was not built for, and beside its own."""

import subprocess
import sys

import pytest

LOADS = "own = globals()['own'] = Library('torchvision', 'FRAGMENT'); own.define('nms(Tensor its_own) -> Tensor')"
FAILS = "raise OSError(path)"
CHECK = """
import torch
from torch.library import Library

def load_library(path):
    {}

torch.ops.load_library = load_library
import rea2seg
print(len(torch.ops.torchvision.nms.default._schema.arguments))
"""


@pytest.mark.parametrize(("library", "arguments"), [(LOADS, 1), (FAILS, 3)])
def test_operators_are_declared_only_where_the_compiled_half_does_not_load(library: str, arguments: int) -> None:
    done = subprocess.run([sys.executable, "-c", CHECK.format(library)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == (f"{arguments}\n", 0), done.stderr
