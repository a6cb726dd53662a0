"""Answers and reports as text, JSON lines and CSV."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

from edge.cli.output import ESCAPED, is_terminal, printable, table
from edge.tasks.answers import Answer
from edge.tasks.encoder import About
from edge.tasks.entities import Tagged
from edge.tasks.report import Report, Score

FITS = 100  # columns up to which a confusion matrix is printed as one
PAIRS = 20  # of confused classes, printed where it is not


def json_line(answer: Answer) -> str:
    """`{text, label, probability, labels[]}`, `{text, value}` of a regression, `{text, entities[]}` of tokens."""
    row: dict[str, Any] = {"text": answer.text}
    if isinstance(answer, Tagged):
        row["entities"] = [{key: getattr(entity, key) for key in ENTITY} for entity in answer.entities]
    else:
        if answer.pair is not None:
            row["pair"] = answer.pair
        if len(answer.values) == 1:
            row["value"] = answer.values[0][1]
        elif answer.values:
            row["values"] = dict(answer.values)
        else:
            row |= {"label": answer.label, "probability": answer.probability}
            row["labels"] = [{"label": each.label, "probability": each.probability} for each in answer.labels]
    if answer.left_out:
        row["left_out"] = answer.left_out
    line = ENCODE(row)
    return line if line.isascii() and "\x7f" not in line else line.translate(ESCAPED)


ENCODE = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make one for each line
ENTITY = ("label", "text", "start", "end", "probability")


def csv_writer(about: About, write: Callable[[str], None]) -> Callable[[Answer], None]:
    """A function that writes an answer as records. The header is written first.

    Each record begins with its text's number. An entity has a record of its own; the labels of a text that may have
    many stand in one field, separated by commas, and its probability is the highest.
    """

    def record(cells: Sequence[Any]) -> None:
        line = io.StringIO()
        # of line ends in a field it quotes those only that its own has
        csv.writer(line, lineterminator="\r\n").writerow(["" if cell is None else cell for cell in cells])
        write(line.getvalue().removesuffix("\r\n"))

    number = 0
    multi = about.problem == "multi_label_classification"
    if about.task == "tokens":
        record(("row", *ENTITY))
    elif about.problem == "regression":
        record(("row", "text", *(about.labels if len(about.labels) > 1 else ("value",))))
    else:
        record(("row", "text", "label", "probability"))

    def answered(answer: Answer) -> None:
        nonlocal number
        number += 1
        if isinstance(answer, Tagged):
            for entity in answer.entities:
                record((number, *(getattr(entity, key) for key in ENTITY)))
        elif about.problem == "regression":
            record((number, answer.text, *(value for _, value in answer.values)))
        else:
            label = ",".join(each.label for each in answer.labels) if multi else answer.label
            record((number, answer.text, label, answer.probability))

    return answered


def row_line(about: About) -> Callable[[Answer], str]:
    """A function that makes a line of an answer: label, probability and text, which a terminal's width cuts."""
    wide = min(max((len(label) for label in about.labels), default=0), 30)
    screen = is_terminal(sys.stdout)

    def line(answer: Answer) -> str:
        columns = shutil.get_terminal_size().columns if screen else None  # a window may change
        if isinstance(answer, Tagged):
            return cut(one_line(marked(answer)), columns)
        shown = one_line(answer.text if answer.pair is None else f"{answer.text} | {answer.pair}")
        if answer.values:
            start = "  ".join(f"{value:8.4f}" for _, value in answer.values)
        elif about.problem == "multi_label_classification" and answer.labels:
            start = ", ".join(f"{one_line(each.label)} {each.probability:.3f}" for each in answer.labels)
        else:
            likely = "     " if answer.label is None else f"{answer.probability:.3f}"
            start = f"{one_line(answer.label or '-'):<{wide}}  {likely}"
        return cut(f"{start}  {shown}", columns)

    return line


