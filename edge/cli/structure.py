"""The options that say what an answer must look like: --schema, --grammar, --regex, --choices."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from edge.cli.options import Whole
from edge.errors import RequestError

F = TypeVar("F", bound=Callable[..., Any])
KINDS = ("schema", "grammar", "regex", "choices")


Cut = Callable[[str, str | None], bool]


@dataclass(frozen=True)
class Structure:
    """What an answer must look like: the option that asked for it, GBNF, and `cut(text, finish_reason)`, which says
    whether an answer ended before what it must look like did, by its length or a stop text."""

    kind: str
    grammar: str
    cut: Cut

    def given(self) -> dict[str, str]:
        """It as a setting of `Sampling`."""
        return {"grammar": self.grammar}


def structure_options(command: F) -> F:
    """--schema, --grammar, --regex and --choices; one of them at a time."""
    for option in (
        click.option(
            "--choices",
            type=Whole(),
            metavar="A,B,C",
            help=r"Answer one of these texts; \, is a comma in one.",
        ),
        click.option(
            "--regex", type=Whole(), metavar="PATTERN", help="Answer a text that matches, from start to end."
        ),
        click.option(
            "--grammar", type=Whole(), metavar="FILE", help="Answer by a grammar (GBNF, rule root)."
        ),
        click.option(
            "--schema",
            type=Whole(),
            metavar="FILE|JSON",
            help="Answer JSON that is valid by this JSON Schema.",
        ),
    ):
        command = option(command)
    return command


def structure_given(options: dict[str, Any]) -> Structure | None:
    """Take the four options out of a verb's keyword arguments; None where none was given.

    Raises RequestError for two of them, and for one that cannot be used.
    """
    asked = {kind: value for kind in KINDS if (value := options.pop(kind)) is not None}
    if not asked:
        return None
    if len(asked) > 1:
        names = " and ".join(f"--{kind}" for kind in asked)
        raise RequestError(f"{names} cannot both hold", hint="give one of them")
    ((kind, value),) = asked.items()
    return Structure(kind, *READERS[kind](value))


def from_schema(value: str) -> tuple[str, Cut]:
    from edge.structure.schema import read_schema_file, schema_grammar

    text = value.strip()
    inline = text[:1] in ("{", "[", '"') or text in ("true", "false", "null")
    return schema_grammar(text if inline else read_schema_file(Path(value))), cut_json


def cut_json(text: str, reason: str | None) -> bool:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return True
    return reason == "length" and type(value) in (int, float)  # more digits might have come


def from_grammar(value: str) -> tuple[str, Cut]:
    from edge.structure.grammar import read_grammar

    return read_grammar(Path(value)), lambda text, reason: reason == "length"


def from_regex(value: str) -> tuple[str, Cut]:
    from edge.structure.regex import automaton_grammar, regex_automaton

    found = regex_automaton(value)
    return automaton_grammar(found), lambda text, reason: not found.accepts(text)


def from_choices(value: str) -> tuple[str, Cut]:
    from edge.structure.choices import choices_grammar, split_choices

    choices = split_choices(value)
    return choices_grammar(choices), lambda text, reason: text not in choices


READERS: dict[str, Callable[[str], tuple[str, Cut]]] = {
    "schema": from_schema,
    "grammar": from_grammar,
    "regex": from_regex,
    "choices": from_choices,
}


def tell_of_cut(structure: Structure | None, texts: Sequence[str], reasons: Sequence[str | None]) -> None:
    """Say on stderr where an answer ended before what it must look like did."""
    if structure is None or not any(map(structure.cut, texts, reasons)):
        return
    what = {
        "schema": "short: it is not whole JSON",
        "grammar": "at --max-tokens or --ctx: it may not be all that --grammar asks for",
    }.get(structure.kind, f"short: it is not all that --{structure.kind} asks for")
    click.echo(f"the answer was cut {what}; a larger --max-tokens or --ctx lets it end", err=True)
