"""The table of `edge plan --all`: every file form of a model, the pick marked, and why not the others."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge.cli.output import printable, size, table

if TYPE_CHECKING:
    from edge.choose import Choice, Row

WIDTH = 100
LABEL = 10
NAME = 36  # of the file, whose end tells the level
PICK = "▸"
HEADER = ("", "level", "size", "fits", "prefill", "decode", "kld", "where", "file")
RIGHT = {2, 4, 5, 6}  # columns of numbers


def side_by_side(choice: Choice) -> str:
    """The rows, then in words: the pick, what the figures go by, and what speaks against the others."""
    cells = [HEADER, *(line(row, row.artifact == choice.pick) for row in choice.rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADER))]
    header, *rows = (
        [cell.rjust(widths[at]) if at in RIGHT else cell for at, cell in enumerate(row)] for row in cells
    )
    words = [("pick", f"{level_of(choice)}: {choice.reason}" if choice.pick else f"none: {choice.reason}")]
    words += [(name, text) for name, _, text in (note.partition(": ") for note in choice.notes)]
    words += [
        ("others" if not at else "", f"{', '.join(levels)}: {clause}")
        for at, (clause, levels) in enumerate(clauses(choice).items())
    ]
    return printable("\n".join([table(rows, header), "", *(wrapped(*pair) for pair in words)]))


def line(row: Row, is_pick: bool) -> tuple[str, ...]:
    """One row's cells."""
    return (
        PICK if is_pick else "",
        row.level,
        size(row.bytes),
        "yes" if row.fits else "no",
        "–" if row.prefill_tps is None else f"{row.prefill_tps:,.0f} t/s",
        "–" if row.decode_tps is None else f"{row.decode_tps:,.0f} t/s",
        "–" if row.kld_mean is None else f"{row.kld_mean:.2g}" if row.kld_mean else "base",
        row.reason.partition("; ")[0],
        shortened(row.artifact),
    )


def shortened(name: str) -> str:
    """A file's name without its folders, its end where it is long."""
    name = name.rstrip("/").rpartition("/")[2]
    return name if len(name) <= NAME else f"…{name[1 - NAME :]}"


def level_of(choice: Choice) -> str:
    return next(row.level for row in choice.rows if row.artifact == choice.pick)


def clauses(choice: Choice) -> dict[str, list[str]]:
    """What is said of the rows beside the pick → the levels it is said of; one level once."""
    found: dict[str, list[str]] = {}
    for row in choice.rows:
        if row.artifact != choice.pick:
            for clause in filter(None, row.reason.split("; ")[1:]):
                levels = found.setdefault(clause, [])
                levels += [row.level] if row.level not in levels else []
    return {clause: summed(levels, len(choice.rows)) for clause, levels in found.items()}


def summed(levels: Sequence[str], rows: int) -> list[str]:
    """A list that names nearly all says so."""
    return [*levels] if len(levels) <= rows // 2 else [f"{levels[0]} … {levels[-1]} ({len(levels)} levels)"]


def wrapped(label: str, text: str) -> str:
    first = label.ljust(LABEL)
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * LABEL,
        break_on_hyphens=False,
        break_long_words=False,
    )
