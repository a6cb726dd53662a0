"""`edge rm`: remove a model."""

from __future__ import annotations

import click

from edge import store
from edge.cli.output import emit_json, json_option, size
from edge.cli.references import complete_ref


@click.command()
@click.argument("ref", shell_complete=complete_ref)
@json_option
def command(ref: str, as_json: bool) -> None:
    """Remove a model.

    A file of yours that was pulled from its path, or one of the Hugging Face cache, is forgotten and stays.
    """
    model = store.remove(ref)
    if as_json:
        emit_json(model)
    elif model.in_place:
        click.echo(f"forgot {model.name}; {model.path} stays where it is")
    else:
        click.echo(f"removed {model.name}, {size(model.bytes)}")
