"""`edge bench memory`: the plan's memory beside what a run really took."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edge.cli.bench_report import Column, Output, mebibytes, report_options, shares
from edge.cli.references import complete_ref

if TYPE_CHECKING:
    from edge.bench.memory import Cell
    from edge.bench.record import Row

COLUMNS = (
    Column("level", "level"),
    Column("context", "context"),
    Column("parallel", "slots"),
    Column("kv", "KV"),
    Column("mmap", "mmap"),
    mebibytes("predicted_bytes", "predicted", 1),
    mebibytes("measured_bytes", "measured", 1),
    mebibytes("group_bytes", "cgroup", 1),
    shares("error", "error", 1),
)
KV, MMAP = ("f16", "q8_0", "q4_0"), {"on": True, "off": False}


def counts(_: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    """Numbers from 1 on, separated by commas."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if min(found, default=0) < 1:
        raise click.BadParameter(f"{text!r} is not N,N,…", param=parameter)
    return found


@click.command("memory")
@click.argument("refs", nargs=-1, required=True, shell_complete=complete_ref)
@click.option(
    "--ctx",
    callback=counts,
    default="512,2048,8192",
    show_default=True,
    metavar="N,N",
    help="Contexts in tokens.",
)
@click.option(
    "--parallel",
    callback=counts,
    default="1",
    show_default=True,
    metavar="N,N",
    help="Conversations at a time.",
)
@click.option("--kv", type=click.Choice(KV), multiple=True, help="Type of keys and values; may be repeated.")
@click.option(
    "--mmap", type=click.Choice([*MMAP]), multiple=True, help="Map the file; may be repeated.  [the plan's]"
)
@click.option("--threads", type=int, metavar="N", help="Threads, prefill and decode alike.")
@click.option(
    "--prompt",
    type=click.IntRange(min=1),
    default=2048,
    show_default=True,
    metavar="N",
    help="Tokens of a prompt.",
)
@report_options("memory")
def memory(
    refs: tuple[str, ...],
    ctx: tuple[int, ...],
    parallel: tuple[int, ...],
    kv: tuple[str, ...],
    mmap: tuple[str, ...],
    threads: int | None,
    prompt: int,
    output: Output,
) -> None:
    """The plan's memory beside what a run really took.

    An encoder reads batches of texts of --ctx tokens on every thread.
    Every model with every --ctx, --parallel, --kv and --mmap, each in a fresh process that prefills up to --prompt
    tokens in each conversation. Measured is the peak resident size (VmHWM); cgroup the peak of a control group of
    its own.
    """
    from edge.bench.memory import by_model, memory
    from edge.bench.record import record
    from edge.machine.power import power_state

    work = {"prompt": prompt}
    output.check_work(work)
    before = power_state()
    cells = memory(
        refs,
        ctx,
        parallel=parallel,
        kv=kv or (None,),
        mmap=[MMAP[one] for one in mmap] or (None,),
        threads=threads,
        prompt=prompt,
        seen=lambda cell: click.echo(f"{row(cell).name}: {cell.error:+.2%}", err=True),
    )
    if not cells:
        raise click.UsageError("none of these settings is possible with any of these models")
    notes = [
        f"{name}: {of.cells} cells, errors {of.low:+.1%} to {of.high:+.1%}, median {of.median:+.1%}, "
        f"95 % at most {of.p95:+.1%}"
        for name, of in by_model(cells)
    ]
    rows = [row(cell) for cell in cells]
    made = record("memory", rows, before=before, work=work, settings={"threads": threads} if threads else {})
    output.show(made, COLUMNS, notes)


def row(cell: Cell) -> Row:
    """A cell as a row of the record."""
    from edge.bench.record import Row

    mapped = "on" if cell.mmap else "off"
    # settings are texts, which a comparison makes no ratios of
    said = {"context": str(cell.context), "parallel": str(cell.parallel), "mmap": mapped}
    figures = {**vars(cell), **said, "error": cell.error}
    name = f"{figures.pop('artifact')} {cell.level} {cell.context} {cell.parallel} {cell.kv} {mapped}"
    return Row(name, figures)
