"""`edge sessions`: what was said, and the doors out of it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from edge.cli.output import emit_json, json_option, printable, table
from edge.errors import EdgeError
from edge.home import sessions_file


def names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Session names for the shell, each with its model."""
    from edge.chat.sessions import Sessions

    try:
        with Sessions(sessions_file(), create=False) as sessions:
            known = sessions.all()
    except EdgeError:
        return []  # a shell that completes has no place for an error
    return [CompletionItem(item.name, help=item.model) for item in known if item.name.startswith(incomplete)]


name_argument = click.argument("name", shell_complete=names)


@click.group()
def command() -> None:
    """List, show, export or remove saved conversations."""


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the conversations, the last used first."""
    from edge.chat.export import head
    from edge.chat.sessions import Sessions

    with Sessions(sessions_file(), create=False) as sessions:
        known = sessions.all()
    if as_json:
        emit_json([head(item) for item in known])
    elif known:
        rows = [(item.name, item.model, str(item.turns), local(item.updated)) for item in known]
        click.echo(table(rows, ("name", "model", "turns", "last used")))
    else:
        click.echo("no saved conversations; `edge chat` begins one", err=True)


@command.command("show")
@name_argument
@json_option
def show(name: str, as_json: bool) -> None:
    """Print one conversation."""
    from edge.chat.export import TITLES, to_dict
    from edge.chat.sessions import Sessions

    with Sessions(sessions_file(), create=False) as sessions:
        conversation = sessions.conversation(name)
    if as_json:
        emit_json(to_dict(conversation))
        return
    session = conversation.session
    turns = "1 turn" if session.turns == 1 else f"{session.turns} turns"
    click.echo(f"{click.style(session.name, bold=True)}  {session.model}, {turns}, {local(session.updated)}")
    if session.system:
        click.echo(f"\n{click.style('System', bold=True)}\n{printable(session.system)}")
    for message in conversation.messages:
        note = f"  ({message.finish_reason})" if message.finish_reason not in (None, "stop") else ""
        click.echo(f"\n{click.style(TITLES[message.role], bold=True)}{note}\n{printable(message.content)}")


@command.command("rm")
@name_argument
def rm(name: str) -> None:
    """Remove one conversation."""
    from edge.chat.sessions import Sessions

    with Sessions(sessions_file(), create=False) as sessions:
        sessions.remove(name)
    click.echo(f"removed {name}", err=True)


@command.command("export")
@name_argument
@click.option(
    "--format",
    "form",
    type=click.Choice(["markdown", "json"]),
    default="markdown",
    show_default=True,
    help="To read, or to process.",
)
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write here instead of stdout."
)
def export(name: str, form: str, output: Path | None) -> None:
    """Write one conversation as a document."""
    from edge.chat.export import to_json, to_markdown, write_whole
    from edge.chat.sessions import Sessions

    with Sessions(sessions_file(), create=False) as sessions:
        conversation = sessions.conversation(name)
    text = to_json(conversation) if form == "json" else to_markdown(conversation)
    if output is None:
        click.echo(text, nl=False)
    else:
        write_whole(output, text)
        click.echo(f"wrote {output}", err=True)


def local(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
