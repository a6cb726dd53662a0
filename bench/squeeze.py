"""Squeezed files against llama-quantize's mixtures of the same bytes: mean KL divergence on text neither saw.

    python -m edge.bench.squeeze SRC --calibrate TEXT --held-out TEXT --levels q4_k_m,q3_k_m,q2_k

Levels and squeezed files take the same importance matrix; every squeezed file has at most its level's bytes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import click

from edge.convert import imatrix
from edge.convert.fit import fit
from edge.convert.quantize import Settings
from edge.convert.to_gguf import calibrate, convert
from edge.planner import plan

from .perplexity import divergence
from .quality import read_text, side_by_side


@dataclass(frozen=True)
class Row:
    """A level and the file squeezed into its bytes; KLD in nats a token, on the held-out text but for `predicted`
    and `measured`, which are of the calibration text; `gain` is the share of the level's KLD that went."""

    level: str
    level_bytes: int
    bytes: int
    level_kld: float
    kld: float
    kld_error: float
    gain: float
    predicted: float
    measured: float
    seconds: float


def compare(
    source: Path,
    text: Path,
    held_out: Path,
    levels: list[str],
    matrix: Path | None,
    ctx: int,
    chunks: int | None,
) -> list[Row]:
    """A row a level. Raises as `convert`, `fit` and `edge bench quality` do."""
    words = text.read_bytes().decode()
    with TemporaryDirectory() as folder:
        out = Path(folder)
        found = imatrix.read(matrix) if matrix else calibrate(source, words, text.name, out)
        settings = Settings(importance=found.means(), importance_fields=found.fields("matrix.gguf"))
        base, *made = convert(source, ["f16", *levels], out, settings=settings, prove=False, name="model")
        rows = []
        for one in made:
            started = perf_counter()
            fitted = fit(
                source, words, out, size=one.bytes, settings=settings, prove=False, name=f"for-{one.level}"
            )
            seconds = perf_counter() - started
            plans = [plan(str(path), ctx=ctx) for path in (base.path, one.path, fitted.file.path)]
            scores = side_by_side(plans, read_text(held_out), chunks, lambda *_: None)
            theirs, ours = (
                divergence(scores.nll[0], nll, kld, top)
                for nll, kld, top in zip(scores.nll[1:], scores.kld, scores.same_top, strict=True)
            )
            rows.append(
                Row(
                    level=one.level,
                    level_bytes=one.bytes,
                    bytes=fitted.file.bytes,
                    level_kld=theirs.kld_mean,
                    kld=ours.kld_mean,
                    kld_error=ours.kld_error,
                    gain=1 - ours.kld_mean / theirs.kld_mean,
                    predicted=fitted.kld_predicted,
                    measured=fitted.kld_measured,
                    seconds=seconds,
                )
            )
            click.echo(json.dumps(asdict(rows[-1])))
    return rows


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.option("--calibrate", "text", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--held-out", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--levels", default="q4_k_m,q3_k_m,q2_k", show_default=True)
@click.option(
    "--imatrix", "matrix", type=click.Path(path_type=Path, exists=True), help="[of the calibration text]"
)
@click.option("--ctx", default=256, show_default=True)
@click.option("--chunks", type=int, help="Of the held-out text.  [all]")
def main(
    source: Path, text: Path, held_out: Path, levels: str, matrix: Path | None, ctx: int, chunks: int | None
) -> None:
    """Print a line of JSON for every level."""
    compare(source, text, held_out, levels.split(","), matrix, ctx, chunks)


if __name__ == "__main__":
    main()
