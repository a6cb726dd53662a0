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


class TokenBias(click.types.StringParamType):
    """TOKEN_ID=BIAS as a pair; the range is checked by `Sampling`."""

    name = "bias"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        token, _, bias = str(value).partition("=")
        try:
            if not (token.isascii() and token.isdigit() and len(token) < 12):
                raise ValueError
            return int(token), float(bias)
        except ValueError:
            self.fail(f"{value!r} is not TOKEN_ID=BIAS, such as 42=-inf", param, ctx)


DIGITS = 4000  # as many Python reads, by default


class Context(click.types.StringParamType):
    """A number of tokens, or "auto"; the planner checks the range."""

    name = "context"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = str(value)
        if text == "auto":
            return text
        digits = text.removeprefix("-")
        if digits.isascii() and digits.isdigit() and len(digits) < DIGITS:
            return int(text)
        self.fail(f"{text!r} is not a number of tokens, and not auto", param, ctx)


CONTEXT_HELP = "Context in tokens; auto is the longest that fits."


def context_options(command: F) -> F:
    """--ctx and --threads."""
    for option in (
        click.option("--threads", type=int, metavar="N", help="Threads, prefill and decode alike."),
        click.option("--ctx", type=Context(), metavar="N|auto", help=CONTEXT_HELP),
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


def guess_options(command: F) -> F:
    """--lookup and --draft."""
    for option in (
        click.option(
            "--draft", metavar="MODEL", help="Let a small model of the same vocabulary guess ahead."
        ),
        click.option(
            "--lookup/--no-lookup",
            default=None,
            help="Guess ahead from the text itself wherever it pays, or never.  [where it changes no text]",
        ),
    ):
        command = option(command)
    return command


def sampling_options(command: F) -> F:
    """--temp, --top-k, …, --stop, then the rarer ones; the ranges are checked by `Sampling` itself."""
    for option in (
        click.option(
            "--logit-bias",
            type=TokenBias(),
            multiple=True,
            metavar="TOKEN_ID=BIAS",
            help="Add this to a token's logit, -inf to ban it; may be repeated.",
        ),
        click.option("--mirostat-eta", type=float, metavar="RATE", help="How fast.  [0.1]"),
        click.option("--mirostat-tau", type=float, metavar="BITS", help="To this surprise.  [5]"),
        click.option(
            "--mirostat",
            type=int,
            metavar="1|2",
            help="Steer the surprise instead of truncating and penalising.  [off]",
        ),
        click.option("--xtc-threshold", type=float, metavar="P", help="What counts as likely.  [0.1]"),
        click.option(
            "--xtc-probability",
            type=float,
            metavar="P",
            help="How often to drop all likely tokens but the last.  [0]",
        ),
        click.option(
            "--dry-multiplier", type=float, metavar="X", help="Weaken what would repeat a run of tokens.  [0]"
        ),
        click.option("--repeat-last-n", type=int, metavar="N", help="Tokens that penalties look at.  [64]"),
        click.option(
            "--presence-penalty", type=float, metavar="X", help="Weaken what was said by this, once.  [0]"
        ),
        click.option(
            "--frequency-penalty", type=float, metavar="X", help="Weaken by this for each time said.  [0]"
        ),
        click.option("--typical-p", type=float, metavar="P", help="Keep typical tokens up to this sum.  [1]"),
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
            "--repeat-penalty", type=float, help="Weaken the last tokens; 1 is off.  [advised, else 1]"
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
    for name in ("stop", "logit_bias"):
        options[name] = tuple(options[name]) or None
    given = {name: value for name, value in options.items() if value is not None}
    Sampling(**given)
    return given
