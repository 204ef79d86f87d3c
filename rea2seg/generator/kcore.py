"""The densest group of look-alike seeds, by k-core decomposition, and a point that is not the target (section 4.2).

The paper keeps the "densest subset" without giving k; we take the innermost core. Thresholds are lost, so ours.
"""

from __future__ import annotations

import networkx as nx
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from rea2seg.cells import Cells


def look_alike(features: Float[Tensor, "n c"], cosine: float) -> Bool[Tensor, "n n"]:
    """Which two features have a cosine above the threshold; none is like itself."""
    directions = functional.normalize(features, dim=1)
    return (directions @ directions.T > cosine).fill_diagonal_(False)


def innermost_core(adjacent: Bool[Tensor, "n n"], attention: Float[Tensor, " n"]) -> Int[Tensor, " core"]:
    """The nodes of the k-core with the largest k >= 1, in order; of several components the one with most attention.

    Empty if there is no edge. Of components with equal attention the one with the lowest node counts.
    """
    graph = nx.from_numpy_array(adjacent.cpu().numpy())
    numbers = nx.core_number(graph)
    k = max(numbers.values(), default=0)
    if k < 1:
        return torch.empty(0, dtype=torch.long)
    core = graph.subgraph(node for node, number in numbers.items() if number == k)
    parts = sorted(sorted(part) for part in nx.connected_components(core))
    best = max(parts, key=lambda part: float(attention[part].sum()))
    return torch.tensor(best)


def background_point(cells: Cells, below: float) -> Float[Tensor, " 2"]:
    """The centre of the cell with the lowest mean logit if that is below the threshold, else the lowest pixel."""
    lowest = int((cells.logits == cells.logits.min()).nonzero()[0])
    return cells.centres[lowest] if cells.logits[lowest] < below else cells.lowest
