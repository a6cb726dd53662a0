"""`edge bench serve`: several requests at once, beside the servers that are here."""

from __future__ import annotations

import click

from edge.cli import ended
from edge.cli.bench_report import Column, Output, report_options
from edge.cli.references import complete_ref

COLUMNS = (
    Column("tps", "t/s", 1),
    Column("faster", "ours is faster by", 2),
    Column("ttft_s", "ttft p50 ms", 0, 1000),
    Column("sooner", "ours is sooner by", 2),
    Column("client", "client cores", 3),
    Column("growth", "over the row of ours before", 2),
)


def numbers(ctx: click.Context, param: click.Parameter, text: str) -> list[int]:
    from edge.bench.serve import numbers

    try:
        found: list[int] = numbers(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list of different whole numbers such as 1,2,4") from None
    return found


@click.command("serve")
@click.argument("ref", shell_complete=complete_ref)
@click.option(
    "--sequences",
    default="1,2,4,8",
    show_default=True,
    callback=numbers,
    metavar="N,N",
    help="Requests at once.",
)
@click.option(
    "--tokens",
    type=click.IntRange(2, 4096),
    default=64,
    show_default=True,
    metavar="N",
    help="Tokens of each answer.",
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
    "--minutes",
    type=click.FloatRange(min=0),
    default=7,
    show_default=True,
    metavar="N",
    help="Begin no turn after so many, but for the first.",
)
@click.option(
    "--vs",
    multiple=True,
    metavar="SERVER",
    help="Only these: llama-server, llama_cpp.server, xllamacpp.  [those here]",
)
@report_options("serve")
def serve(
    ref: str,
    sequences: list[int],
    tokens: int,
    threads: int | None,
    repetitions: int,
    minutes: float,
    vs: tuple[str, ...],
    output: Output,
) -> None:
    """Several requests at once: tokens a second, time to first token.

    The tokens are those of all answers together. edge answers in a process of its own, the servers over HTTP on this
    machine; all get the same prompts at once. A server that is not here is left out, and a line says so; one that
    --vs asks for has to be here. bench/peers/ has a script for each.
    """
    from edge.bench import serve as bench
    from edge.bench.record import record
    from edge.bench.runtimes import check_writes, threads_of
    from edge.bench.serve_runtimes import available, named
    from edge.engine.state_key import model_digest
    from edge.machine.power import power_state
    from edge.planner import plan

    decided = plan(ref, threads=threads)
    check_writes(decided)
    work = {"model_sha256": model_digest(decided.path), "tokens": tokens}
    output.check_work(work)
    if vs:
        peers, missing = named(vs), []
    elif not decided.backend.startswith("llama.cpp"):
        peers, missing = [], ["the servers, which read GGUF files"]
    else:
        peers, missing = available()
    for line in missing:
        click.echo(f"edge: left out: {line}", err=True)
    before = power_state()
    with ended.by_exception():
        report = bench.serve(
            ref, sequences, peers, tokens=tokens, threads=threads, repetitions=repetitions, minutes=minutes
        )
    settings = {"model": decided.artifact, "threads": threads_of(report.plan), "turns": report.turns}
    made = record("serve", bench.rows(report), before=before, work=work, settings=settings)
    output.show(made, COLUMNS)
