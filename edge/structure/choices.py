"""One of several exact texts."""

from __future__ import annotations

from collections.abc import Sequence

from edge.errors import RequestError
from edge.structure.automaton import words
from edge.structure.rules import Rules

MAX_CHOICES = 10_000


def choices_grammar(choices: Sequence[str]) -> str:
    """GBNF of exactly one of these texts. Raises RequestError for none, an empty one, or one that no answer can be."""
    if isinstance(choices, str):
        raise RequestError(
            "the choices are one text", hint="give a list of texts: its letters would be taken singly"
        )
    if not choices:
        raise RequestError("there are no choices", hint="give at least one text")
    if len(choices) > MAX_CHOICES:
        raise RequestError(f"there are {len(choices)} choices", hint=f"give at most {MAX_CHOICES}")
    for choice in choices:
        if not isinstance(choice, str):
            raise RequestError(f"the choice {choice!r:.60} is not a text", hint="give texts")
        if not choice:
            raise RequestError("a choice is empty", hint="leave it out")
        if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in choice):
            raise RequestError(
                f"the choice {choice!r:.60} is no text that can be answered", hint="leave it out"
            )
    rules = Rules()
    rules.add("root", [[rules.automaton(words(choices))]])
    return rules.text()


def split_choices(text: str) -> list[str]:
    """A,B,C as a list; a comma that is part of a choice is written \\, and a backslash \\\\."""
    found, escape = [""], False
    for letter in text:
        if escape:
            found[-1] += letter if letter in ",\\" else f"\\{letter}"
        elif letter == ",":
            found.append("")
        elif letter != "\\":
            found[-1] += letter
        escape = letter == "\\" and not escape
    if escape:
        found[-1] += "\\"
    return found
