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
OFFSETS = (
    (7, 5),
    (7, -11),
    (-7, 5),
    (-7, -11),
    (0, 11),
    (0, -18),
    (14, 15),
    (-14, 15),
    (14, -24),
    (-14, -24),
)


def check(path: Path, levels: int) -> None:
    """Raise RequestError before anything is measured where the picture could not be drawn or put there."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise RequestError(
            "matplotlib is not installed", hint="pip install edge-runtime[plot], or leave --plot out"
        ) from error
    if not levels:
        raise RequestError("there is no level to draw", hint="name level files after the base")
    if path.suffix.lower() != ".png":
        raise RequestError(f"{path} is no name of a PNG file", hint="let it end in .png")
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
    axes.plot([size(row) for row in front], [height(row) for row in front], color=BLUE, lw=1, alpha=0.5)
    for row in levels:
        color = BLUE if row in front else GREY
        marker = "o" if row in front else "s"
        error = row.kld_error or 0
        axes.errorbar(size(row), height(row), error, fmt=marker, color=color, ms=5, capsize=2, lw=1)
    axes.margins(0.12)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("file size (MiB)")
    axes.set_ylabel(f"mean KL divergence from {base.level} (nats a token)")
    axes.set_title(
        f"{base.file.stem}: {size(base):,.0f} MiB, perplexity {base.perplexity:.2f} ± {base.perplexity_error:.2f}\n"
        f"{report.text.name}, {report.tokens:,} tokens scored in a context of {report.context}",
        fontsize=10,
    )
    label(axes, canvas, levels)
    save(figure, path)


def size(row: Row) -> float:
    return row.bytes / MIB


def height(row: Row) -> float:
    return max(row.kld_mean or 0, FLOOR)


def best(levels: Sequence[Row]) -> list[Row]:
    """The levels that no file of the same size or smaller comes nearer than, from the smallest on."""
    front: list[Row] = []
    for row in sorted(levels, key=lambda row: (row.bytes, height(row))):
        if not front or height(row) < height(front[-1]):
            front.append(row)
    return front


def label(axes: Any, canvas: Any, levels: Sequence[Row]) -> None:
    """Name each point beside it, at the first place where nothing else stands."""
    canvas.draw()  # fixes the scales, so that places are known
    renderer = canvas.get_renderer()
    reach = 4 * canvas.figure.dpi / 72  # of a marker, in pixels
    places = [axes.transData.transform((size(row), height(row))) for row in levels]
    taken = [(x - reach, y - reach, x + reach, y + reach) for x, y in places]
    for row in sorted(levels, key=size):
        name = axes.annotate("", (size(row), height(row)), textcoords="offset points", fontsize=8)
        name.set_text(row.level)
        tried = []
        for x, y in OFFSETS:
            name.set_position((x, y))
            name.set_horizontalalignment("left" if x > 0 else "right" if x < 0 else "center")
            box = name.get_window_extent(renderer).extents
            hidden = sum(overlap(box, other) for other in taken)
            tried.append((hidden, x, y, box))
            if not hidden:
                break
        _, x, y, box = min(tried, key=lambda place: place[0])
        name.set_position((x, y))
        name.set_horizontalalignment("left" if x > 0 else "right" if x < 0 else "center")
        taken.append(tuple(box))


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """The area that two boxes (left, bottom, right, top) share."""
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
