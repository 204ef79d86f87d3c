"""Imported by pytest before every test module."""

# First, because it makes torchvision importable beside a CPU-only torch, and lightning and transformers import it.
import rea2seg  # noqa: F401
