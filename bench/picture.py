"""What the pictures share: colours that every eye tells apart, names that hide nothing, files written whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge.errors import RequestError, StoreError
from edge.kept import whole

# Of Okabe and Ito's palette, told apart by every eye and in print
BLUE, ORANGE, GREEN, PURPLE, SKY, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED)
MARKERS = ("o", "s", "^", "D", "v", "P")
GREY, BLACK = "#666666", "#222222"
Place = tuple[float, float]
Box = tuple[float, float, float, float]  # left, bottom, right, top

# where a name may stand from its point, in points; the nearest first
PLACES = [
    (round(x * far), round(y * far))
    for far in (6, 10, 16, 24, 32)
    for x, y in ((1, 0.6), (-1, -0.6), (1, -0.6), (-1, 0.6), (0, 1), (0, -1), (1.2, 0), (-1.2, 0))
]


def check_place(path: Path, option: str) -> None:
    """Raise RequestError where no file could be put there."""
    if path.is_dir():
        raise RequestError(f"{path} is a folder", hint=f"give another {option}")
    if not path.parent.is_dir():
        raise RequestError(f"there is no folder {path.parent}", hint="make it first")
    if not os.access(path.parent, os.W_OK):
        raise RequestError(f"{path.parent} cannot be written to", hint=f"give another {option}")


def check_picture(path: Path) -> None:
    """Raise RequestError before anything is measured where the picture could not be drawn or put there."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise RequestError(
            "matplotlib is not installed", hint="pip install matplotlib, or leave --plot out"
        ) from error
    if path.suffix.lower() != ".png":
        raise RequestError(f"{path} is no name of a PNG file", hint="let it end in .png")
    check_place(path, "--plot")


def canvas(width: float, height: float) -> tuple[Any, Any]:
    """An empty figure of so many inches, and what draws it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    return figure, FigureCanvasAgg(figure)


def plain(axes: Any) -> None:
    """A light grid, and no frame where nothing is read off."""
    axes.grid(True, which="major", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def name_points(axes: Any, drawn: Any, points: Sequence[tuple[str, Place]], line: Any = None) -> None:
    """Name each point at the nearest place where nothing else stands, or where least is hidden."""
    drawn.draw()  # fixes the scales, so that places are known
    pixel = drawn.figure.dpi / 72  # of a point
    marks = axes.transData.transform([place for _, place in points])
    # wider than a point, so that no name stands so near to another one's that it seems to be its
    taken = [box(x, y, 10 * pixel, 8 * pixel, (0, 0)) for x, y in marks]
    if line is not None:
        path = line.get_path().interpolated(50).transformed(line.get_transform())
        taken += [box(x, y, 2, 2, (0, 0)) for x, y in path.vertices]
    for (text, place), (x, y) in sorted(zip(points, marks, strict=True), key=lambda pair: -pair[1][1]):
        name = axes.text(0, 0, text, fontsize=8)
        extent = name.get_window_extent(drawn.get_renderer())
        name.remove()
        boxes = [
            box(x + dx * pixel, y + dy * pixel, extent.width, extent.height, (dx, dy)) for dx, dy in PLACES
        ]
        hidden = [sum(overlap(one, other) for other in taken) for one in boxes]
        chosen = hidden.index(min(hidden))
        dx, dy = PLACES[chosen]
        taken.append(boxes[chosen])
        axes.annotate(
            text,
            place,
            (dx, dy),
            textcoords="offset points",
            fontsize=8,
            horizontalalignment=("center", "left", "right")[sign(dx)],
            verticalalignment=("center", "bottom", "top")[sign(dy)],
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.5, "shrinkA": 0, "shrinkB": 3},
        )


def box(x: float, y: float, width: float, height: float, side: Place) -> Box:
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
    """Write the PNG file, at once or not at all. Raises StoreError."""
    try:
        with whole(path) as file:
            figure.savefig(file, format="png")
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}", hint="give another --plot") from error
