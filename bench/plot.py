"""The picture of a quality report: divergence against size, a point a level."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import RequestError, StoreError

if TYPE_CHECKING:
    from .quality import Report, Row

MIB = 1 << 20
BLUE, GREY = "#0072B2", "#666666"  # of Okabe and Ito's palette, told apart by every eye and in print
FLOOR = 1e-7  # nats; where rounding in f32 begins, and a file compared with itself is shown
Box = tuple[float, float, float, float]  # left, bottom, right, top

# where a name may stand from its point, in points; the nearest first
PLACES = [
    (round(x * far), round(y * far))
    for far in (6, 10, 16, 24, 32)
    for x, y in ((1, 0.6), (-1, -0.6), (1, -0.6), (-1, 0.6), (0, 1), (0, -1), (1.2, 0), (-1.2, 0))
]


def check(path: Path, levels: int) -> None:
    """Raise RequestError before anything is measured where the picture could not be drawn or put there."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise RequestError(
            "matplotlib is not installed", hint="pip install matplotlib, or leave --plot out"
        ) from error
    if not levels:
        raise RequestError("there is no level to draw", hint="name level files after the base")
    if path.suffix.lower() != ".png":
        raise RequestError(f"{path} is no name of a PNG file", hint="let it end in .png")
    if path.is_dir():
        raise RequestError(f"{path} is a folder", hint="give another --plot")
    if not path.parent.is_dir():
        raise RequestError(f"there is no folder {path.parent}", hint="make it first")


def draw(report: Report, path: Path) -> None:
    """Draw the levels of a report into a PNG file, at once or not at all.

    Mean KL divergence with its standard error over MiB; the line joins the levels that no smaller file beats.
    Raises StoreError where the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    base, *levels = report.rows
    figure = Figure(figsize=(8, 5), dpi=160, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_yscale("log")
    axes.grid(True, which="major", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    front = best(levels)
    (line,) = axes.plot(*zip(*map(place, front), strict=True), color=BLUE, lw=1, alpha=0.5)
    beaten = [row for row in levels if row not in front]
    for rows, marker, color, meaning in (
        (front, "o", BLUE, "no smaller file comes nearer"),
        (beaten, "s", GREY, "a smaller file comes nearer"),
    ):
        if rows:
            x, y = zip(*map(place, rows), strict=True)
            error = [row.kld_error or 0 for row in rows]
            axes.errorbar(x, y, error, fmt=marker, color=color, ms=5, capsize=2, lw=1, label=meaning)
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    axes.margins(0.12)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("file size (MiB)")
    axes.set_ylabel(f"mean KL divergence from {base.level} (nats a token)")
    axes.set_title(
        f"{base.file.stem}: {base.bytes / MIB:,.0f} MiB, "
        f"perplexity {base.perplexity:.2f} ± {base.perplexity_error:.2f}\n"
        f"{report.text.name}, {report.tokens:,} tokens scored in a context of {report.context}",
        fontsize=10,
    )
    label(axes, canvas, line, levels)
    save(figure, path)


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


def label(axes: Any, canvas: Any, line: Any, levels: Sequence[Row]) -> None:
    """Name each point at the nearest place where nothing else stands, or where least is hidden."""
    canvas.draw()  # fixes the scales, so that places are known
    pixel = canvas.figure.dpi / 72  # of a point
    marks = axes.transData.transform([place(row) for row in levels])
    taken = [box(x, y, 4 * pixel, 4 * pixel, (0, 0)) for x, y in marks]
    path = line.get_path().interpolated(50).transformed(line.get_transform())
    taken += [box(x, y, 2, 2, (0, 0)) for x, y in path.vertices]
    for row, (x, y) in sorted(zip(levels, marks, strict=True), key=lambda pair: place(pair[0])):
        name = axes.text(0, 0, row.level, fontsize=8)
        extent = name.get_window_extent(canvas.get_renderer())
        name.remove()
        boxes = [
            box(x + dx * pixel, y + dy * pixel, extent.width, extent.height, (dx, dy)) for dx, dy in PLACES
        ]
        hidden = [sum(overlap(one, other) for other in taken) for one in boxes]
        chosen = hidden.index(min(hidden))
        dx, dy = PLACES[chosen]
        taken.append(boxes[chosen])
        axes.annotate(
            row.level,
            place(row),
            (dx, dy),
            textcoords="offset points",
            fontsize=8,
            horizontalalignment=("center", "left", "right")[sign(dx)],
            verticalalignment=("center", "bottom", "top")[sign(dy)],
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.5, "shrinkA": 0, "shrinkB": 3},
        )


def box(x: float, y: float, width: float, height: float, side: tuple[float, float]) -> Box:
    """The box beside a point on the side that `side` leads to; around it where that is 0."""
    left, bottom = x + (sign(side[0]) - 1) / 2 * width, y + (sign(side[1]) - 1) / 2 * height
    return left, bottom, left + width, bottom + height


def sign(number: float) -> int:
    return (number > 0) - (number < 0)


def overlap(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    tall = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, tall)


def save(figure: Any, path: Path) -> None:
    draft = path.with_name(path.name + ".partial")
    try:
        figure.savefig(draft, format="png")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise StoreError(f"{path} cannot be written: {error.strerror}", hint="give another --plot") from error
