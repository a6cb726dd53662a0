"""`edge bench quality`: what each level costs and buys, as a table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge.cli.bench_report import Column, Output, mebibytes, report_options, shares
from edge.cli.progress import bars
from edge.cli.references import complete_ref

if TYPE_CHECKING:
    from edge.bench.quality import Report
    from edge.bench.record import Row

COLUMNS = (
    Column("level", "level"),
    mebibytes("bytes", "size", 1),
    Column("bits_per_weight", "bits/weight", 2),
    Column("perplexity", "perplexity", 4),
    Column("perplexity_error", "±", 4),
    Column("kld_mean", "KLD mean", 6),
    Column("kld_median", "median", 6),
    Column("kld_p99", "p99", 6),
    Column("kld_max", "max", 6),
    shares("top1_agreement", "same top", 3),
    shares("delta_p_mean", "Δp mean", 3),
    shares("delta_p_rms", "Δp rms", 3),
    Column("prefill_tps", "prefill t/s"),
    Column("decode_tps", "decode t/s"),
    mebibytes("peak_rss_bytes", "peak"),
)
# The same in less than a hundred letters, or little more; JSON, CSV and Markdown have all
NARROW = tuple(
    tuple(column for column in COLUMNS if column.key in keys)
    for keys in (
        ("level", "bytes", "bits_per_weight", "perplexity", "kld_mean", "kld_p99", "top1_agreement"),
        ("level", "prefill_tps", "decode_tps", "peak_rss_bytes"),
    )
)


@click.command("quality")
@click.argument("base", shell_complete=complete_ref)
@click.argument("levels", metavar="[LEVEL_FILE]...", nargs=-1, shell_complete=complete_ref)
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="Text to score, in UTF-8.",
)
@click.option("--ctx", type=int, default=512, show_default=True, metavar="N", help="Tokens a chunk.")
@click.option("--chunks", type=click.IntRange(min=1), metavar="N", help="Chunks to score.  [all]")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE.png",
    help="Draw divergence and speed against size.",
)
@report_options("quality")
def quality(
    base: str,
    levels: tuple[str, ...],
    text: Path,
    ctx: int,
    chunks: int | None,
    plot: Path | None,
    output: Output,
) -> None:
    """Perplexity of a model, and how far its levels are from it.

    BASE is the model in full precision, a LEVEL_FILE the same one quantized; names and paths alike. Chunks and
    formulas are llama-perplexity's, so that its numbers and these agree. Divergences (KLD) are in nats a token,
    Δp is the change of the probability of the text's own tokens. A level such as 6.16bpw is a mixture of
    types that has no other name. Speeds are those of `edge bench speed`. --markdown, --csv and the line of JSON have
    figures that the terminal's tables have no room for.
    """
    from edge.bench.plot import check, draw
    from edge.bench.quality import quality, read_text
    from edge.bench.record import record
    from edge.engine.state_key import model_digest
    from edge.machine.power import power_state
    from edge.store import resolve

    if plot:
        check(plot, len(levels))
    work = {
        "text_sha256": digest(read_text(text)),
        "context": ctx,
        "base_sha256": model_digest(resolve(base).path),
    }
    output.check_work(work)  # a short text has fewer chunks than are asked for
    before = power_state()
    with bars() as progress:
        report = quality(base, levels, text, ctx=ctx, chunks=chunks, progress=progress)
    work = {**work, "chunks": report.chunks}
    made = record(
        "quality",
        rows(report),
        before=before,
        work=work,
        settings={},
        extra={"text": str(report.text), "tokens": report.tokens},
    )
    output.show(made, COLUMNS, narrow=NARROW)
    if plot:
        draw(report, plot)


def digest(text: str) -> str:
    from hashlib import sha256

    return sha256(text.encode()).hexdigest()


def rows(report: Report) -> list[Row]:
    """A row a file; rates as their median, lowest and highest."""
    from edge.bench.record import Row
    from edge.engine.state_key import model_digest

    found = []
    for one in report.rows:
        figures = {name: value for name, value in vars(one).items() if name not in ("file", "speed")}
        if one.speed:
            figures |= {"prefill_tps": one.speed.prefill_tps, "decode_tps": one.speed.decode_tps}
        found.append(Row(one.file.name, {"file": str(one.file), **figures}, model_digest(one.file)))
    return found
