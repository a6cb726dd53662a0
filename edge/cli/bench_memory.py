"""`edge bench memory`: the plan's memory beside what a run really took."""

from __future__ import annotations

import click

from edge.cli.bench_report import Column, Output, mebibytes, report_options, shares
from edge.cli.references import complete_ref

COLUMNS = (
    Column("context", "context"),
    mebibytes("predicted_bytes", "predicted"),
    mebibytes("measured_bytes", "measured"),
    shares("error", "error", 1),
)


@click.command("memory")
@click.argument("refs", nargs=-1, required=True, shell_complete=complete_ref)
@report_options("memory")
def memory(refs: tuple[str, ...], output: Output) -> None:
    """The plan's memory beside what a run really took."""
    from edge.bench.memory import memory
    from edge.bench.record import Row, record
    from edge.engine.state_key import model_digest
    from edge.machine.power import power_state
    from edge.planner import plan

    digests = {decided.artifact: model_digest(decided.path) for decided in map(plan, refs)}
    before = power_state()
    rows = [
        Row(
            f"{cell.artifact} {cell.context}",
            {
                "context": cell.context,
                "predicted_bytes": cell.predicted_bytes,
                "measured_bytes": cell.measured_bytes,
                "error": cell.error,
            },
            digests[cell.artifact],
        )
        for cell in memory(refs)
    ]
    output.show(record("memory", rows, before=before, work={}, settings={}), COLUMNS)
