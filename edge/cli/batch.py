"""`edge batch`: a file of prompts answered, all slots at work."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from edge.cli.options import context_options, sampling_given, sampling_options
from edge.cli.output import is_terminal, printable
from edge.cli.references import complete_ref
from edge.errors import EdgeError, RequestError

if TYPE_CHECKING:
    from edge.chat.loaded import LoadedModel
    from edge.engine import Sampling
    from edge.tasks.batch import Result
    from edge.tasks.prompts import Row
    from edge.tasks.source import Source

path_option = click.Path(path_type=Path)
Show = Callable[[int], None]  # bytes of the input that are answered


@click.command()
@click.argument("ref", shell_complete=complete_ref)
@click.option(
    "--input",
    "file",
    type=path_option,
    required=True,
    metavar="FILE",
    help="Prompts, a JSON object a line; - is stdin.",
)
@click.option(
    "--output",
    type=path_option,
    required=True,
    metavar="FILE",
    help="Answers, a JSON object a line; - is stdout.",
)
@click.option(
    "--parallel",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Rows answered at a time.  [the most of 8, 4, 2 and 1 that fit in memory]",
)
@sampling_options
@context_options
def command(
    ref: str,
    file: Path,
    output: Path,
    parallel: int | None,
    ctx: int | str | None,
    threads: int | None,
    **options: Any,
) -> None:
    """Answer a file of prompts, several at a time.

    A row of the input has a prompt to continue or messages to answer, and any sampling field by its name in chat
    completions; what it leaves out are the options here, or what the model's authors advise. Blank lines are no rows.

    \b
      {"prompt": "The sea", "max_tokens": 40, "seed": 1}
      {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "stop": ["\\n"]}

    A row of the output stands where its prompt does, and has its id or custom_id, a text, if there is one. A row that
    cannot be answered costs no other its answer; the exit code is then 1:

    \b
      {"index", "text", "finish_reason", "usage": {"prompt_tokens", "completion_tokens"}}
      {"index", "error"}

    A line is appended once it and all before it are done. A run that was ended, by whatever means, goes on where its
    output ends when the same command is given again; OUTPUT.batch, beside the output, tells whether it is the same.
    Rows that were under way, and those done behind a longer one, are then answered anew: as before, if they have seeds.
    """
    given = sampling_given(options)
    from edge.chat.loaded import load
    from edge.tasks import batch, source

    with source.opened(file) as lines:
        if output.exists() and file.exists() and output.samefile(file):
            raise RequestError("the output is the input", hint="name another --output")
        if parallel is None:
            parallel, reason = batch.choose_parallel(ref, ctx=ctx, threads=threads)
            click.echo(reason, err=True)
        with load(ref, ctx=ctx, threads=threads, parallel=parallel) as model:
            answer(model, replace(model.sampling, **given), lines, file, output)


def answer(model: LoadedModel, base: Sampling, lines: Source, file: Path, output: Path) -> None:
    """Answer what the output does not hold yet."""
    from edge.tasks.batch import run

    with written(model, base, lines, file, output) as (write, there, errors):
        count, ends = Count(there, errors), deque[int]()
        with (
            told(count, output),
            drawn(lines, output, count) as show,
            incoming(lines, there, ends) as rows,
            closing(run(model, rows, base=base, first=there)) as results,
        ):
            for result in results:
                write(result.line())
                count.add(result)
                show(ends.popleft())
    click.echo(count.summary(), err=True)
    if count.errors:
        raise EdgeError(
            f"{count.errors:,} of {count.rows:,} rows could not be answered", hint="their lines say why"
        )


@contextmanager
def told(count: Count, output: Path) -> Iterator[None]:
    """After Ctrl-C, say what is written."""
    try:
        yield
    except KeyboardInterrupt:
        if str(output) != "-":
            there = f"{count.rows:,} rows are written; the same command goes on with them"
            # in a terminal "interrupted" begins with the end of this line
            click.echo(there, err=True, nl=not is_terminal(sys.stderr))
        raise


@contextmanager
def written(
    model: LoadedModel, base: Sampling, lines: Source, file: Path, output: Path
) -> Iterator[tuple[Callable[[str], None], int, int]]:
    """What takes a line of output, how many of them are there, and how many of those are errors."""
    if str(output) == "-":
        from edge.cli.lines import Lines

        with Lines() as stdout:
            yield stdout.write, 0, 0
        return
    from edge.tasks import journal

    again = not lines.live and str(file) != "-"
    with journal.opened(output, journal.made_of(file, model, base) if again else None) as found:
        yield found.write, found.rows, found.errors


@contextmanager
def incoming(lines: Source, there: int, ends: deque[int]) -> Iterator[Iterable[Row | None]]:
    """The rows that are not answered yet; `ends` gets the byte that each ends at."""
    from edge.tasks.prompts import read
    from edge.tasks.stream import ticking

    def noted() -> Iterator[tuple[Row]]:  # not bare: an error that stands for a row is not to be raised
        for row in islice(read(lines), there, None):
            ends.append(lines.done)
            yield (row,)

    stop = threading.Event()
    found = ticking(noted(), stop) if lines.live else noted()
    try:
        yield (item and item[0] for item in found)
    finally:
        stop.set()


@dataclass
class Count:
    """What was done: rows, `there` of them before this run, errors among them, and tokens of this run's answers."""

    there: int
    errors: int
    new: int = 0
    read: int = 0
    written: int = 0
    started: float = field(default_factory=perf_counter)

    def add(self, result: Result) -> None:
        self.new += 1
        self.errors += bool(result.error)
        self.read += result.usage.prompt_tokens
        self.written += result.usage.completion_tokens

    @property
    def rows(self) -> int:
        return self.there + self.new

    @property
    def rate(self) -> float:
        """Tokens written a second."""
        return self.written / (perf_counter() - self.started)

    def summary(self) -> str:
        """`40 rows (12 were there) · 1 error · 812 + 2,560 tokens · 245 t/s`."""
        before = f" ({self.there:,} were there)" if self.there else ""
        parts = [f"{self.rows:,} row{'' if self.rows == 1 else 's'}{before}"]
        if self.errors:
            parts.append(f"{self.errors:,} error{'' if self.errors == 1 else 's'}")
        if self.new:
            parts += [f"{self.read:,} + {self.written:,} tokens", f"{self.rate:.0f} t/s"]
        return " · ".join(parts)


@contextmanager
def drawn(lines: Source, output: Path, count: Count) -> Iterator[Show]:
    """A bar on stderr with rows and tokens a second, in a terminal where no answers scroll past it."""
    if not is_terminal(sys.stderr) or (str(output) == "-" and is_terminal(sys.stdout)):
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        name = printable(Path(lines.name).name)
        task = progress.add_task(name, total=lines.size or None, figures="")

        def show(done: int) -> None:
            figures = f"{count.rows:,} rows · {count.rate:.0f} t/s"
            progress.update(task, completed=done, figures=figures)

        try:
            yield show
        except KeyboardInterrupt:
            progress.console.file.write("\n")  # what was drawn stays, with ^C behind it
            progress.update(task, visible=False)  # the end of the block draws it once more
            raise
