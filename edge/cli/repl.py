"""The conversation in a terminal: history, several lines, slash commands, Ctrl-C that stops only the answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output

from edge.cli.output import is_terminal, printable
from edge.cli.slash import COMMANDS, Desk, Leave, run
from edge.errors import EdgeError, PromptTooLong
from edge.home import home

if TYPE_CHECKING:
    from edge.chat.talk import Talk


def converse(talk: Talk, *, ctx: int | str | None = None, threads: int | None = None) -> None:
    """Read, answer, repeat; ends with /quit or Ctrl-D. `ctx` and `threads` are for a model loaded on the way."""
    desk = Desk(talk, ctx, threads)
    click.echo("Alt-Enter begins a new line, Ctrl-C stops an answer, /help lists the commands.", err=True)
    prompt: PromptSession[str] = PromptSession(
        ">>> ",
        history=history(),
        completer=WordCompleter(sorted(COMMANDS), sentence=True),
        complete_while_typing=False,
        key_bindings=keys(),
        multiline=True,
        # only where the person broke the line, not where the terminal did
        prompt_continuation=lambda width, line, wraps: " " * width if wraps else "... ",
        output=create_output(always_prefer_tty=True),  # stdout may be a file, for the answers
    )
    try:
        while True:
            try:
                respond(desk, prompt.prompt().strip())
            except KeyboardInterrupt:
                continue  # an abandoned line
            except (EOFError, Leave):
                return
    finally:
        talk.model.close()  # the one of /model


def respond(desk: Desk, text: str) -> None:
    """Run a command or stream an answer; an error is one line and the conversation goes on."""
    try:
        if text.startswith("/"):
            run(desk, text)
        elif text:
            stream(desk.talk, text)
    except PromptTooLong as error:
        say(f"edge: {error}; {way_out(desk.talk)}")
    except EdgeError as error:
        say(f"edge: {error.line}")
    except KeyboardInterrupt:
        say("\n[stopped]\n")


def way_out(talk: Talk) -> str:
    """What to do about a prompt that is too long."""
    if talk.full != "error":
        return "shorten it"
    if not talk.turns:
        return "shorten it, or begin anew with /clear"
    return "shorten it, begin anew with /clear, or let the oldest turns go with /context shift"


def say(line: str) -> None:
    """A line for the person, apart from the answers. It may quote a file, so it is made printable."""
    click.echo(printable(line), err=True)


def stream(talk: Talk, text: str) -> None:
    """Print the answer as it comes, and why it ended when that was not the model's doing."""
    talk.tell = lambda note: say(f"[{note}]")
    with silent_keys(), closing(talk.say(text)) as chunks:
        for chunk in chunks:
            click.echo(printable(chunk.text), nl=False)
    click.echo("\n")
    if talk.tally.finish_reasons[0] == "length":
        full = talk.tally.usage.completion_tokens != talk.sampling.max_tokens
        what = (
            "/clear begins anew, /context shift lets the oldest turns go"
            if talk.full == "error"
            else "the answer ends here, the next message makes room"
        )
        say(f"[the context is full: {what}]" if full else "[cut at --max-tokens]")


@contextmanager
def silent_keys() -> Iterator[None]:
    """Keep what is typed during an answer from being drawn into it; the next prompt gets it."""
    if not is_terminal(sys.stdin):
        yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    silent = [*before]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


class Lines(FileHistory):
    """The lines typed before. One that cannot be written down, on a full disk, is not worth the conversation."""

    def store_string(self, string: str) -> None:
        with suppress(OSError, UnicodeError):
            super().store_string(string)


def history() -> History:
    """The lines typed before, in the user's data folder; only this run's where that cannot be used."""
    file = home() / "history"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.open("r+b").close()
        return Lines(str(file))
    except OSError as error:
        say(f"what you type is not remembered: {file}: {error.strerror}")
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
