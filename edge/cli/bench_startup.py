"""`edge bench startup`: whole processes, timed from outside."""

from __future__ import annotations

import click

from edge.cli.bench_report import Column, Output, mebibytes, report_options
from edge.cli.references import complete_ref

COLUMNS = (Column("wall_s", "wall s", 3), mebibytes("peak_rss_bytes", "peak"))


@click.command("startup")
@click.argument("ref", shell_complete=complete_ref)
@click.option("--vs", type=click.Choice(["llama-completion"]), help="Time llama.cpp's program beside ours.")
@report_options("startup")
def startup(ref: str, vs: str | None, output: Output) -> None:
    """Whole processes: import, --help, one answered token.

    Wall time and peak memory of each, beside an interpreter that does nothing.
    """
    from edge.bench.record import Row, record
    from edge.bench.startup import startup
    from edge.engine.state_key import model_digest
    from edge.machine.power import power_state
    from edge.planner import plan

    decided = plan(ref)
    work = {"model_sha256": model_digest(decided.path)}
    output.check_work(work)
    before = power_state()
    rows = [
        Row(one.name, {"wall_s": one.wall_s, "peak_rss_bytes": one.peak_rss_bytes})
        for one in startup(ref, peer=bool(vs))
    ]
    settings = {"model": decided.artifact, "threads": decided.threads.decode}
    output.show(record("startup", rows, before=before, work=work, settings=settings), COLUMNS)
