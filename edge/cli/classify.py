"""`edge classify`: labels with probabilities, entities, and reports on labelled data."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge.cli.options import Whole
from edge.cli.output import emit_json, is_terminal, printable
from edge.cli.progress import bars
from edge.cli.references import complete_ref
from edge.errors import RequestError

if TYPE_CHECKING:
    from edge.tasks.answers import Answer, Wish
    from edge.tasks.encoder import Encoder
    from edge.tasks.rows import Row
    from edge.tasks.source import Source

FORMATS = ("lines", "csv", "tsv", "jsonl", "conll")  # `edge.tasks.rows` has them; --help should not load it
SAMPLE = 64  # texts that backends are timed with; of a slow source only the first is waited for
TICK = 0.1  # seconds between two moves of the bar
path_option = click.Path(path_type=Path)


@click.command()
@click.argument("ref", shell_complete=complete_ref)
@click.argument("text", required=False, type=Whole())
@click.option("--pair", type=Whole(), metavar="TEXT", help="The second text, for a model of pairs.")
@click.option(
    "--input", "file", type=path_option, metavar="FILE", help="Texts to classify; - or nothing is stdin."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="What the input is; a JSON list is jsonl.  [by its suffix, else lines]",
)
@click.option("--text-field", metavar="F", help="Field of the text.  [text, sentence, …, or the only one]")
@click.option("--pair-field", metavar="F", help="Field of the second text.")
@click.option("--label-field", metavar="F", help="Field of the right label.  [label, category, …]")
@click.option(
    "--labels",
    metavar="A,B,…",
    help="Which of its labels to choose among, sharing the probability. Chat models need them.",
)
@click.option(
    "--top",
    type=click.IntRange(1),
    metavar="N",
    help="Labels shown for one text, in --json, or of many a text.  [all]",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    metavar="P",
    help="Least probability of a label.  [0.5 with many labels a text, else 0]",
)
@click.option(
    "--long",
    type=click.Choice(["cut", "split"]),
    default="cut",
    show_default=True,
    help="What becomes of long texts.",
)
@click.option(
    "--report", "wants_report", is_flag=True, help="Print scores against the data's labels, not the rows."
)
@click.option("--plot", type=path_option, metavar="FILE.png", help="Draw the report's confusion matrix.")
@click.option("--examples", type=path_option, metavar="FILE", help="Labelled texts to show a chat model.")
@click.option("--backend", type=click.Choice(["onnx", "gguf"]), help="What runs it.  [the faster one here]")
@click.option("--threads", type=click.IntRange(1, 512), metavar="N", help="Threads.  [all cores]")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line; of a report, one.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV with a header.")
def command(
    ref: str,
    text: str | None,
    pair: str | None,
    file: Path | None,
    form: str | None,
    text_field: str | None,
    pair_field: str | None,
    label_field: str | None,
    labels: str | None,
    top: int | None,
    threshold: float | None,
    long: str,
    wants_report: bool,
    plot: Path | None,
    examples: Path | None,
    backend: str | None,
    threads: int | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Label texts, find entities, score a classifier.

    REF is a classifier (a kept model, an ONNX folder, a GGUF file, a head that `edge train` made), or a chat model
    with --labels. TEXT is one text; else the rows of --input or the lines of stdin are classified, in their order.

    \b
      edge classify ./finance-int8 "Profit rose by a third."
      edge classify ./finance-int8 --input news.csv --csv > labelled.csv
      edge classify ./finance-int8 --input test.jsonl --report --plot matrix.png
      edge classify ./ner-int8 --input eng.testb --format conll --report
      edge classify smollm2-135m-instruct "Great fun!" --labels positive,negative

    A CSV or TSV file has a header line, unless its fields are given as numbers from 1 on. Rows are:

    \b
      --json   {text, label, probability, labels: [{label, probability}]}
               {text, entities: [{label, text, start, end, probability}]}
      --csv    row,text,label,probability
               row,label,text,start,end,probability, of entities

    A row is numbered from 1 on. Entities start and end at characters of the text. In JSON left_out counts the tokens
    that were not read.

    A blank text keeps its place and gets no label. With --threshold a text whose labels are all less likely gets
    none either; where a text may have many labels, it gets all that reach it. A text longer than the model reads is
    cut, which is said, or with --long split read in windows whose probabilities are averaged by their tokens. The
    label field may number the model's labels from 0 on, but not those given to a chat model. The report counts a text
    without a label as wrong.
    """
    if text is not None:
        for name, given in {"--input": file, "--report": wants_report, "--plot": plot}.items():
            if given:
                raise RequestError(
                    f"{name} is for many texts, and one is given", hint="leave one of them out"
                )
        check_text(text, "the text")
        check_text(pair, "the second text")
    elif pair is not None:
        raise RequestError("--pair belongs to a TEXT", hint="--pair-field names the second text of rows")
    elif file is None and is_terminal(sys.stdin):
        raise RequestError("there is no text", hint="give one, or --input FILE, or lines on stdin")
    if as_csv and (as_json or wants_report or plot):
        raise RequestError("--csv is for rows, by themselves", hint="leave --json, --report and --plot out")

    from edge.cli import classify_output as output
    from edge.tasks import answers, matrix, rows, source

    if plot:
        matrix.check(plot)
    named = tuple(part.strip() for part in (labels or "").split(",") if part.strip())
    wish = answers.Wish(named, top, threshold, long == "split")
    shown = examples_in(examples) if examples else []
    wants_report = wants_report or plot is not None
    fields = rows.Fields(text_field, pair_field, label_field, labelled=wants_report)

    def load(sample: list[Row]) -> Encoder:
        texts = [row.text for row in sample]
        pairs = any(row.pair is not None for row in sample)
        encoder, reason = answers.opened(
            ref, named, shown, backend=backend, threads=threads, sample=texts, pairs=pairs
        )
        if reason:
            click.echo(printable(reason), err=True)
        return encoder

    if text is not None:
        row = rows.Row(text, pair, line=1)
        with closing(load([row])) as encoder:
            print_one(encoder, row, wish, as_json, as_csv)
        return
    with source.opened(file) as lines:
        incoming = rows.read(lines, form, fields)
        first = list(islice(incoming, 1 if lines.live else SAMPLE))
        if not first:
            raise RequestError(f"{lines.name} has no rows", hint="give one with texts")
        # a slow source is taken to go on as it begins
        with (
            closing(load(first * SAMPLE if lines.live else first)) as encoder,
            watched(lines, wants_report) as watch,
        ):
            every = watch(chain(first, incoming))
            if not wants_report:
                print_rows(encoder, every, wish, lines.live, as_json, as_csv)
                return
            missed = Missed(encoder)
            found = answers.report(encoder, every, wish, live=lines.live, tell=missed.see)
            about = encoder.about
    missed.say()
    if as_json:
        emit_json(output.report_json(found))
    else:
        click.echo(output.report_text(found))
    if plot:
        right = f"F1 {found.micro.f1:.4f}" if found.accuracy is None else f"accuracy {found.accuracy:.4f}"
        title = f"{about.name} · {Path(lines.name).name}\n{found.rows:,} texts, {right}"
        matrix.draw(found, plot, title)


