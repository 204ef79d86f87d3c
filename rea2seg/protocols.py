"""The seats of the pipeline. A class that has the method fits; nothing needs to be inherited or registered.

They are checkable at run time because the type checks of the tests look at arguments with `isinstance`.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from rea2seg.structures import (
    Answer,
    Candidate,
    Embedding,
    Grounding,
    Images,
    Masks,
    Prompt,
    Query,
    Ranking,
    Scene,
    Score,
)


@runtime_checkable
class Generator(Protocol):
    """A segmentation MLLM: the embedding of its prompt token and what that token attends to."""

    def ground(self, queries: Sequence[Query]) -> list[Grounding]: ...


@runtime_checkable
class Segmenter(Protocol):
    """A promptable segmenter: encode an image once, decode any prompts."""

    def encode(self, images: Images) -> list[Embedding]: ...

    def decode(self, embedding: Embedding, prompt: Prompt, multimask: bool) -> Masks: ...


@runtime_checkable
class Evaluator(Protocol):
    """Judges candidates, one score for each candidate of each group; all groups of a query come in one call."""

    def score(self, query: Query, groups: Sequence[Sequence[Candidate]]) -> list[list[Score]]: ...


@runtime_checkable
class Reasoner(Protocol):
    """Thinks in words and answers with boxes and points; None stands for a reply that breaks the format."""

    def reason(self, query: Query, rollouts: int) -> list[Answer | None]: ...


@runtime_checkable
class Search(Protocol):
    """Finds candidates in a scene."""

    def __call__(self, scene: Scene, segmenter: Segmenter) -> list[Candidate]: ...


@runtime_checkable
class Selector(Protocol):
    """Ranks candidates, best first."""

    def __call__(self, scene: Scene, candidates: Sequence[Candidate]) -> Ranking: ...
