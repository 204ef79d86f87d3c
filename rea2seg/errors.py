"""What a person is told when something cannot be done: one line that says what is wrong and what to do."""

from typing import Any, get_args


class Rea2SegError(Exception):
    """The root of all errors the library raises on purpose."""


class InputError(Rea2SegError):
    """An image, question, mask or dataset record that cannot be used."""


class ConfigError(Rea2SegError):
    """A config that names something missing or contradicts itself."""


class CheckpointError(Rea2SegError):
    """Weights that do not fit the format or the model they are meant for."""


class OutputError(Rea2SegError):
    """A place that cannot be written."""


class WorkerError(Rea2SegError):
    """A process that ended before its work was done."""


def require_positive(**numbers: int) -> None:
    """Refuses a setting of a config that must be 1 or more."""
    for name, number in numbers.items():
        if number < 1:
            raise ConfigError(f"{name} must be 1 or more, not {number}")


def require_choice(choices: Any, **words: str) -> None:
    """Refuses a setting of a config that is none of the words of its `Literal`, which Python itself does not check."""
    for name, word in words.items():
        if word not in get_args(choices):
            raise ConfigError(f"{name} must be one of {', '.join(get_args(choices))}, not {word!r}")


def reason(error: BaseException) -> str:
    """What another library's error says, in one line; of the operating system's errors the plain words."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
