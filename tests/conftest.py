"""Imported by pytest before every test module."""

import jaxtyping
import pytest

# First: what a module under jaxtyping's checks imports is compiled anew, and torch has a thousand modules.
import torch  # noqa: F401

# Before anything that it checks.
import tests.checked  # noqa: F401

# isort: split
# Early, because it makes torchvision importable beside a CPU-only torch, and lightning and transformers import it.
import rea2seg  # noqa: F401

# isort: split
import torchvision  # noqa: F401

# isort: split
from hypothesis import settings

settings.register_profile("patient", deadline=None)  # how fast a machine is, is no property of the code
settings.load_profile("patient")


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the type checks of the tests, as a caller meets the library: wrong types get as far as its own checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
