"""The table of `edge plan --all`: the forms of a model that could matter, the pick marked, and why not the others."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edge.cli.output import printable, size, table

if TYPE_CHECKING:
    from edge.candidate import Candidate
    from edge.choose import Choice, Row
    from edge.convert.choices import Found

NARROW, WIDE = 80, 110
LABEL = 10
PICK = "▸"
HEADER = ("", "level", "size", "memory", "fits", "prefill", "decode", "kld", "file")
RIGHT = {2, 3, 5, 6, 7}  # columns of numbers
NUMBERS = "size: of the file; memory: of the whole process; prefill, decode: tokens a second"


def side_by_side(found: Found) -> str:
    """The rows that could matter, then in words: the pick, what the figures go by, what speaks against the others, and
    how many rows are not shown."""
    choice = found.choice
    width = min(WIDE, max(NARROW, shutil.get_terminal_size().columns))
    rows = telling(found)
    marks = marks_of(choice.measures, rows)
    cells = [HEADER, *(line(row, row.artifact == choice.pick, marks) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADER))]
    room = width - sum(widths[:-1]) - 2 * len(widths[:-1])
    header, *lines = (
        [
            *(cell.rjust(widths[at]) if at in RIGHT else cell for at, cell in enumerate(row[:-1])),
            shortened(row[-1], room),
        ]
        for row in cells
    )
    words = [("pick", f"{level_of(choice)}: {choice.reason}" if choice.pick else f"none: {choice.reason}")]
    words += [(name, text) for name, _, text in (note.partition(": ") for note in choice.notes)]
    words += [
        (f"kld {mark}", f"{choice.measures[measure]}; not comparable with the others")
        for measure, mark in marks.items()
        if mark
    ]
    words += [
        ("others" if not at else "", f"{', '.join(levels)}: {clause}")
        for at, (clause, levels) in enumerate(clauses(rows, choice).items())
    ]
    if left := len(choice.rows) - len(rows):
        words.append(("more", f"{left} that no goal would take, as far as is known: --json has them"))
    words.append(("figures", NUMBERS))
    return printable("\n".join([table(lines, header), "", *(wrapped(*pair, width) for pair in words)]))


def telling(found: Found) -> list[Row]:
    """Rows of what is here, was measured, is the pick or what others are compared with; and of what some goal could
    take: it fits, can be made, is not made of too few bits to be trusted unmeasured, and no other is as fast, as
    small and of as many bits."""
    from edge.candidate import HERE
    from edge.choose import REFERENCE, too_few

    by_name = {one.artifact: one for one in found.candidates}
    pairs = [(row, by_name[row.artifact]) for row in found.choice.rows]
    able = [(row, one) for row, one in pairs if row.fits and not one.blocked]
    trusted = [(row, one) for row, one in able if row.kld_mean is not None or not too_few(one)] or able
    if not able:
        trusted = [min(pairs, key=lambda pair: (bool(pair[1].blocked), pair[0].memory_bytes))]
    kept = {row.artifact for row, one in trusted if not any(beats(*other, row, one) for other in trusted)} | {
        row.artifact
        for row, one in pairs
        if one.where == HERE
        or row.artifact == found.choice.pick
        or row.level == REFERENCE
        or row.kld_mean is not None
    }
    return [row for row in found.choice.rows if row.artifact in kept]


def beats(row: Row, one: Candidate, other_row: Row, other: Candidate) -> bool:
    """Whether a row is behind another in nothing, and ahead in something or named first."""
    mine, theirs = merits(row, one), merits(other_row, other)
    if None in (mine[0], theirs[0]) and mine[0] != theirs[0]:  # no speed is known of one
        return False
    pairs = [(a or 0.0, b or 0.0) for a, b in zip(mine, theirs, strict=True)]
    return all(a >= b for a, b in pairs) and (mine != theirs or row.artifact < other_row.artifact)


def merits(row: Row, one: Candidate) -> tuple[float | None, float, float]:
    """Speed on a typical request, smallness, and what stands for quality: bits a weight, of an encoder whether it keeps
    labels. More is better."""
    from edge.candidate import ANSWER
    from edge.planner import TYPICAL_PROMPT

    speed = row.prefill_tps
    if speed is not None and row.decode_tps is not None:
        speed = 1 / (TYPICAL_PROMPT / speed + ANSWER / row.decode_tps)
    return speed, -row.bytes, one.bits if one.generates else float(one.keeps_labels)


def marks_of(measures: Mapping[str, str], rows: Sequence[Row]) -> dict[str, str]:
    """What stands behind a divergence: nothing for the measure by which rows are compared, asterisks for another."""
    shown = {row.kld_measure for row in rows if row.kld_mean is not None}
    others = [measure for measure in [*measures][1:] if measure in shown]
    return {measure: "*" * (others.index(measure) + 1) if measure in others else "" for measure in measures}


def line(row: Row, is_pick: bool, marks: Mapping[str, str]) -> tuple[str, ...]:
    """One row's cells."""
    here = row.reason.partition("; ")[0]
    divergence = "–" if row.kld_mean is None else f"{row.kld_mean:.2g}" if row.kld_mean else "base"
    return (
        PICK if is_pick else "",
        row.level,
        size(row.bytes),
        size(row.memory_bytes),
        "yes" if row.fits else "no",
        "–" if row.prefill_tps is None else f"{row.prefill_tps:,.0f}",
        "–" if row.decode_tps is None else f"{row.decode_tps:,.0f}",
        divergence + marks.get(row.kld_measure, "") if row.kld_mean is not None else divergence,
        f"({here})" if here != "here" else row.artifact.rstrip("/").rpartition("/")[2],
    )


def shortened(name: str, room: int) -> str:
    """A name without its beginning where it is long: its end tells the level."""
    return name if len(name) <= room else f"…{name[1 - room :]}"


def level_of(choice: Choice) -> str:
    return next(row.level for row in choice.rows if row.artifact == choice.pick)


def clauses(rows: Sequence[Row], choice: Choice) -> dict[str, list[str]]:
    """What is said of the rows beside the pick → the levels it is said of; one level once."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.artifact != choice.pick:
            for clause in filter(None, row.reason.split("; ")[1:]):
                levels = found.setdefault(clause, [])
                levels += [row.level] if row.level not in levels else []
    return {clause: summed(levels, len(rows)) for clause, levels in found.items()}


def summed(levels: Sequence[str], rows: int) -> list[str]:
    """A list that names nearly all says so."""
    few = len(levels) <= max(3, rows // 2)
    return [*levels] if few else [f"{levels[0]} … {levels[-1]} ({len(levels)} levels)"]


def wrapped(label: str, text: str, width: int) -> str:
    first = label.ljust(LABEL)
    return textwrap.fill(
        text,
        width,
        initial_indent=first,
        subsequent_indent=" " * LABEL,
        break_on_hyphens=False,
        break_long_words=False,
    )
