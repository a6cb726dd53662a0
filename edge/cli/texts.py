"""What embed and rerank share: where texts come from, and what is said of them afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from edge.cli.classify import FORMATS

F = TypeVar("F", bound=Callable[..., object])


def input_options(command: F) -> F:
    """--input, --format, --text-field, --backend and --threads, as `edge classify` has them."""
    for option in (
        click.option("--threads", type=click.IntRange(1, 512), metavar="N", help="Threads.  [all cores]"),
        click.option(
            "--backend", type=click.Choice(["onnx", "gguf"]), help="What runs it.  [the faster one here]"
        ),
        click.option(
            "--text-field", metavar="F", help="Field of the text.  [text, sentence, …, or the only one]"
        ),
        click.option(
            "--format",
            "form",
            type=click.Choice(FORMATS),
            help="What the input is.  [by its suffix, else lines]",
        ),
        click.option(
            "--input",
            "file",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Texts to read; - or nothing is stdin.",
        ),
    ):
        command = option(command)
    return command


def say_cut(count: int, limit: int) -> None:
    """A line on stderr where texts were longer than the model reads."""
    if count:
        many = "1 text is" if count == 1 else f"{count:,} texts are"
        click.echo(f"{many} longer than {limit:,} tokens; what is beyond was not read", err=True)


def say_reason(encoder: object) -> None:
    """Why this form of the model runs, on stderr."""
    from edge.cli.output import printable

    reason = getattr(encoder, "reason", "")
    if reason:
        click.echo(printable(reason), err=True)
