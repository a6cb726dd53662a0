"""The picture of a quality report: divergence against size, and speed against size, a point a level."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import RequestError

from .picture import BLUE, GREEN, GREY, ORANGE, canvas, check_picture, name_points, plain, save

if TYPE_CHECKING:
    from .quality import Report, Row

MIB = 1 << 20
FLOOR = 1e-7  # nats; where rounding in f32 begins, and a file compared with itself is shown


def check(path: Path, levels: int) -> None:
    """Raise RequestError before anything is measured where the picture could not be drawn or put there."""
    check_picture(path)
    if not levels:
        raise RequestError("there is no level to draw", hint="name level files after the base")


def draw(report: Report, path: Path) -> None:
    """Draw a report into a PNG file, at once or not at all.

    Left, the levels' mean KL divergence with its standard error over MiB; the line joins those that no smaller file
    beats. Right, their rates of prefill and decode, the base's too. Raises StoreError where the file cannot be written.
    """
    base, *levels = report.rows
    figure, drawn = canvas(12.5, 5.5)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.35, 1))
    left = figure.add_subplot(grid[:, 0])
    line = divergence(left, base, levels)
    sides = [figure.add_subplot(grid[0, 1])]
    sides.append(figure.add_subplot(grid[1, 1], sharex=sides[0]))
    speeds = [
        rates(sides[0], report.rows, "prefill", [row.prefill_tps for row in report.rows], ORANGE),
        rates(sides[1], report.rows, "decode", [row.decode_tps for row in report.rows], GREEN),
    ]
    sides[0].tick_params(labelbottom=False)
    sides[1].set_xlabel("file size (MiB)")
    figure.suptitle(
        f"{base.file.stem}: {base.bytes / MIB:,.0f} MiB, "
        f"perplexity {base.perplexity:.2f} ± {base.perplexity_error:.2f}\n"
        f"{report.text.name}, {report.tokens:,} tokens scored in a context of {report.context}",
        fontsize=10,
    )
    name_points(left, drawn, [(row.level, place(row)) for row in levels], line)
    for axes, points in zip(sides, speeds, strict=True):
        name_points(axes, drawn, points)
    save(figure, path)


def divergence(axes: Any, base: Row, levels: Sequence[Row]) -> Any:
    """The panel of quality; gives its line."""
    from matplotlib.ticker import NullFormatter

    axes.set_yscale("log")
    plain(axes)
    front = best(levels)
    (line,) = axes.plot(*zip(*map(place, front), strict=True), color=BLUE, lw=1, alpha=0.5)
    beaten = [row for row in levels if row not in front]
    for rows, marker, colour, meaning in (
        (front, "o", BLUE, "no smaller file comes nearer"),
        (beaten, "s", GREY, "a smaller file comes nearer"),
    ):
        if rows:
            x, y = zip(*map(place, rows), strict=True)
            error = [row.kld_error or 0 for row in rows]
            axes.errorbar(x, y, error, fmt=marker, color=colour, ms=5, capsize=2, lw=1, label=meaning)
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    axes.margins(0.12)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("file size (MiB)")
    axes.set_ylabel(f"mean KL divergence from {base.level} (nats a token)")
    return line


def rates(
    axes: Any, rows: Sequence[Row], what: str, tps: Sequence[float], colour: str
) -> list[tuple[str, tuple[float, float]]]:
    """A panel of tokens a second over MiB; gives its points with their names."""
    plain(axes)
    points = [(row.level, (row.bytes / MIB, rate)) for row, rate in zip(rows, tps, strict=True)]
    axes.plot(*zip(*(point for _, point in points), strict=True), "o", color=colour, ms=5)
    axes.margins(0.14, 0.25)
    axes.set_ylabel(f"{what} (tokens a second)")
    return points


def place(row: Row) -> tuple[float, float]:
    """MiB and divergence."""
    return row.bytes / MIB, max(row.kld_mean or 0, FLOOR)


def best(levels: Sequence[Row]) -> list[Row]:
    """The levels that no file of the same size or smaller comes nearer than, from the smallest on."""
    front: list[Row] = []
    for row in sorted(levels, key=place):
        if not front or place(row)[1] < place(front[-1])[1]:
            front.append(row)
    return front
