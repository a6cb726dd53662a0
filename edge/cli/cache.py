"""`edge cache`: what is kept of prompts on the disk. The texts are not shown: they are what somebody said."""

from __future__ import annotations

import click

from edge.cli.output import emit_json, json_option, printable, size, table
from edge.cli.references import complete_ref
from edge.cli.sessions import local


@click.group()
def command() -> None:
    """List or clear the prefixes kept on the disk."""


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the prefixes, the last used first."""
    from edge.engine.disk import listing
    from edge.home import states_folder
    from edge.store.home import disk_errors

    with disk_errors(states_folder()):
        kept, odd = listing(states_folder())
    if as_json:
        emit_json(kept)
    elif kept:
        rows = [
            (printable(entry.model), f"{entry.tokens:,}", size(entry.bytes), local(entry.used))
            for entry in kept
        ]
        click.echo(table(rows, ("model", "tokens", "size", "last used")))
        click.echo(f"{size(sum(entry.bytes for entry in kept))} in {states_folder()}", err=True)
    else:
        click.echo("no kept prefixes; `edge chat` keeps what it computes of a conversation", err=True)
    if odd:
        files = "1 file there is" if len(odd) == 1 else f"{len(odd)} files there are"
        click.echo(f"{files} damaged or not ours, and never used", err=True)


@command.command("clear")
@click.option("--model", "ref", metavar="REF", shell_complete=complete_ref, help="Only those of this model.")
@json_option
def clear(ref: str | None, as_json: bool) -> None:
    """Remove the prefixes; each is computed again when it is needed."""
    from edge.engine.disk import clear as remove
    from edge.home import states_folder
    from edge.store.home import disk_errors

    with disk_errors(states_folder()):
        count, freed = remove(states_folder(), None if ref is None else digests_of(ref))
    if as_json:
        emit_json({"removed": count, "bytes": freed})
    else:
        click.echo(f"removed {count} kept {'prefix' if count == 1 else 'prefixes'}, {size(freed)} freed")


def digests_of(ref: str) -> set[str]:
    """The digests of the models that were called `ref`, or of the one that it means now. Raises ModelNotFound."""
    from edge import store
    from edge.engine.disk import listing
    from edge.engine.state_key import model_digest
    from edge.home import states_folder

    called = {entry.digest for entry in listing(states_folder())[0] if entry.model == ref}
    return called or {model_digest(store.resolve(ref).path)}
