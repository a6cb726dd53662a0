"""`edge host`: what this machine is and which backend it gets."""

from __future__ import annotations

from collections.abc import Sequence

import click

from edge import rates
from edge.cli import ended, host_rates
from edge.cli.output import emit_json, json_option, plain, size, table
from edge.machine import Cpu, Host, Memory, host


@click.command(name="host")
@click.option(
    "--measure",
    "again",
    is_flag=True,
    help="Measure how fast it is (some 20 s), and keep that, unless it was disturbed and what is kept was not.",
)
@click.option(
    "--sort",
    "by",
    type=click.Choice(("decode", "prefill")),
    default="decode",
    show_default=True,
    help="With --measure: which rate the types are sorted by.",
)
@json_option
def command(again: bool, by: str, as_json: bool) -> None:
    """Say what this machine is and which backend it gets."""
    found = host()
    if again:
        measured(found, by, as_json)
        return
    kept = rates.load(found)
    if as_json:
        emit_json({**plain(found), "rates": kept, "why_no_rates": "" if kept else rates.why_none(found)})
    else:
        rows = host_rates.in_brief(kept) if kept else [("measured", f"no: {rates.why_none(found)}")]
        click.echo(describe(found, rows))


def measured(found: Host, by: str, as_json: bool) -> None:
    """Measure, keep and print. Raises EngineError or StoreError; what was measured is printed all the same.

    What has marks against it does not take the place of what has none: plans go by the better evidence.
    """
    from edge.home import rates_file
    from edge.kept import check
    from edge.measure import measure

    check(rates_file())  # before 20 s are spent
    with ended.by_exception():
        taken = measure(lambda doing: click.echo(doing, err=True))
    before = rates.load(found)
    better = before if before and taken.marks and not before.marks else None
    kept = False
    try:
        if better is None:
            rates.save(taken)
            kept = True
    finally:
        if as_json:
            emit_json({**plain(found), "rates": taken, "why_no_rates": "", "kept": kept})
        else:
            click.echo(host_rates.in_full(taken, by))
    if better:
        click.echo(
            f"edge: not kept, as the machine was disturbed: {taken.marks[0]}; plans go on by what was measured on "
            f"{host_rates.when(better)}",
            err=True,
        )


def describe(host: Host, measured: Sequence[tuple[str, str]] = ()) -> str:
    """The host as aligned text, with what was measured of it."""
    gpus = [
        f"{gpu.name} ({gpu.kind}), {'usable' if gpu.usable else 'not usable'}" for gpu in host.accelerators
    ]
    facts = [
        ("cpu", host.cpu.name),
        ("isa", ", ".join(host.cpu.isa) or "none that GGML has faster kernels for"),
        ("cores", cores(host.cpu)),
        ("memory", memory(host.memory)),
        *(("gpu", gpu) for gpu in gpus or ["none found"]),
        ("backend", f"{host.chosen.backend}: {host.chosen.reason}"),
    ]
    rejected = table([(option.choice, option.reason) for option in host.chosen.rejected])
    labels = ("rejected", *("" for _ in host.chosen.rejected))
    return table([*facts, *zip(labels, rejected.splitlines(), strict=False), *measured])


def cores(cpu: Cpu) -> str:
    notes = []
    if cpu.physical != cpu.cores:
        notes.append(f"{cpu.physical} physical")
    if cpu.performance_cores != cpu.physical:
        notes.append(f"{cpu.performance_cores} of them fast")
    return f"{cpu.cores} ({', '.join(notes)})" if notes else str(cpu.cores)


def memory(memory: Memory) -> str:
    limit = f", limited to {size(memory.limit_bytes)}" if memory.limit_bytes is not None else ""
    return f"{size(memory.available_bytes)} available of {size(memory.total_bytes)}{limit}"
