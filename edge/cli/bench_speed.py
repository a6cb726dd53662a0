"""`edge bench speed`: prefill and decode rates beside the peers', turn by turn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge.cli.bench_report import Column, Output, mebibytes, report_options, shares
from edge.cli.progress import bars
from edge.cli.references import complete_ref

if TYPE_CHECKING:
    from edge.bench.record import Row
    from edge.bench.speed import Report

COLUMNS = (
    Column("prefill_tps", "prefill t/s"),
    Column("decode_tps", "decode t/s"),
    Column("ttft_s", "ttft s (512)", 3),
    mebibytes("peak_rss_bytes", "peak"),
    shares("bandwidth_share", "of bandwidth"),
    Column("prefill_joules", "prefill J/token", 4),
    Column("decode_joules", "decode J/token", 3),
)


@click.command("speed")
@click.argument("ref", shell_complete=complete_ref)
@click.option(
    "--vs",
    multiple=True,
    metavar="PEER[=DIR]",
    help="Give a peer the same work in the same run; may be repeated: llama-bench, llama-cpp-python, xllamacpp, "
    "torch=CHECKPOINT, onnxruntime-genai=FOLDER.",
)
@click.option("--threads", type=int, metavar="N", help="Threads, prefill and decode alike.")
@click.option(
    "--repetitions", type=click.IntRange(1, 100), default=5, show_default=True, help="Counted turns."
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE.png",
    help="Draw tokens a second over time, with the temperature.",
)
@report_options("speed")
def speed(
    ref: str, vs: tuple[str, ...], threads: int | None, repetitions: int, plot: Path | None, output: Output
) -> None:
    """Prefill and decode rates, time to first token, peak memory.

    Medians of interleaved turns, with the lowest and highest; ratios above 1 mean that edge is better. Where `edge host
    --measure` has run, the share of the memory's bandwidth that decoding uses; joules a token where the machine
    tells. bench/peers/ has a script for each peer.
    """
    from edge.bench import speed as bench
    from edge.bench.picture import check_picture
    from edge.bench.plot_course import draw
    from edge.bench.record import record
    from edge.bench.runtimes import threads_of, versus
    from edge.engine.state_key import model_digest
    from edge.machine.power import power_state

    if plot:
        check_picture(plot)
    decided = bench.planned(ref, [versus(peer) for peer in vs], threads=threads)
    work = {
        "model_sha256": model_digest(decided.path),
        "prefill_tokens": bench.PREFILL_TOKENS,
        "decode_tokens": bench.DECODE_TOKENS,
    }
    output.check_work(work)
    before = power_state()
    with bars() as progress:
        report = bench.speed(ref, vs, threads=threads, repetitions=repetitions, progress=progress)
    made = record(
        "speed",
        rows(report),
        before=before,
        work=work,
        settings={"model": decided.artifact, "threads": threads_of(decided), "repetitions": repetitions},
        extra={"course": report.course, "heat": report.heat, "energy": report.energy},
    )
    output.show(made, COLUMNS, notes(report))
    if plot:
        draw(report, plot)


def rows(report: Report) -> list[Row]:
    """A row a runtime; ratios of ours over a peer's stand in the peer's."""
    from edge.bench.record import Row

    found = []
    for one in report.speeds:
        figures = {name: value for name, value in vars(one).items() if name != "runtime"}
        ratios = report.ratios.get(one.runtime, {})
        found.append(
            Row(one.runtime, {**figures, **{f"{name}_ratio": spread for name, spread in ratios.items()}})
        )
    return found


def notes(report: Report) -> list[str]:
    """Ours over each peer's."""
    ratio = Column("", "", 2)
    return [
        f"edge / {peer}: "
        + " · ".join(
            f"{name} {spread.median:.2f}× ({ratio.written(spread.low)}–{ratio.written(spread.high)})"
            for name, spread in ratios.items()
        )
        for peer, ratios in report.ratios.items()
    ]
