"""rea2seg: reasoning segmentation by candidate discovery and comparative reasoning."""

from rea2seg import _torchvision as _torchvision
