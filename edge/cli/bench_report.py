"""How every benchmark shows what it found: a table, and its record as one line of JSON last."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.cli.output import ESCAPED, printable, table

if TYPE_CHECKING:
    from edge.bench.compare import Comparison
    from edge.bench.record import Figure, Record

NONE = "–"
LONGEST = 30  # characters of a row's name in a terminal


@dataclass(frozen=True)
class Column:
    """A column of the table: the figure's name in the record, the title with its unit, and how a number is written."""

    key: str
    title: str
    digits: int = 0
    scale: float = 1

    def cell(self, figure: Figure) -> str:
        """The figure in the column's unit; of several turns as `Spread.shown`."""
        from edge.bench.record import Spread

        if isinstance(figure, Spread):
            return figure.shown(self.digits, self.scale)
        if figure is None:
            return NONE
        return figure if isinstance(figure, str) else f"{figure * self.scale:.{self.digits}f}"


def mebibytes(key: str, title: str, digits: int = 0) -> Column:
    return Column(key, f"{title} MiB", digits, 1 / (1 << 20))


def shares(key: str, title: str, digits: int = 0) -> Column:
    return Column(key, f"{title} %", digits, 100)


@dataclass(frozen=True)
class Output:
    """What was asked for by the options of `report_options`."""

    benchmark: str
    as_json: bool
    markdown: bool
    csv: Path | None
    compare: Path | None

    def check(self) -> Output:
        """This. Raises RequestError, before anything is measured, for what could not be compared or written."""
        from edge.bench.compare import earlier
        from edge.bench.picture import check_place

        if self.as_json and self.markdown:
            raise click.UsageError("--json prints one line, without the table that --markdown is for")
        if self.compare:
            earlier(self.compare, self.benchmark)
        if self.csv:
            check_place(self.csv, "--csv")
        return self

    def check_work(self, known: Mapping[str, Any]) -> None:
        """Raise RequestError, before anything is measured, where the earlier run did other work than what is known of
        this one's."""
        from edge.bench.compare import check_work, earlier

        if self.compare:
            then = earlier(self.compare, self.benchmark)
            check_work(then, {**then.work, **known}, self.compare)

    def show(
        self,
        made: Record,
        columns: Sequence[Column],
        notes: Sequence[str] = (),
        narrow: Sequence[Sequence[Column]] = (),
    ) -> None:
        """Print table, notes and the line of JSON, and write the CSV file.

        narrow  the tables that a terminal gets, where one of all columns is too wide for it

        Raises RequestError for an earlier run that cannot be compared, StoreError for a file that cannot be written;
        what was measured is printed all the same.
        """
        from edge.bench.compare import compare, earlier
        from edge.bench.record import line
        from edge.errors import RequestError

        found, refused = None, None
        if self.compare:
            try:
                found = compare(made, earlier(self.compare, self.benchmark), self.compare)
            except RequestError as error:
                refused = error
        if not self.as_json:
            tables = [columns] if self.markdown or not narrow else narrow
            shown = "\n\n".join(tabled(made, one, self.markdown) for one in tables)
            parts = [*heading(made), shown, *notes]
            parts += [f"no evidence: {mark}" for mark in made.host.marks]
            if found:
                parts += ["", *compared(found, tables, self.markdown)]
            click.echo(printable("\n".join([*parts, ""])))
        click.echo(line(made, {"compared": asdict(found)} if found else None).translate(ESCAPED))
        if self.csv:
            write(self.csv, as_csv(made))
        if refused:
            raise refused


def report_options(benchmark: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options that all benchmarks have, given to the verb as one `output`."""

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        from functools import wraps

        @wraps(verb)
        def called(
            *words: Any, as_json: bool, markdown: bool, csv: Path | None, compare: Path | None, **named: Any
        ) -> None:
            verb(*words, output=Output(benchmark, as_json, markdown, csv, compare).check(), **named)

        path = click.Path(path_type=Path)
        for option in (
            click.option("--json", "as_json", is_flag=True, help="Print the line of JSON alone."),
            click.option(
                "--compare",
                type=path,
                metavar="FILE",
                help="Show each figure over that of an earlier run of the same work; FILE has what that run "
                "printed, or its line of JSON.",
            ),
            click.option("--csv", type=path, metavar="FILE", help="Write the rows as CSV too."),
            click.option("--markdown", is_flag=True, help="Print the table in Markdown."),
        ):
            called = option(called)
        return called

    return decorate


def heading(made: Record) -> list[str]:
    """What was measured, how, and with how many turns."""
    settings = made.settings.items()
    return [", ".join(f"{name} {value}" for name, value in settings), ""] if settings else []


def tabled(made: Record, columns: Sequence[Column], markdown: bool) -> str:
    """A table of the rows, without the columns that all of them leave empty."""
    used = [column for column in columns if any(row.figures.get(column.key) is not None for row in made.rows)]
    rows = [
        (named(row.name, markdown), *(column.cell(row.figures.get(column.key)) for column in used))
        for row in made.rows
    ]
    return drawn(rows, ("", *(column.title for column in used)), markdown)


def compared(found: Comparison, tables: Sequence[Sequence[Column]], markdown: bool) -> list[str]:
    """Now over then, with what to know about it."""
    return [
        f"compared with {found.file} of {found.date}",
        *(f"warning: {warning}" for warning in found.warnings),
        "\n\n".join(ratios(found, columns, markdown) for columns in tables),
    ]


def ratios(found: Comparison, columns: Sequence[Column], markdown: bool) -> str:
    keys = [column for column in columns if any(column.key in row.figures for row in found.rows)]
    rows = [
        (
            named(row.name, markdown),
            *(f"{row.figures[one.key]:.3f}×" if one.key in row.figures else NONE for one in keys),
        )
        for row in found.rows
    ]
    return drawn(rows, ("now over then", *(one.title for one in keys)), markdown)


def named(name: str, markdown: bool) -> str:
    """A row's name; in a terminal the ends of a long one, of which a file's says its level."""
    return name if markdown or len(name) <= LONGEST else f"{name[: LONGEST // 2 - 1]}…{name[-LONGEST // 2 :]}"


def drawn(rows: Sequence[Sequence[str]], header: Sequence[str], markdown: bool) -> str:
    """A table with its first column left, the others right in Markdown."""
    if not markdown:
        return table(rows, header)
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(header))]
    head, *body = (
        [
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in cells
    )
    rule = ["-" * (width - 1) + ":" if column else "-" * width for column, width in enumerate(widths)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def as_csv(made: Record) -> str:
    """A line a row; a figure of several turns has three columns."""
    from edge.bench.record import Spread

    lines: list[dict[str, Any]] = []
    for row in made.rows:
        cells: dict[str, Any] = {"benchmark": made.benchmark, "date": made.date, "name": row.name}
        cells |= {"sha256": row.sha256} if row.sha256 else {}
        for key, figure in row.figures.items():
            if isinstance(figure, Spread):
                low, high = (figure.low, figure.high) if figure.repeated else (None, None)
                cells |= {key: figure.median, f"{key}_low": low, f"{key}_high": high}
            else:
                cells[key] = figure
        lines.append(cells)
    text = io.StringIO()
    writer = csv.DictWriter(
        text, list(dict.fromkeys(key for cells in lines for key in cells)), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def write(path: Path, text: str) -> None:
    """The file, at once or not at all. Raises StoreError."""
    from edge.errors import StoreError
    from edge.kept import whole

    try:
        with whole(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}", hint="give another --csv") from error
