"""The conversation in a terminal: history, several lines, slash commands, Ctrl-C that stops only the answer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from edge.chat.sessions import Sessions
from edge.chat.talk import Saved, Talk
from edge.chat.template import Message
from edge.cli.models import here
from edge.cli.output import model_line, printable, timing_line
from edge.errors import EdgeError, RequestError
from edge.home import home, sessions_file
from edge.chat.loaded import load

Action = Callable[[Talk, str], None]


def converse(talk: Talk) -> None:
    """Read, answer, repeat; ends with /quit or Ctrl-D."""
    click.echo("Alt-Enter begins a new line, Ctrl-C stops an answer, /help lists the commands.", err=True)
    prompt: PromptSession[str] = PromptSession(
        ">>> ",
        history=history(),
        completer=WordCompleter(sorted(COMMANDS), sentence=True),
        complete_while_typing=False,
        key_bindings=keys(),
        multiline=True,
        prompt_continuation="... ",
    )
    try:
        while True:
            try:
                text = prompt.prompt().strip()
            except KeyboardInterrupt:
                continue  # an abandoned line
            except EOFError:
                return
            if text in ("/quit", "/exit", "/bye"):
                return
            if text:
                respond(talk, text)
    finally:
        talk.model.close()


def respond(talk: Talk, text: str) -> None:
    """Run a command or stream an answer; an error is one line and the conversation goes on."""
    try:
        if text.startswith("/"):
            run(talk, text)
        else:
            stream(talk, text)
    except EdgeError as error:
        click.echo(f"edge: {error.line}", err=True)
    except KeyboardInterrupt:
        click.echo("\n[stopped]", err=True)


def stream(talk: Talk, text: str) -> None:
    """Print the answer as it comes."""
    with closing(talk.say(text)) as chunks:
        for chunk in chunks:
            click.echo(printable(chunk.text), nl=False)
    click.echo("\n")
    if talk.tally.finish_reasons[0] == "length":
        click.echo("[cut: --max-tokens or the context is used up]", err=True)


def run(talk: Talk, text: str) -> None:
    """`/name rest`, where name may be any unambiguous beginning. Raises RequestError for no such command."""
    name, _, rest = text.partition(" ")
    matches = [known for known in COMMANDS if known.startswith(name)]
    if name in COMMANDS:
        matches = [name]
    if len(matches) != 1:
        raise RequestError(f"{name} is no command", hint="/help lists them")
    COMMANDS[matches[0]][1](talk, rest.strip())


def change_model(talk: Talk, ref: str) -> None:
    if not ref:
        click.echo(model_line(talk.model.plan))
        return
    # The old model goes first: together they might not fit.
    old = talk.model.plan
    here(ref)
    talk.model.close()
    try:
        talk.model = load(ref)
    except EdgeError:
        talk.model = load(str(old.path), ctx=old.context)
        raise
    click.echo(model_line(talk.model.plan))


def change_system(talk: Talk, text: str) -> None:
    if text:
        talk.system = text
    click.echo(f"system prompt: {talk.system or '(none)'}")


def clear(talk: Talk, _: str) -> None:
    talk.turns, talk.saved = [], None
    click.echo("A new conversation; /save NAME keeps it.")


def save(talk: Talk, name: str) -> None:
    """Name the conversation, or begin to keep one that is not kept."""
    if not name:
        raise RequestError("a name is missing", hint="/save NAME")
    if talk.saved:
        talk.saved.file.rename(talk.saved.session.name, name)
        talk.saved.session = talk.saved.file.get(name)
    else:
        file = Sessions(sessions_file())
        session = file.create(name, talk.model.plan.artifact, system=talk.system)
        talk.saved = Saved(file, session)
        for message in talk.turns:
            file.append(session, message.role, message.content)
    click.echo(f"kept as {name!r}")


def take_up(talk: Talk, name: str) -> None:
    """Go on with a saved conversation; without a name, list them."""
    file = talk.saved.file if talk.saved else Sessions(sessions_file())
    if not name:
        for session in file.all():
            click.echo(f"{session.name}  ({session.turns} turns)")
        return
    past = file.conversation(name)
    talk.saved, talk.system = Saved(file, past.session), past.session.system
    talk.turns = [Message(message.role, message.content) for message in past.messages]
    click.echo(f"{name}: {len(talk.turns)} messages")


def statistics(talk: Talk, _: str) -> None:
    click.echo(model_line(talk.model.plan))
    if talk.tally.usage.completion_tokens:
        click.echo(timing_line(talk.tally.usage, talk.tally.timings(talk.model.engine.load_s)))


def list_commands(_: Talk, __: str) -> None:
    for name, (line, _action) in COMMANDS.items():
        click.echo(f"  {name:<9} {line}")
    click.echo("  /quit     leave (also Ctrl-D)")


COMMANDS: dict[str, tuple[str, Action]] = {
    "/help": ("this list", list_commands),
    "/model": ("REF: change the model, keep the conversation", change_model),
    "/system": ("TEXT: change the system prompt", change_system),
    "/save": ("NAME: keep the conversation under a name", save),
    "/load": ("NAME: go on with a kept one; without a name, list them", take_up),
    "/clear": ("begin anew", clear),
    "/stats": ("what runs, and the last answer's figures", statistics),
}


def history() -> History:
    """The lines typed before, in the user's data folder; only this run's where that cannot be written."""
    try:
        home().mkdir(parents=True, exist_ok=True)
        file = home() / "history"
        file.touch(mode=0o600)
        return FileHistory(str(file))
    except OSError as error:
        click.echo(f"the history of this prompt is not kept: {error.strerror}", err=True)
        return InMemoryHistory()


def keys() -> KeyBindings:
    """Enter sends, Alt-Enter breaks the line."""
    bindings = KeyBindings()

    @bindings.add("enter")
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def break_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings
