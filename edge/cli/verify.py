"""`edge verify`: check kept files against their hashes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from edge import store
from edge.cli.certificate import promised
from edge.cli.output import emit_json, json_option, size, table
from edge.cli.pull import drawing
from edge.cli.references import complete_ref
from edge.errors import HashMismatch
from edge.store import home, pulling


@click.command()
@click.argument("ref", required=False, shell_complete=complete_ref)
@json_option
def command(ref: str | None, as_json: bool) -> None:
    """Check kept files against their hashes.

    All of them without REF. A GGUF file or ONNX folder that `edge convert` wrote is checked against its certificate:
    the weights, whose hashes it states. Exits with 3 when a file is damaged or missing.
    """
    refs = [ref] if ref else [model.name for model in store.models()]
    with drawing("reading every byte") as report:
        checks = [checked(each, report) for each in refs]
    if as_json:
        emit_json(
            [
                {"name": check.name, "ok": check.ok, "problems": check.problems, "certificate": certificate}
                for check, certificate in checks
            ]
        )
    else:
        rows = [
            (check.name, size(check.bytes), "; ".join(check.problems) or whole(certificate))
            for check, certificate in checks
        ]
        click.echo(table(rows, ("model", "size", "state")) if rows else "Nothing is kept yet.")
    if damaged := [check.name for check, _ in checks if not check.ok]:
        named = [certificate.name for _, certificate in checks if certificate]
        again = "`edge pull` with the same name brings what is wrong again"
        if named:  # a path is verified alone
            again = f"it is not what {named[0]} states: convert or copy it again"
        raise HashMismatch(f"damaged: {', '.join(damaged)}", hint=again)


def checked(ref: str, report: store.Report) -> tuple[store.Check, Path | None]:
    """What is wrong with a model, and the certificate that it was held against where the store knows no hash."""
    with home.disk_errors(home.models_folder()):
        model = store.find(ref)
        unknown = not all(file.sha256 for file in model.evidence)
        if unknown and (found := promised(model)):
            path, files = found
            problems = pulling.problems(replace(model, evidence=files), report)
            return store.Check(model.name, model.bytes, problems), path
    return store.verify(ref, report), None


def whole(certificate: Path | None) -> str:
    return f"whole: the weights are those of {certificate.name}" if certificate else "whole"
