"""`edge generate`: raw completion, n samples from one prefill."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click

from edge.cli.options import context_options, guess_options, lora_option, sampling_given, sampling_options
from edge.cli.output import emit_json, is_terminal, json_option, printable, timing_line
from edge.cli.references import complete_ref
from edge.cli.structure import structure_given, structure_options, tell_of_cut


@click.command()
@click.argument("ref", shell_complete=complete_ref)
@click.argument("prompt")
@click.option("-n", "n", type=click.IntRange(1, 64), default=1, show_default=True, help="Samples to draw.")
@sampling_options
@structure_options
@lora_option
@guess_options
@context_options
@json_option
def command(
    ref: str,
    prompt: str,
    n: int,
    ctx: int | str | None,
    threads: int | None,
    lora: tuple[str, ...],
    lookup: bool | None,
    draft: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Continue a text, n ways from one prefill.

    REF is a model (see `edge list`), PROMPT the text to continue, as it is: no chat template is put around it.
    """
    structure = structure_given(options)
    given = sampling_given({**options, **(structure.given() if structure else {})})
    from edge.chat.loaded import load
    from edge.engine import Tally

    with load(ref, ctx=ctx, threads=threads, sequences=n, lora=lora, draft=draft, lookup=lookup) as model:
        tally = Tally(n)
        try:
            for chunk in model.generate(prompt, replace(model.sampling, **given), n=n):
                tally.add(chunk)
                if n == 1 and not as_json:
                    click.echo(printable(chunk.text), nl=False)
        except KeyboardInterrupt:
            if n > 1 and not as_json:  # one answer was printed as it came
                if is_terminal(sys.stderr):
                    click.echo(err=True)  # the cursor stands behind ^C
                show_all(tally.texts)
            raise
        timings = tally.timings(model.engine.load_s)
        if as_json:
            emit_json(
                {
                    "texts": tally.texts,
                    "usage": tally.usage,
                    "timings": timings,
                    "finish_reasons": tally.finish_reasons,
                    "plan": model.plan,
                }
            )
            tell_of_cut(structure, tally.texts, tally.finish_reasons)
            return
        if n == 1:
            click.echo()
        else:
            show_all(tally.texts)
        tell_of_cut(structure, tally.texts, tally.finish_reasons)
        click.echo(timing_line(tally.usage, timings), err=True)


def show_all(texts: Sequence[str]) -> None:
    """Several answers, numbered."""
    for number, text in enumerate(texts, 1):
        click.echo(f"── {number}/{len(texts)} ──\n{printable(text)}")
