"""The picture of a confusion matrix."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from edge.errors import RequestError, StoreError
from edge.kept import whole
from edge.tasks.report import Report

NUMBERED = 30  # classes up to which each cell has its count
LONGEST = 40  # characters of a label


def check(path: Path) -> None:
    """Raise RequestError before anything is computed where the picture could not be drawn or put there."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise RequestError(
            "--plot needs matplotlib", hint="pip install 'edge-runtime[plot]', or leave --plot out"
        ) from error
    if path.suffix.lower() != ".png":
        raise RequestError(f"{path} is no name of a PNG file", hint="let it end in .png")
    if path.is_dir():
        raise RequestError(f"{path} is a folder", hint="give another --plot")
    if not path.parent.is_dir():
        raise RequestError(f"there is no folder {path.parent}", hint="make it first")


def draw(report: Report, path: Path, title: str) -> None:
    """Draw the matrix into a PNG file, at once or not at all: a row each class, its shades shares of that row.

    Raises StoreError where the file cannot be written, RequestError for a report of many labels a text.
    """
    if report.kind == "multi":
        raise RequestError(
            "texts with many labels have a matrix for each label, not one", hint="leave --plot out"
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    classes = len(report.names)
    names = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in report.names]
    side = min(max(4.5, 0.5 * classes + 2), 18)
    points = 9 if classes <= NUMBERED else 72 * (side - 3) / classes * 0.8
    figure = Figure(figsize=(side + 1, side), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = report.matrix / np.maximum(report.matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(classes)
    # labels are plain text: a $ in one begins no formula
    axes.set_xticks(ticks, names, rotation=90 if classes > 4 else 0, fontsize=points, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=points, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(0.5, classes - 1), minor=True)
    axes.set_yticks(np.arange(0.5, classes - 1), minor=True)
    axes.grid(which="minor", color="0.9", lw=0.5)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("predicted")
    axes.set_ylabel("in the data")
    axes.set_title(title, fontsize=10, parse_math=False)
    for (row, column), count in np.ndenumerate(report.matrix):
        if count and (classes <= NUMBERED or row != column):  # of many classes, where they are confused
            axes.text(
                column, row, f"{count:,}", ha="center", va="center",
                fontsize=points, color="white" if shares[row, column] > 0.6 else "black",
            )  # fmt: skip
    bar = figure.colorbar(image, ax=axes, shrink=0.8, label="share of the row")
    bar.outline.set_visible(False)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    try:
        with whole(path) as file, warnings.catch_warnings():  # of letters that the font lacks: drawn as boxes
            warnings.simplefilter("ignore")
            figure.savefig(file, format="png")
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}", hint="give another --plot") from error
