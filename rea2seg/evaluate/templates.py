"""Pages that a browser shows without anything else, and other text for people."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from rea2seg.evaluate.numerals import ends, number, percent, short_ends, signed, signed_ends, typeset
from rea2seg.output import replacing


def rendered(template: str, command: dict[str, Any], **content: Any) -> str:
    """A template of this package filled in, with what was asked as `asked`; all text from outside is escaped."""
    environment = Environment(
        autoescape=True,
        loader=PackageLoader("rea2seg.evaluate", "."),
        undefined=StrictUndefined,
        # Else every statement of the template would leave an empty line in the page.
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["typeset"] = typeset
    environment.filters |= {
        write.__name__: partial(_typeset, write) for write in (number, signed, percent, ends, signed_ends, short_ends)
    }
    asked = {name: _plain(value) for name, value in command.items() if value not in (None, [])}
    return environment.get_template(template).render(asked=asked, version=version("rea2seg"), **content)


def write_text(path: Path, text: str) -> None:
    """A file of text; what is no character becomes its escape, as in JSON."""
    with replacing(path) as place:
        place.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def _plain(value: Any) -> str:
    """A setting of the command in words."""
    return ", ".join(value) if isinstance(value, list) else str(value)


def _typeset(write: Callable[[Any], str], value: Any) -> str:
    return typeset(write(value))