def marked(answer: Tagged) -> str:
    """A text with its entities in brackets: `[PER Ada Lovelace] lived in [LOC London].`"""
    parts, at = [], 0
    for entity in answer.entities:
        parts += [answer.text[at : entity.start], f"[{entity.label} {entity.text}]"]
        at = entity.end
    return "".join([*parts, answer.text[at:]])


def one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def cut(line: str, columns: int | None) -> str:
    return line if columns is None or len(line) <= columns else f"{line[: columns - 1]}…"


def of_one(answer: Answer) -> str:
    """The table of a single text: its labels, or its entities."""
    if isinstance(answer, Tagged):
        found = [
            (
                entity.label,
                one_line(entity.text),
                str(entity.start),
                str(entity.end),
                f"{entity.probability:.4f}",
            )
            for entity in answer.entities
        ]
        return table(found, ENTITY) if found else "no entities"
    if answer.values:
        return table([(one_line(label), f"{value:.6f}") for label, value in answer.values])
    if not answer.labels:
        return "no label reaches the threshold"
    shown = table(
        [(one_line(each.label), f"{each.probability:.4f}") for each in answer.labels],
        ("label", "probability"),
    )
    return shown if answer.label is not None else f"no label reaches the threshold:\n{shown}"


def report_json(report: Report) -> dict[str, Any]:
    return {
        "kind": report.kind,
        "rows": report.rows,
        "accuracy": report.accuracy,
        "labels": report.labels,
        "micro": report.micro,
        "macro": report.macro,
        "weighted": report.weighted,
        "confusion": {"names": report.names, "matrix": report.matrix.tolist()},
    }


def report_text(report: Report) -> str:
    """Scores by label, averages, accuracy, and where labels were confused."""

    def cells(name: str, score: Score) -> tuple[str, ...]:
        figures = (f"{value:.4f}" for value in (score.precision, score.recall, score.f1))
        return (one_line(name), *figures, f"{score.support:,}")

    averages = (
        ("micro average", report.micro),
        ("macro average", report.macro),
        ("weighted average", report.weighted),
    )
    rows = [cells(name, score) for name, score in (*report.labels.items(), *averages)]
    head = aligned([("label", "precision", "recall", "f1", "support"), *rows]).split("\n")
    head[0] = head[0].upper()
    head.insert(1 + len(report.labels), "")
    if report.accuracy is not None:
        head += ["", f"accuracy {report.accuracy:.4f} of {report.rows:,} texts"]
    return "\n".join([*head, "", *confusion(report)])


def confusion(report: Report) -> list[str]:
    """The confusion matrix, or where that is too wide the pairs most often confused."""
    names = [one_line(name) for name in report.names]
    if report.kind == "multi":
        rows = [
            (name, *(f"{count:,}" for count in (both, missed, spurious, neither)))
            for name, ((neither, spurious), (missed, both)) in zip(names, report.matrix.tolist(), strict=True)
        ]
        return aligned([("", "found", "missed", "spurious", "rightly not"), *rows]).split("\n")
    if 3 * len(names) <= FITS:  # a column has two spaces and a letter
        rows = [
            (name, *(f"{count:,}" for count in counts))
            for name, counts in zip(names, report.matrix.tolist(), strict=True)
        ]
        matrix = aligned([("", *names), *rows]).split("\n")
        if len(matrix[0]) <= FITS:
            return ["in the data, by row; predicted, by column", *matrix]
    confused = [
        (int(count), names[row], names[column])
        for row, counts in enumerate(report.matrix)
        for column, count in enumerate(counts)
        if row != column and count
    ]
    confused.sort(key=lambda each: -each[0])
    if not confused:
        return ["nothing was confused"]
    pairs = [(name, taken, f"{count:,}") for count, name, taken in confused[:PAIRS]]
    return [
        "most often confused (--plot draws the whole matrix, --json has it)",
        *table(pairs, ("in the data", "predicted", "count")).split("\n"),
    ]


def aligned(rows: Sequence[Sequence[str]], left: int = 0) -> str:
    """Columns two spaces apart: the one numbered `left`, and all text after it, to the left; numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == left or (left and column > left) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
