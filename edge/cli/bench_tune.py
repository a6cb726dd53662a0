"""`edge bench tune`: the settings that are fastest for one file on this host, kept for its plans."""

from __future__ import annotations

import click

from edge.cli.bench_report import Column, Output, report_options
from edge.cli.references import complete_ref
from edge.errors import EngineError

COLUMNS = (Column("tps", "t/s", 1), Column("picked", "picked"))


@click.command("tune")
@click.argument("ref", shell_complete=complete_ref)
@click.option("--ctx", type=int, metavar="N", help="Context in tokens.  [1024, or what the model has]")
@click.option(
    "--exhaustive",
    is_flag=True,
    help="Then measure everything again, leaving nothing out early, and say how near the best each pick is.",
)
@report_options("tune")
def tune(ref: str, ctx: int | None, exhaustive: bool, output: Output) -> None:
    """Find the fastest settings for a model here, and keep them.

    Measured in turns are threads for prefill and for decode, tokens computed at once, types of keys and values, and
    guessing ahead. Plans of this file on this host then go by what was fastest; the type of keys and values is only
    shown, as another one changes what the model says. What a busy machine measures is shown and not kept.
    """
    from edge.bench import tune as bench
    from edge.bench.record import record
    from edge.cli.progress import bars
    from edge.evidence import digest_of
    from edge.machine.power import power_state
    from edge.tuned import save

    decided = bench.planned(ref, ctx)
    work = {"model": digest_of(decided.path), "context": decided.context}
    output.check_work(work)
    before = power_state()
    with bars() as report:
        tuning = bench.tune(ref, ctx=ctx, exhaustive=exhaustive, progress=report)
    found = tuning.tuned
    made = record("tune", bench.rows(tuning), before=before, work=work, settings={"exhaustive": exhaustive})
    picks = [f"{one.setting}: {one.pick}, {one.reason}" for one in found.findings]
    try:
        output.show(made, COLUMNS, picks)
    finally:
        if not made.host.marks:
            save(found)
    if made.host.marks:
        raise EngineError(
            f"nothing is kept, as the machine was disturbed: {made.host.marks[0]}",
            hint="run it again when it is idle",
        )
