"""`edge verify`: check kept files against their hashes."""

from __future__ import annotations

import click

from edge import store
from edge.cli.output import emit_json, json_option, size, table
from edge.cli.pull import drawing
from edge.cli.references import complete_ref
from edge.errors import HashMismatch


@click.command()
@click.argument("ref", required=False, shell_complete=complete_ref)
@json_option
def command(ref: str | None, as_json: bool) -> None:
    """Check kept files against their hashes.

    All of them without REF. Exits with 3 when a file is damaged or missing.
    """
    refs = [ref] if ref else [model.name for model in store.models()]
    with drawing("reading every byte") as report:
        checks = [store.verify(each, report) for each in refs]
    if as_json:
        emit_json([{"name": check.name, "ok": check.ok, "problems": check.problems} for check in checks])
    else:
        rows = [(check.name, size(check.bytes), "; ".join(check.problems) or "whole") for check in checks]
        click.echo(table(rows, ("model", "size", "state")) if rows else "Nothing is kept yet.")
    if damaged := [check.name for check in checks if not check.ok]:
        raise HashMismatch(
            f"damaged: {', '.join(damaged)}", hint="`edge pull` with the same name brings what is wrong again"
        )
