"""SGDR-Synth: a procedural benchmark of pictures, questions, exact masks and reasoning."""

from rea2seg.synth.dataset import SgdrSynth as SgdrSynth