def check_text(text: str | None, what: str) -> None:
    """Raise RequestError for an argument that is no text, or none to speak of."""
    if text is None:
        return
    if not text.strip():
        raise RequestError(f"{what} is empty", hint="give one with words")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{what} is no UTF-8", hint="set the terminal to UTF-8") from None


def examples_in(path: Path) -> list[tuple[str, str]]:
    """Labelled texts for a chat model. Raises BadData for rows that are none."""
    from edge.tasks import rows, source
    from edge.tasks.report import each_label

    with source.opened(path) as lines:
        found = rows.read(lines, None, rows.Fields(labelled=True))
        return [(row.text, each_label(row.label, row.line, several=False)[0]) for row in found]


@contextmanager
def watched(lines: Source, alone: bool) -> Iterator[Callable[[Iterable[Row]], Iterable[Row]]]:
    """A function that moves a bar as rows are read, where the answers do not scroll past instead."""
    if not lines.size or (is_terminal(sys.stdout) and not alone):
        yield lambda rows: rows
        return
    with bars() as report:

        def watch(rows: Iterable[Row]) -> Iterator[Row]:
            last = 0.0
            for row in rows:
                if time.monotonic() > last + TICK:
                    last = time.monotonic()
                    report(Path(lines.name).name, lines.done, lines.size)
                yield row
            report(Path(lines.name).name, lines.size, lines.size)

        yield watch


class Missed:
    """Counts what the answers do not show: blank texts, and tokens that were not read."""

    def __init__(self, encoder: Encoder) -> None:
        self.limit = encoder.about.max_tokens
        self.blank = self.longer = self.left_out = 0

    def see(self, answer: Answer) -> None:
        self.blank += not answer.text.strip()
        self.longer += answer.left_out > 0
        self.left_out += answer.left_out

    def say(self) -> None:
        if self.blank:
            click.echo(
                f"{self.blank:,} blank text{' has' if self.blank == 1 else 's have'} no answer", err=True
            )
        if self.longer:
            click.echo(
                f"{self.longer:,} text{' is' if self.longer == 1 else 's are'} longer than {self.limit:,} tokens: "
                f"{self.left_out:,} at the end were not read (--long split reads them)",
                err=True,
            )


def print_one(encoder: Encoder, row: Row, wish: Wish, as_json: bool, as_csv: bool) -> None:
    """The answer for one text: a table, a line of JSON, or CSV."""
    from edge.cli import classify_output as output
    from edge.tasks.answers import answers

    missed = Missed(encoder)
    for answer in answers(encoder, [row], wish):
        missed.see(answer)
        if as_json:
            click.echo(output.json_line(answer))
        elif as_csv:
            output.csv_writer(encoder.about, click.echo)(answer)
        else:
            click.echo(output.of_one(answer))
    missed.say()


def print_rows(
    encoder: Encoder, rows: Iterable[Row], wish: Wish, live: bool, as_json: bool, as_csv: bool
) -> None:
    """Answers as complete lines, as soon as they are there."""
    from edge.cli import classify_output as output
    from edge.cli.lines import Lines
    from edge.tasks.answers import answers

    missed, written = Missed(encoder), Lines()
    show: Callable[[Answer], None]
    if as_csv:
        show = output.csv_writer(encoder.about, written.write)
    else:
        form = output.json_line if as_json else output.row_line(encoder.about)

        def show(answer: Answer) -> None:
            written.write(form(answer))

    # whatever ends the run, what is complete is written
    with closing(answers(encoder, rows, wish, live=live)) as found, written:
        for answer in found:
            missed.see(answer)
            show(answer)
    missed.say()
