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


def columns(prompt: int) -> tuple[Column, ...]:
    return (
        Column("prefill_tps", "prefill t/s"),
        Column("decode_tps", "decode t/s"),
        Column("ttft_s", f"ttft s ({prompt})", 3),
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
@click.option(
    "-p",
    "--prompt",
    type=click.IntRange(1),
    default=512,
    show_default=True,
    metavar="N",
    help="Tokens of the prompt.",
)
@click.option(
    "-n",
    "--new",
    type=click.IntRange(2),
    default=128,
    show_default=True,
    metavar="N",
    help="Tokens of the answer.",
)
@click.option("--threads", type=int, metavar="N", help="Threads, prefill and decode alike.")
@click.option(
    "--repetitions",
    type=click.IntRange(1, 100),
    default=5,
    show_default=True,
    metavar="N",
    help="Counted turns.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE.png",
    help="Draw tokens a second over time, with the temperature.",
)
@report_options("speed")
def speed(
    ref: str,
    vs: tuple[str, ...],
    prompt: int,
    new: int,
    threads: int | None,
    repetitions: int,
    plot: Path | None,
    output: Output,
) -> None:
    """Prefill and decode rates, time to first token, peak memory.

    The model reads a prompt of random tokens and, after a short one, writes an answer, as llama-bench does. Peers
    do the same in the same run, turn by turn; bench/peers/ has a script for each. Shown are medians with the lowest
    and highest, and edge over each peer, where above 1 edge is better. Where `edge host --measure` has run, so is
    the share of the memory's bandwidth that decoding uses; where the machine tells, joules a token.
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
    lengths = {"prompt": prompt, "new": new}
    decided = bench.planned(ref, [versus(peer) for peer in vs], threads=threads, **lengths)
    work = {
        "model_sha256": model_digest(decided.path),
        "prefill_tokens": prompt,
        "decode_tokens": new,
    }
    output.check_work(work)
    before = power_state()
    with bars() as progress:
        report = bench.speed(ref, vs, threads=threads, repetitions=repetitions, progress=progress, **lengths)
    made = record(
        "speed",
        rows(report),
        before=before,
        work=work,
        settings={"model": decided.artifact, "threads": threads_of(decided), "repetitions": repetitions},
        extra={"course": report.course, "heat": report.heat, "energy": report.energy},
    )
    output.show(made, columns(prompt), notes(report))
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
    return [
        f"edge / {peer}: " + " · ".join(f"{name} {spread.shown(2)}" for name, spread in ratios.items())
        for peer, ratios in report.ratios.items()
    ]
