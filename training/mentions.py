"""What a question mentions beside its target: what must be looked up first."""

from dataclasses import dataclass

from rea2seg.synth.programs import Anchor, Program, Ranked
from rea2seg.synth.queries import Question
from rea2seg.synth.worlds import World


@dataclass(frozen=True)
class Mention:
    """What must be looked up before a target can be found: these things, by index, at the end of these words.

    That is what a question compares with, what it selects from after a first step, or what an ordinal counts past.
    """

    words: str
    things: tuple[int, ...] = ()

    @classmethod
    def of(cls, question: Question, seen: World) -> "Mention":
        """The mention of a question about the world as it is seen; no words if it has no such things."""
        program = question.program
        anchor: Anchor | None = getattr(program, "anchor", None)
        if anchor is not None:
            return cls(question.text[: question.text.rindex(anchor.name) + len(anchor.name)], (anchor.index,))
        if described := question.selected_from:
            end = question.text.index(described) + len(described)
            return cls(question.text[:end], _selected_from(program, seen))
        if isinstance(program, Ranked) and (passed := program.passed(seen)):
            return cls(question.text.rstrip("?."), passed)
        return cls("")


def _selected_from(program: Program, seen: World) -> tuple[int, ...]:
    """What a program selects from."""
    among: Program | None = getattr(program, "among", None)
    found = None if among is None else among.targets(seen)
    return tuple(thing.index for thing in seen.of_kind(str(program.kind))) if found is None else found
