"""`edge host`: what this machine is and which backend it gets."""

from __future__ import annotations

import click

from edge.cli.output import emit_json, json_option, size, table
from edge.machine import Cpu, Host, Memory, host


@click.command(name="host")
@json_option
def command(as_json: bool) -> None:
    """Say what this machine is and which backend it gets."""
    found = host()
    if as_json:
        emit_json(found)
    else:
        click.echo(describe(found))


def describe(host: Host) -> str:
    """The host as aligned text."""
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
    return table([*facts, *zip(labels, rejected.splitlines(), strict=False)])


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
