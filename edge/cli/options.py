"""The options that chat and generate share, and what they become."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from edge.engine import Sampling

F = TypeVar("F", bound=Callable[..., Any])


def context_options(command: F) -> F:
    """--ctx and --threads."""
    for option in (
        click.option("--threads", type=int, metavar="N", help="Threads, prefill and decode alike."),
        click.option("--ctx", type=int, metavar="N", help="Context in tokens."),
    ):
        command = option(command)
    return command


def sampling_options(command: F) -> F:
    """--temp, --top-k, …, --stop; the ranges are checked by `Sampling` itself."""
    for option in (
        click.option("--stop", multiple=True, metavar="TEXT", help="End the answer here; may be repeated."),
        click.option(
            "--max-tokens", type=int, metavar="N", help="Longest answer in tokens.  [to the context's end]"
        ),
        click.option("--seed", type=int, metavar="N", help="Equal seeds give equal texts.  [drawn]"),
        click.option(
            "--repeat-penalty", type=float, default=1.0, help="Weaken the last 64 tokens; 1 is off."
        ),
        click.option(
            "--min-p", type=float, default=0.05, help="Drop tokens below this share of the likeliest."
        ),
        click.option("--top-p", type=float, default=0.95, help="Keep the likeliest tokens up to this sum."),
        click.option("--top-k", type=int, default=40, help="Keep the k likeliest tokens; 0 keeps all."),
        click.option("--temp", type=float, default=0.8, help="0 always takes the likeliest token."),
    ):
        command = option(command)
    return command


def sampling(options: dict[str, Any]) -> Sampling:
    """Take the sampling options out of a verb's keyword arguments. Raises RequestError for one out of range."""
    from edge.engine import Sampling

    return Sampling(
        temperature=options.pop("temp"),
        top_k=options.pop("top_k"),
        top_p=options.pop("top_p"),
        min_p=options.pop("min_p"),
        repeat_penalty=options.pop("repeat_penalty"),
        seed=options.pop("seed"),
        max_tokens=options.pop("max_tokens"),
        stop=tuple(options.pop("stop")),
    )
