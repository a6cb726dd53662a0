"""The picture of a speed report: tokens a second over time, with the temperature where the machine tells."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .picture import BLACK, COLOURS, GREY, MARKERS, canvas, plain, save
from .runtimes import threads_of

if TYPE_CHECKING:
    from .speed import Report


def draw(report: Report, path: Path) -> None:
    """Draw each runtime's decoding, a point some tokens, into a PNG file. Raises StoreError.

    A runtime's points are joined within a turn only: between them the others have theirs.
    """
    figure, _ = canvas(9, 4.8)
    axes = figure.add_subplot()
    plain(axes)
    for at, (name, turns) in enumerate(report.course.items()):
        colour, marker = COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)]
        label = name
        for turn in filter(None, turns):  # a short answer has no course
            seconds, tps = zip(*turn, strict=True)
            axes.plot(seconds, tps, marker=marker, ms=3.5, lw=1, color=colour, label=label)
            label = "_nolegend_"
    axes.margins(0.03, 0.1)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.set_xlabel("time since the first counted turn (s)")
    axes.set_ylabel("decode (tokens a second)")
    handles, names = axes.get_legend_handles_labels()
    if report.heat:
        beside = axes.twinx()
        beside.spines["top"].set_visible(False)
        seconds, degrees = zip(*report.heat, strict=True)
        (heat,) = beside.plot(seconds, degrees, "--", color=BLACK, lw=1.2)
        beside.set_ylabel("processor (°C)", color=BLACK)
        beside.tick_params(axis="y", colors=BLACK)
        beside.margins(y=0.3)
        handles, names = [*handles, heat], [*names, "temperature"]
    else:
        axes.text(
            1, 1.01, "this machine tells no temperature", transform=axes.transAxes, ha="right", va="bottom",
            fontsize=8, color=GREY,
        )  # fmt: skip
    axes.legend(
        handles, names, frameon=False, fontsize=8, ncols=len(names), loc="upper center",
        bbox_to_anchor=(0.5, -0.13),
    )  # fmt: skip
    decided, threads = report.plan, threads_of(report.plan)
    axes.set_title(
        f"{decided.artifact} ({decided.level}), {threads} thread{'s' * (threads != 1)}",
        fontsize=10,
        loc="left",
    )
    save(figure, path)
