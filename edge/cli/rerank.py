"""`edge rerank`: texts in the order in which they answer a query."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge.cli.classify import SAMPLE, check_text, watched
from edge.cli.classify_output import aligned, cut, one_line
from edge.cli.options import Whole
from edge.cli.output import ESCAPED, is_terminal
from edge.cli.references import complete_ref
from edge.cli.texts import input_options, say_cut, say_reason
from edge.errors import RequestError

if TYPE_CHECKING:
    from edge.tasks.rerank import Ranked


@click.command()
@click.argument("ref", shell_complete=complete_ref)
@click.argument("query", type=Whole())
@input_options
@click.option("--top", type=click.IntRange(1), metavar="N", help="Texts shown, the best first.  [all]")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line.")
def command(
    ref: str,
    query: str,
    file: Path | None,
    form: str | None,
    text_field: str | None,
    backend: str | None,
    threads: int | None,
    top: int | None,
    as_json: bool,
) -> None:
    """Sort texts by how well they answer a query.

    REF is a cross-encoder (a classifier of pairs with one label), which reads query and text together, or an encoder
    that gives embeddings, whose cosine is the score. The texts are the rows of --input or the lines of stdin.

    \b
      edge rerank ./cross-encoder-int8 "Where is my card?" --input texts.txt --top 5
      edge rerank ./minilm-int8 "Where is my card?" --input texts.csv --json

    A JSON row is {text, score, line}, the best first, with the line of the input that the text begins on. A blank text
    is left out. With --top memory does not grow with the input.
    """
    check_text(query, "the query")
    if file is None and is_terminal(sys.stdin):
        raise RequestError("there are no texts", hint="give --input FILE, or lines on stdin")

    from edge.tasks import rows, source
    from edge.tasks.open import open_encoder
    from edge.tasks.rerank import rerank

    with source.opened(file) as lines:
        incoming = rows.read(lines, form, rows.Fields(text_field))
        first = list(islice(incoming, SAMPLE))
        if not first:
            raise RequestError(f"{lines.name} has no rows", hint="give one with texts")
        sample = [row.text for row in first]
        with closing(
            open_encoder(ref, backend=backend, threads=threads, sample=sample, pairs=True)
        ) as encoder:
            say_reason(encoder)
            with watched(lines, True) as watch:
                ranked = rerank(encoder, query, watch(chain(first, incoming)), top=top)
            limit = encoder.about.max_tokens
    if as_json:
        for one in ranked:
            click.echo(json_line(one))
    elif ranked:
        click.echo(as_table(ranked))
    say_cut(sum(one.left_out > 0 for one in ranked), limit)


def json_line(one: Ranked) -> str:
    row = {"text": one.text, "score": one.score, "line": one.line}
    row |= {"left_out": one.left_out} if one.left_out else {}
    return json.dumps(row, ensure_ascii=False).translate(ESCAPED)


def as_table(ranked: list[Ranked]) -> str:
    """Score, line and text, which a terminal's width cuts."""
    columns = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None
    rows = [(f"{one.score:.4f}", f"{one.line:,}", one_line(one.text)) for one in ranked]
    lines = aligned([("SCORE", "LINE", "TEXT"), *rows], left=2).split("\n")
    return "\n".join(cut(line, columns) for line in lines)
