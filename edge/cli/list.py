"""`edge list`: the models kept here and those that can be pulled."""

from __future__ import annotations

import click

from edge import store
from edge.cli.output import emit_json, json_option, size, table


@click.command(name="list")
@json_option
def command(as_json: bool) -> None:
    """List the models kept here and those that can be pulled."""
    kept = store.models()
    names = {model.ref for model in kept}
    others = [entry for entry in store.catalogue().values() if entry.name not in names]
    if as_json:
        emit_json({"kept": kept, "catalogue": others})
        return
    if kept:
        rows = [
            (model.name, size(model.bytes), model.licence or "not stated", where(model)) for model in kept
        ]
        click.echo(table(rows, ("kept", "size", "licence", "where")))
    else:
        click.echo(f"Nothing is kept yet; `edge pull {store.DEFAULT}` brings the default model.")
    if others:
        rows = [(entry.name, size(entry.bytes), entry.licence, entry.about) for entry in others]
        click.echo("\n" + table(rows, ("can be pulled", "size", "licence", "what it is")))


def where(model: store.Model) -> str:
    """Its path, and whether that still leads somewhere."""
    return str(model.path) if model.path.exists() else f"{model.path} (missing)"
