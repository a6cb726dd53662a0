"""`edge bench quality`: what each level costs and buys, as a Markdown table, JSON and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge.cli.output import emit_json, json_option, printable
from edge.cli.progress import bars
from edge.cli.references import complete_ref

if TYPE_CHECKING:
    from edge.bench.quality import Report, Row


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
    "--plot", type=click.Path(path_type=Path), metavar="FILE.png", help="Draw divergence against size."
)
@json_option
def quality(
    base: str,
    levels: tuple[str, ...],
    text: Path,
    ctx: int,
    chunks: int | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Perplexity of a model, and how far its levels are from it.

    BASE is the model in full precision, a LEVEL_FILE the same one quantized; names and paths alike. Chunks and
    formulas are llama-perplexity's, so that its numbers and these agree. Divergences (KLD) are in nats a token,
    Δp is the change of the probability of the text's own tokens. Speeds are those of `edge bench speed`.
    """
    from edge.bench.plot import check, draw
    from edge.bench.quality import quality

    if plot:
        check(plot, len(levels))
    with bars() as progress:
        report = quality(base, levels, text, ctx=ctx, chunks=chunks, progress=progress)
    if plot:
        draw(report, plot)
    if as_json:
        emit_json(report)
    else:
        click.echo(printable(markdown(report)))


HEADER = (
    *("file", "level", "MiB", "bits/weight", "perplexity"),
    *("KLD mean", "median", "p99", "max", "same top", "Δp mean", "Δp rms"),
    *("prefill t/s", "decode t/s", "peak MiB"),
)


def markdown(report: Report) -> str:
    """The rows as a Markdown table, columns aligned for the terminal too."""
    cells = [HEADER, *map(line, report.rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADER))]
    head, *body = (
        [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in cells
    )
    rule = ["-" * width if column < 2 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def line(row: Row) -> tuple[str, ...]:
    """One row of the table; a bar in a file's name would end its cell."""
    shares = (row.top1_agreement, row.delta_p_mean, row.delta_p_rms)
    return (
        row.file.name.replace("|", "\\|"),
        row.level,
        f"{row.bytes / (1 << 20):.1f}",
        f"{row.bits_per_weight:.2f}",
        f"{row.perplexity:.4f} ± {row.perplexity_error:.4f}",
        *(f"{value:.6f}" if value is not None else "–" for value in (row.kld_mean, row.kld_median)),
        *(f"{value:.6f}" if value is not None else "–" for value in (row.kld_p99, row.kld_max)),
        *(f"{100 * share:.3f} %" if share is not None else "–" for share in shares),
        f"{row.prefill_tps:.0f}",
        f"{row.decode_tps:.0f}",
        f"{row.peak_rss_bytes / (1 << 20):.0f}",
    )
