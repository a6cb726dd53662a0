"""`--for-host` of `edge convert`: the level that this machine should run, with the reason; or its rates."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from edge.cli.output import printable
from edge.errors import RequestError

if TYPE_CHECKING:
    from edge.rates import Rates


def level_for_host(source: str, goals: Sequence[str], name: str | None, calibrated: bool) -> str | None:
    """The level to make; None where the pick is here already. Says which and why on stderr.

    Raises as `edge plan --all`, DoesNotFit where nothing fits.
    """
    from edge.candidate import HERE, ONNX
    from edge.convert.choices import choices
    from edge.goals import goal_of

    found = choices(source, goal_of(goals), name=name, calibrated=calibrated)
    pick = found.picked
    lines = [f"{pick.level}: {found.choice.reason}", *found.choice.notes]
    if pick.where == HERE:
        lines.append(f"nothing to make: {pick.artifact} is here")
    click.echo(printable("\n".join(lines)), err=True)
    if pick.where != HERE and pick.is_onnx:
        level = pick.level.removeprefix(ONNX).strip()
        raise RequestError(
            f"the pick is {pick.level}, and this writes GGUF",
            hint=f"run `edge convert {shlex.quote(source)} --to onnx --level {level}`, or leave --for-host out",
        )
    return None if pick.where == HERE else pick.level.lower()


def rates_for_host() -> Rates:
    """What a file squeezed for this machine is chosen by.

    Raises RequestError where the machine was not measured, or not well.
    """
    from edge import rates as measured
    from edge.machine import host

    machine = host()
    backend = machine.chosen.backend
    if not backend.endswith("-cpu"):
        raise RequestError(
            f"which types are fast here is not known: {backend} is not measured", hint="leave --for-host out"
        )
    rates = measured.load(machine)
    if rates is None:
        raise RequestError(f"which types are fast here is not known: {measured.why_none(machine)}")
    if rates.marks:
        raise RequestError(
            f"the measurement of this host is no evidence, as it was {', '.join(rates.marks)}",
            hint=measured.AGAIN,
        )
    return rates
