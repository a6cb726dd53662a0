"""`edge embed`: texts as vectors, in JSON lines or a .npy file."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge.cli.classify import SAMPLE, check_text, watched
from edge.cli.classify_output import cut, one_line
from edge.cli.options import Whole
from edge.cli.output import ESCAPED, is_terminal
from edge.cli.references import complete_ref
from edge.cli.texts import input_options, say_cut, say_reason
from edge.errors import RequestError

if TYPE_CHECKING:
    from edge.tasks.embed import Embedded
    from edge.tasks.encoder import Encoder
    from edge.tasks.rows import Row

SHOWN = 4  # elements of a vector that a person sees


@click.command()
@click.argument("ref", shell_complete=complete_ref)
@click.argument("text", required=False, type=Whole())
@input_options
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE.npy", help="Write an array, a row a text."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line.")
def command(
    ref: str,
    text: str | None,
    file: Path | None,
    form: str | None,
    text_field: str | None,
    backend: str | None,
    threads: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Turn texts into vectors.

    REF is an encoder that gives embeddings: a kept model, an ONNX folder or a GGUF file. TEXT is one text; else the
    rows of --input or the lines of stdin are read, and their order is kept.

    \b
      edge embed ./minilm-int8 "How do I locate my card?"
      edge embed ./minilm-int8 --input questions.csv --text-field question --out questions.npy
      edge embed ./minilm-int8 --input questions.txt --json > questions.jsonl

    A JSON row is {text, embedding}. A .npy file is float32 (texts, width), gets its name when it is complete, and any
    number of texts takes the same memory. A blank text keeps its place: null, or a row of NaN.
    """
    if text is not None:
        if file:
            raise RequestError("--input is for many texts, and one is given", hint="leave one of them out")
        check_text(text, "the text")
    elif file is None and is_terminal(sys.stdin):
        raise RequestError("there is no text", hint="give one, or --input FILE, or lines on stdin")
    if out and as_json:
        raise RequestError("--json prints and --out writes", hint="leave one of them out")
    if out and out.suffix != ".npy":
        raise RequestError(f"{out} is no .npy file", hint="give it that ending, or print --json")

    from edge.tasks import rows, source
    from edge.tasks.embed import refuse_others
    from edge.tasks.open import open_encoder

    with ExitStack() as stack:
        incoming: Iterator[Row] = iter(())
        if text is not None:
            first, live = [rows.Row(text, line=1)], False
        else:
            lines = stack.enter_context(source.opened(file))
            incoming, live = rows.read(lines, form, rows.Fields(text_field)), lines.live
            first = list(islice(incoming, 1 if live else SAMPLE))
            if not first:
                raise RequestError(f"{lines.name} has no rows", hint="give one with texts")
        # a slow source is taken to go on as it begins
        sample = [row.text for row in first] * (SAMPLE if live else 1)
        encoder = open_encoder(ref, backend=backend, threads=threads, sample=sample)
        stack.enter_context(closing(encoder))
        refuse_others(encoder.about)
        say_reason(encoder)
        every: Iterable[Row] = chain(first, incoming)
        if text is None:
            every = stack.enter_context(watched(lines, out is not None))(every)
        if out:
            write(encoder, every, live, out)
        else:
            show(encoder, every, live, as_json)


def write(encoder: Encoder, rows: Iterable[Row], live: bool, out: Path) -> None:
    """The .npy file, and on stderr what is in it."""
    from edge.tasks.embed import npy

    blank = count = 0
    with npy(out, encoder.about.width) as array:
        for one in found(encoder, rows, live):
            array.add(one.embedding)
            count += 1
            blank += one.embedding is None
    click.echo(f"{out}: {count:,} × {encoder.about.width:,} float32", err=True)
    if blank:
        click.echo(f"{blank:,} blank text{' is a row' if blank == 1 else 's are rows'} of NaN", err=True)


def show(encoder: Encoder, rows: Iterable[Row], live: bool, as_json: bool) -> None:
    """A line for each text: JSON, or the vector's length and beginning."""
    from edge.cli.lines import Lines

    columns = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None
    with Lines() as written:
        for one in found(encoder, rows, live):
            written.write(json_line(one) if as_json else cut(short(one), columns))


def found(encoder: Encoder, rows: Iterable[Row], live: bool) -> Generator[Embedded, None, None]:
    """The embeddings; at their end, whether texts were cut."""
    from edge.tasks.embed import embed

    longer = 0
    with closing(embed(encoder, rows, live=live)) as embedded:
        for one in embedded:
            longer += one.left_out > 0
            yield one
    say_cut(longer, encoder.about.max_tokens)


def json_line(one: Embedded) -> str:
    """`{text, embedding}`, each number with the nine digits that tell float32 apart."""
    values = None if one.embedding is None else [float(f"{value:.9g}") for value in one.embedding.tolist()]
    row = {"text": one.text, "embedding": values} | ({"left_out": one.left_out} if one.left_out else {})
    return json.dumps(row, ensure_ascii=False).translate(ESCAPED)


def short(one: Embedded) -> str:
    """`384 numbers of length 1.000: 0.0312 -0.0101 … ` and the text."""
    if one.embedding is None:
        return "-"
    begins = " ".join(f"{value:.4f}" for value in one.embedding[:SHOWN].tolist())
    length = float((one.embedding.astype(float) ** 2).sum() ** 0.5)
    return f"{len(one.embedding):,} numbers, length {length:.4f}: {begins} …  {one_line(one.text)}"
