"""`edge bench`: figures for this machine, a peer beside ours in the same run."""

from __future__ import annotations

import click

from edge.cli.bench_quality import quality
from edge.cli.output import emit_json, json_option, size, table
from edge.cli.references import complete_ref


@click.group()
def command() -> None:
    """Measure speed, memory and quality."""


command.add_command(quality)


@command.command()
@click.argument("ref", shell_complete=complete_ref)
@click.option(
    "--vs",
    multiple=True,
    type=click.Choice(["llama-cpp-python", "llama-bench"]),
    help="Give a peer the same work in the same run; may be repeated.",
)
@click.option("--threads", type=int, metavar="N", help="Threads, prefill and decode alike.")
@click.option(
    "--repetitions", type=click.IntRange(1, 100), default=5, show_default=True, help="Counted turns."
)
@json_option
def speed(ref: str, vs: tuple[str, ...], threads: int | None, repetitions: int, as_json: bool) -> None:
    """Prefill and decode rates, time to first token, peak memory.

    Medians of interleaved turns, with the lowest and highest; ratios above 1 mean that edge is better.
    """
    from edge.bench.speed import Spread, speed

    report = speed(ref, vs, threads=threads, repetitions=repetitions)
    if as_json:
        emit_json(report)
        return

    def figure(spread: Spread | None, digits: int = 0) -> str:
        if spread is None:
            return "–"
        return f"{spread.median:.{digits}f} ({spread.low:.{digits}f}–{spread.high:.{digits}f})"

    rows = [
        (
            one.runtime,
            figure(one.prefill_tps),
            figure(one.decode_tps),
            figure(one.ttft_s, 3),
            size(one.peak_rss_bytes) if one.peak_rss_bytes else "–",
        )
        for one in report.speeds
    ]
    click.echo(table(rows, ("runtime", "prefill t/s", "decode t/s", "ttft s (512)", "peak rss")))
    for peer, ratios in report.ratios.items():
        click.echo(
            f"edge / {peer}: " + " · ".join(f"{name} {figure(spread, 2)}×" for name, spread in ratios.items())
        )


@command.command()
@click.argument("ref", shell_complete=complete_ref)
@click.option("--vs", type=click.Choice(["llama-completion"]), help="Time llama.cpp's program beside ours.")
@json_option
def startup(ref: str, vs: str | None, as_json: bool) -> None:
    """Whole processes: import, --help, one answered token."""
    from edge.bench.startup import startup

    processes = startup(ref, peer=bool(vs))
    if as_json:
        emit_json(processes)
        return
    rows = [
        (
            one.name,
            f"{one.wall_s.median:.3f} ({one.wall_s.low:.3f}–{one.wall_s.high:.3f})",
            size(one.peak_rss_bytes),
        )
        for one in processes
    ]
    click.echo(table(rows, ("process", "wall s", "peak rss")))


@command.command()
@click.argument("refs", nargs=-1, required=True, shell_complete=complete_ref)
@json_option
def memory(refs: tuple[str, ...], as_json: bool) -> None:
    """The plan's memory beside what a run really took."""
    from edge.bench.memory import memory

    cells = memory(refs)
    if as_json:
        emit_json([{**vars(cell), "error": cell.error} for cell in cells])
        return
    rows = [
        (
            cell.artifact,
            str(cell.context),
            size(cell.predicted_bytes),
            size(cell.measured_bytes),
            f"{cell.error:+.1%}",
        )
        for cell in cells
    ]
    click.echo(table(rows, ("model", "context", "predicted", "measured", "error")))
