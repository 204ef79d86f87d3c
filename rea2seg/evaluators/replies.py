"""The evaluator's reply: its format, its grammar, and how numbers are read from it.

`[reasoning text]\\nScores: [0.91, 0.10, 0.00]`, or the last line alone. The format is ours, as the paper's is not
recoverable. Below the text, a number is four tokens: `0` or `1`, `.`, and two digits, which are zeros after `1`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rea2seg.errors import CheckpointError
from rea2seg.evaluators.prompts import EvaluatorTemplate, piece_ids
from rea2seg.text import encode_untrusted

OPENING, POINT, SEPARATOR, CLOSING = "Scores: [", ".", ", ", "]"
DIGITS = "0123456789"
SCORES = re.compile(r"Scores:\s*\[([^\[\]]*)\]")
NUMBER = re.compile(r"[01](?:\.[0-9]+)?")
NEAR_ONE = 0.99
"""What the probability of `0.` counts for where the model chose `1.00` and the digits after `0.` are unread. Ours."""


def format_scores(scores: Sequence[float]) -> str:
    """IoUs in [0, 1] as the last line of a reply, with two decimals."""
    return OPENING + SEPARATOR.join(_number(score) for score in scores) + CLOSING


def parse_scores(reply: str, expected: int) -> tuple[float, ...] | None:
    """The IoUs of the last `Scores: [...]`, or None unless there are `expected` numbers, each in [0, 1]."""
    found = SCORES.findall(reply)
    words = [word.strip() for word in found[-1].split(",")] if found else []
    if len(words) != expected or not all(NUMBER.fullmatch(word) for word in words):
        return None
    scores = tuple(float(word) for word in words)
    return scores if all(score <= 1.0 for score in scores) else None


@dataclass(frozen=True)
class ScoreGrammar:
    """The token ids a list of scores is made of, and which of them may come next."""

    digits: tuple[int, ...]
    point: tuple[int, ...]
    opening: tuple[int, ...]
    separator: tuple[int, ...]
    closing: tuple[int, ...]
    newline: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "ScoreGrammar":
        """The grammar in a tokenizer's ids; each digit must be one token."""
        digits = [encode_untrusted(tokenizer, digit) for digit in DIGITS]
        if any(len(ids) != 1 for ids in digits) or [tokenizer.decode(ids) for ids in digits] != list(DIGITS):
            raise CheckpointError("the tokenizer does not write each digit as one token of its own: scores need that")
        pieces = (tuple(encode_untrusted(tokenizer, text)) for text in (POINT, OPENING, SEPARATOR, CLOSING, "\n"))
        return cls(tuple(ids[0] for ids in digits), *pieces)

    def allowed(self, written: Sequence[int], expected: int) -> tuple[int, ...]:
        """The ids that may follow `written`, the ids after the opening; none once `expected` numbers are closed."""
        slots = self._slots(written, expected)
        for given in written:
            if given not in next(slots, ()):
                raise ValueError("the ids written so far break the grammar")
        return next(slots, ())

    def forced(self, written: Sequence[int], expected: int) -> list[int]:
        """The ids that follow `written` without a choice, up to the next digit or the end."""
        ids: list[int] = []
        while len(allowed := self.allowed([*written, *ids], expected)) == 1:
            ids += allowed
        return ids

    def _slots(self, written: Sequence[int], expected: int) -> Iterator[tuple[int, ...]]:
        """The ids allowed at each step, where `written` says which branch was taken."""
        step = 0
        for number in range(expected):
            yield self.digits[:2]
            below_one = step < len(written) and written[step] == self.digits[0]
            yield from ((token,) for token in self.point)
            for _ in range(2):
                yield self.digits if below_one else self.digits[:1]
            glue = self.separator if number < expected - 1 else self.closing
            yield from ((token,) for token in glue)
            step += 1 + len(self.point) + 2 + len(glue)

    def scores_ids(self, scores: Sequence[float]) -> list[int]:
        """The ids of IoUs in [0, 1], opening and closing included."""
        ids = list(self.opening)
        for place, score in enumerate(scores):
            whole, decimals = _number(score).split(".")
            ids += [*self.separator] if place else []
            ids += [self.digits[int(whole)], *self.point, *(self.digits[int(digit)] for digit in decimals)]
        return [*ids, *self.closing]


def reply_ids(
    tokenizer: PreTrainedTokenizerBase, template: EvaluatorTemplate, scores: Sequence[float], reasoning: str = ""
) -> list[int]:
    """The reply a model is trained to give after the prompt, with the end of its turn; IoUs in [0, 1]."""
    grammar = ScoreGrammar.of(tokenizer)
    thinking = encode_untrusted(tokenizer, reasoning.strip())
    before = [*thinking, *grammar.newline] if thinking else []
    return [*before, *grammar.scores_ids(scores), *piece_ids(tokenizer, template, template.end)]


@dataclass(frozen=True)
class Choice:
    """A digit the model chose: its place in `allowed`, their probabilities among themselves and in all (`mass`)."""

    chosen: int
    probabilities: tuple[float, ...]
    mass: float


def choose(logits: Float[Tensor, " vocab"], allowed: Sequence[int]) -> Choice:
    """The likeliest of the allowed ids. Logits that are not finite give a choice whose mass is not finite either."""
    whole = logits.double().softmax(0)[list(allowed)]
    among = logits[list(allowed)].double().softmax(0)
    return Choice(int(among.nan_to_num(0.0).argmax()), tuple(among.tolist()), float(whole.sum()))


def split_numbers(choices: Sequence[Choice]) -> list[tuple[Choice, ...]]:
    """The choices of each number: one where it is 1.00, three where it begins with 0."""
    numbers, place = [], 0
    while place < len(choices):
        size = 1 if choices[place].chosen == 1 else 3
        numbers.append(tuple(choices[place : place + size]))
        place += size
    return numbers


def expected_value(number: Sequence[Choice]) -> float:
    """The expectation of a number over its digits; the last digit's distribution is that after the chosen first one."""
    one = number[0].probabilities[1]
    if len(number) == 1:
        return one + (1 - one) * NEAR_ONE
    tenths, hundredths = (sum(digit * p for digit, p in enumerate(choice.probabilities)) for choice in number[1:])
    return one + (1 - one) * (tenths / 10 + hundredths / 100)


def confidence(number: Sequence[Choice]) -> float:
    """The mean probability, among the whole vocabulary, of the tokens the grammar allowed where it left a choice."""
    return sum(choice.mass for choice in number) / len(number)


def _number(score: float) -> str:
    return f"{min(max(score, 0.0), 1.0):.2f}"
