"""The options that chat and generate share, and what they become."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class Whole(click.types.StringParamType):
    """A text; its variable holds one, white space and all, where click would split it into words."""

    def split_envvar_value(self, rv: str) -> list[str]:
        return [rv]


def context_options(command: F) -> F:
    """--ctx and --threads."""
    for option in (
        click.option("--threads", type=int, metavar="N", help="Threads, prefill and decode alike."),
        click.option("--ctx", type=int, metavar="N", help="Context in tokens."),
    ):
        command = option(command)
    return command


def lora_option(command: F) -> F:
    """--lora, which may stand several times."""
    return click.option(
        "--lora",
        type=Whole(),
        multiple=True,
        metavar="FILE[:SCALE]",
        help="Add a LoRA adapter (GGUF); may be repeated.",
    )(command)


def sampling_options(command: F) -> F:
    """--temp, --top-k, …, --stop; the ranges are checked by `Sampling` itself."""
    for option in (
        click.option(
            "--stop",
            type=Whole(),
            multiple=True,
            metavar="TEXT",
            help="End the answer here; may be repeated.",
        ),
        click.option("--max-tokens", type=int, metavar="N", help="Longest answer.  [the context's end]"),
        click.option("--seed", type=int, metavar="N", help="Equal seeds give equal texts.  [drawn]"),
        click.option(
            "--repeat-penalty", type=float, help="Weaken the last 64 tokens; 1 is off.  [advised, else 1]"
        ),
        click.option(
            "--min-p", type=float, help="Drop tokens below this share of the likeliest.  [advised, else 0.05]"
        ),
        click.option(
            "--top-p", type=float, help="Keep the likeliest tokens up to this sum.  [advised, else 0.95]"
        ),
        click.option(
            "--top-k", type=int, help="Keep the k likeliest tokens; 0 keeps all.  [advised, else 40]"
        ),
        click.option("--temp", type=float, help="0 always takes the likeliest token.  [advised, else 0.8]"),
    ):
        command = option(command)
    return command


def sampling_given(options: dict[str, Any]) -> dict[str, Any]:
    """The sampling settings that the caller gave, out of a verb's keyword arguments, by `Sampling`'s names.

    The others are the model's to advise (`LoadedModel.sampling`). Raises RequestError for one out of range.
    """
    from edge.engine import Sampling

    options["temperature"] = options.pop("temp")
    options["stop"] = tuple(options["stop"]) or None
    given = {name: value for name, value in options.items() if value is not None}
    Sampling(**given)
    return given
