"""The commands of a conversation: `/name rest`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import click

from edge.chat.loaded import LoadedModel, load
from edge.chat.policy import POLICIES, named
from edge.chat.sessions import Sessions
from edge.chat.talk import Talk
from edge.cli.models import here
from edge.cli.output import counted, model_line, printable, table, timing_line
from edge.errors import PromptTooLong, RequestError
from edge.home import sessions_file
from edge.planner import plan


@dataclass
class Desk:
    """The conversation, and what another model is to be loaded with."""

    talk: Talk
    ctx: int | str | None = None
    threads: int | None = None


class Leave(Exception):
    """The conversation is over."""


def run(desk: Desk, text: str) -> None:
    """Do `/name rest`, where name may be any unambiguous beginning. Raises RequestError for no such command."""
    name, *rest = text.split(maxsplit=1)
    matches = [name] if name in COMMANDS else [known for known in COMMANDS if known.startswith(name)]
    if not matches:
        raise RequestError(f"{name} is no command", hint="/help lists them")
    if len(matches) > 1:
        raise RequestError(f"{name} may be {' or '.join(matches)}", hint="write one more letter")
    COMMANDS[matches[0]][2](desk, rest[0].strip() if rest else "")


def list_commands(_: Desk, __: str) -> None:
    """Print what can be typed."""
    rows = [(f"{name} {argument}".strip(), line) for name, (argument, line, _action) in COMMANDS.items()]
    click.echo(table([*rows, ("Alt-Enter", "a new line in the message"), ("Ctrl-C", "stop the answer")]))


def change_model(desk: Desk, ref: str) -> None:
    """Load another model, without the adapters of the one before; when that fails this one comes back."""
    talk = desk.talk
    if ref:
        ref = here(ref)
        # What can be refused by the header is refused before anything is given up.
        plan(ref, ctx=desk.ctx, threads=desk.threads)
        old = talk.model
        old.close()  # together they might not fit
        try:
            talk.model = load(ref, ctx=desk.ctx, threads=desk.threads)
            reason = talk.model.template.reason
        except BaseException:
            talk.model.close()
            talk.model = LoadedModel(old.plan, template=old.form, adapters=old.adapters)
            raise
        talk.ref = ref
        if reason:
            click.echo(printable(reason))
        if old.adapters:  # they were made for the model before
            names = ", ".join(adapter.path.name for adapter in old.adapters)
            click.echo(printable(f"goes on without {names}; begin with --lora to add one to this model"))
    click.echo(printable(model_line(talk.model)))


def change_system(desk: Desk, text: str) -> None:
    """Change the system prompt, or show it."""
    if text:
        desk.talk.instruct(text)
    click.echo(printable(f"system prompt: {desk.talk.system or 'none'}"))


def save(desk: Desk, name: str) -> None:
    """Name the conversation."""
    if not name:
        raise RequestError("a name is missing", hint="/save NAME")
    desk.talk.save_as(name)
    click.echo(f"saved as {name}")


def take_up(desk: Desk, name: str) -> None:
    """Go on with a saved conversation; without a name, list them."""
    with Sessions(sessions_file(), create=False) as file:
        if name:
            desk.talk.take_up(file.conversation(name))
            click.echo(printable(f"{name}: {counted(len(desk.talk.turns), 'message')}"))
        elif known := file.all():
            rows = [(session.name, session.model, counted(session.turns, "turn")) for session in known]
            click.echo(printable(table(rows)))
        else:
            click.echo("no saved conversations")


def clear(desk: Desk, _: str) -> None:
    """Begin a new conversation; it is kept where the one before was."""
    desk.talk.begin_anew()
    click.echo("a new conversation")


def statistics(desk: Desk, _: str) -> None:
    """Print what runs, and the last answer's figures."""
    talk = desk.talk
    click.echo(printable(model_line(talk.model)))
    if talk.tally.usage.completion_tokens:
        click.echo(timing_line(talk.tally.usage, talk.tally.timings(talk.model.engine.load_s)))
    kept = f"saved as {talk.saved.name}" if talk.saved else "not saved"
    click.echo(f"{counted(len(talk.turns), 'message')}, {kept}")


def change_policy(desk: Desk, name: str) -> None:
    """Choose what is done once the context is full, or show how full it is."""
    talk = desk.talk
    if name:
        talk.policy = named(name)
    seen, count = talk.seen(), 0
    if seen:
        try:
            count = len(talk.model.tokens(seen))
        except PromptTooLong as error:
            count = error.prompt_tokens
    click.echo(f"context: {count} of {talk.model.engine.context} tokens; once full: {talk.full}")
    if talk.fitted.note:
        click.echo(talk.fitted.note)


def leave(_: Desk, __: str) -> None:
    raise Leave


# name → its argument, its line in /help, what it does
COMMANDS: dict[str, tuple[str, str, Callable[[Desk, str], None]]] = {
    "/help": ("", "this list", list_commands),
    "/model": ("[REF]", "change the model and keep the conversation", change_model),
    "/system": ("[TEXT]", "change the system prompt", change_system),
    "/save": ("NAME", "name the conversation", save),
    "/load": ("[NAME]", "go on with a saved one; without a name, list them", take_up),
    "/clear": ("", "begin a new conversation", clear),
    "/context": ("[POLICY]", f"how full it is; {', '.join(POLICIES)} once it is", change_policy),
    "/stats": ("", "what runs, and the last answer's figures", statistics),
    "/quit": ("", "leave (also Ctrl-D)", leave),
}
