"""The `edge` command: one small module a verb, loaded only when that verb runs.

Results go to stdout; progress, timings and errors to stderr. An `EdgeError` becomes one line and its exit
code; `EDGE_TRACEBACK=1` shows the traceback instead.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib import import_module
from typing import Any

import click

from edge.cli.output import is_terminal, printable
from edge.errors import EdgeError

# verb → its line in `edge --help`. Kept here so that --help imports no verb; a test holds it to the docstrings.
VERBS = {
    "chat": "Talk to a model, or ask it one thing.",
    "generate": "Continue a text, n ways from one prefill.",
    "batch": "Answer a file of prompts, several at a time.",
    "classify": "Label texts, find entities, score a classifier.",
    "plan": "Say what fits and how it would run, before loading.",
    "host": "Say what this machine is and which backend it gets.",
    "pull": "Fetch a model, check it, keep it.",
    "list": "List the models kept here and those that can be pulled.",
    "show": "Show what a model file says of itself.",
    "verify": "Check kept files against their hashes.",
    "rm": "Remove a model.",
    "convert": "Make GGUF files or ONNX folders of a checkpoint, proven; and back.",
    "train": "Train a classifier on this device.",
    "embed": "Turn texts into vectors.",
    "rerank": "Sort texts by how well they answer a query.",
    "sessions": "List, show, export or remove saved conversations.",
    "cache": "List or clear the prefixes kept on the disk.",
    "bench": "Measure speed, memory and quality.",
}


class Verbs(click.Group):
    """A group that imports `edge.cli.<verb>` when the verb is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*VERBS]  # `list` is the module of a verb here, once that is imported

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"edge.cli.{cmd_name}").command
        name_variables(command, f"EDGE_{cmd_name}")
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # click would print an empty line, terminal or not
            raise click.Abort from None
        except BrokenPipeError:  # click would leave without a word
            discard(1)
            raise EdgeError("the reader closed the pipe before the output was complete") from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([*VERBS.items()])


def name_variables(command: click.Command, prefix: str) -> None:
    """Let each option be read from the variable that its own spelling names: EDGE_CHAT_TOP_K, EDGE_PLAN_JSON.

    Click's automatic names come from the Python parameters (AS_JSON), and take EDGE_VERSION for --version.
    """
    for option in command.params:
        if isinstance(option, click.Option):
            spelled = max(option.opts, key=len).lstrip("-").replace("-", "_")
            option.envvar = f"{prefix}_{spelled}".upper()
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            name_variables(inner, f"{prefix}_{name}")


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every option is also an environment variable: `edge chat --temp` reads EDGE_CHAT_TEMP. "
    "Only pulling a model opens a network connection.",
)
@click.version_option(package_name="edge-runtime", message="%(prog)s %(version)s")
def cli() -> None:
    """Run quantized language models on this machine, offline, with reasons."""


def main(args: list[str] | None = None) -> None:
    """Run the command and leave the process with its exit code."""
    sys.exit(run(args))


def run(args: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 1 failure, 2 usage, 3 unsafe file, 4 memory, 130 Ctrl-C."""
    warnings.showwarning = show
    try:
        code = cli.main(args=args, prog_name="edge", standalone_mode=False)
        if sys.stdout:  # None when the caller closed it
            sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, click.Abort):
        if is_terminal(sys.stderr):
            click.echo(err=True)  # the cursor stands behind half an answer and ^C
        return fail("interrupted", 130)
    except (EdgeError, click.ClickException, MemoryError, OSError) as error:
        if os.environ.get("EDGE_TRACEBACK") == "1":
            raise
        return explain(error)


def show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: str | None = None,
) -> None:
    """A warning as one line on stderr, without the place in our code that it comes from."""
    fail(f"warning: {message}", 0)


def explain(error: Exception) -> int:
    """One line on stderr for an error that has a meaning; returns its exit code."""
    if isinstance(error, EdgeError):
        return fail(error.line, error.exit_code)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return error.exit_code
    if isinstance(error, click.UsageError):
        verb = error.ctx.command_path if error.ctx else "edge"
        return fail(f"{error.format_message().rstrip('.')}; see `{verb} --help`", 2)
    if isinstance(error, click.ClickException):
        return fail(error.format_message(), error.exit_code)
    if isinstance(error, OSError):  # of stdout: whatever opens files makes its errors into EdgeErrors
        discard(1)
        return fail(f"the output cannot be written: {error.strerror}", 1)
    return fail("out of memory; a smaller --ctx or a smaller model needs less", 4)


def fail(line: str, code: int) -> int:
    """Print `edge: line` on stderr and return `code`. The line may quote a file, so it is made printable."""
    try:
        click.echo(printable(f"edge: {line}"), err=True)
    except OSError:
        discard(2)
    return code


def discard(descriptor: int) -> None:
    """Lead a stream that cannot be written to nowhere: Python flushes what it still holds once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
