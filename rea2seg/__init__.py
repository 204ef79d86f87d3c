"""rea2seg: reasoning segmentation by candidate discovery and comparative reasoning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rea2seg import _torchvision as _torchvision

if TYPE_CHECKING:
    from rea2seg.errors import Rea2SegError
    from rea2seg.pipeline import Rea2Seg
    from rea2seg.ranking import rank
    from rea2seg.structures import Candidate, Query, Ranking

__all__ = ["Candidate", "Query", "Ranking", "Rea2Seg", "Rea2SegError", "rank"]

_HOMES = {
    "Rea2Seg": "pipeline",
    "Rea2SegError": "errors",
    "rank": "ranking",
    "Candidate": "structures",
    "Query": "structures",
    "Ranking": "structures",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: the pipeline brings transformers along, which takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
