"""`edge chat`: one answer, or a conversation."""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from edge import store
from edge.cli.models import DashesCommand, here, split_words
from edge.cli.options import context_options, sampling, sampling_options
from edge.cli.output import model_line, printable, timing_line
from edge.cli.references import complete_ref
from edge.errors import EdgeError, RequestError

if TYPE_CHECKING:
    from edge.chat.sessions import Conversation, Sessions
    from edge.chat.talk import Saved, Talk
    from edge.engine import Sampling
    from edge.chat.loaded import LoadedModel

MAX_STDIN = 64 << 20  # bytes; a larger text fits no context there is


@click.command(cls=DashesCommand)
@click.argument("words", nargs=-1, metavar="[REF] [PROMPT]", shell_complete=complete_ref)
@click.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@click.option(
    "--template", metavar="NAME", help="Chat form to use instead of the file's own: chatml, llama-3, …"
)
@click.option("--session", metavar="NAME", help="Keep the conversation under this name, or go on with it.")
@click.option("--continue", "latest", is_flag=True, help="Go on with the last conversation.")
@sampling_options
@context_options
def command(
    words: tuple[str, ...],
    system: str | None,
    template: str | None,
    session: str | None,
    latest: bool,
    ctx: int | None,
    threads: int | None,
    **options: Any,
) -> None:
    """Talk to a model, or ask it one thing.

    Without PROMPT a conversation opens; with one, or with text piped in, there is one answer. Piped text is put
    before the prompt. REF is a model (see `edge list`); without it the default model answers. What stands
    after `--` is always the prompt: edge chat -- "Why is the sky blue?"

    A conversation is saved; `edge sessions` lists them. One answer is saved only with --session or --continue.
    """
    ref, prompt = split_words(words)
    settings = sampling(options)
    prompt = with_stdin(prompt)
    from edge.chat.loaded import load

    with ExitStack() as stack:
        past = None
        if session or latest:
            past = earlier(stack, session)
            if latest and past is None:
                raise RequestError("there is no conversation to continue", hint="begin one with `edge chat`")
        ref = ref or (past.session.model if past else store.DEFAULT)
        model = stack.enter_context(load(here(ref), ctx=ctx, threads=threads, template=template))
        talk = open_talk(model, system, settings, past)
        if session or latest or prompt is None:
            talk.saved = saved(stack, talk, past, session)
        if prompt is None:
            from edge.cli.repl import converse

            converse(talk)
        else:
            answer(talk, prompt)


def with_stdin(prompt: str | None) -> str | None:
    """The prompt with piped text before it; None where a person is to type. Raises RequestError for no text."""
    if sys.stdin is None or sys.stdin.isatty():
        return prompt
    data = sys.stdin.buffer.read(MAX_STDIN + 1)
    if len(data) > MAX_STDIN:
        raise RequestError(f"more than {MAX_STDIN >> 20} MiB were piped in", hint="send less")
    try:
        piped = data.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise RequestError(
            f"what was piped in is not UTF-8 text at byte {error.start}",
            hint="is it a binary file? send text",
        ) from None
    both = "\n\n".join(part for part in (piped, prompt) if part)
    if not both:
        raise RequestError("the prompt is empty", hint='say something: edge chat -- "Hello"')
    return both


def earlier(stack: ExitStack, name: str | None) -> Conversation | None:
    """The saved conversation of that name, or the last one; None if there is none yet."""
    sessions = opened(stack)
    if name is None:
        last = sessions.latest()
        return sessions.conversation(last.name) if last else None
    known = any(session.name == name for session in sessions.all())
    return sessions.conversation(name) if known else None


def opened(stack: ExitStack) -> Sessions:
    from edge.chat.sessions import Sessions
    from edge.home import sessions_file

    return stack.enter_context(Sessions(sessions_file()))


def open_talk(model: LoadedModel, system: str | None, settings: Sampling, past: Conversation | None) -> Talk:
    """Say on stderr how the model runs, and take up the turns of `past`."""
    from edge.chat.talk import Talk
    from edge.chat.template import Message

    click.echo(model_line(model.plan), err=True)
    if model.template.reason:
        click.echo(model.template.reason, err=True)
    if past is None:
        return Talk(model, settings, system or "")
    turns = [Message(message.role, message.content) for message in past.messages]
    return Talk(model, settings, past.session.system if system is None else system, turns)


def saved(stack: ExitStack, talk: Talk, past: Conversation | None, name: str | None) -> Saved | None:
    """Where the conversation is kept. One that nobody named is not worth failing for: it says so and goes on."""
    from edge.chat.talk import Saved

    try:
        sessions = opened(stack)
        session = past.session if past else None
        if session is None:
            own_name = name or f"{datetime.now():%Y-%m-%d %H.%M.%S}"
            options = {key: value for key, value in asdict(talk.sampling).items() if value is not None}
            session = sessions.create(own_name, talk.model.plan.artifact, system=talk.system, options=options)
        return Saved(sessions, session)
    except EdgeError as error:
        if name:
            raise
        click.echo(f"this conversation will not be saved: {error.line}", err=True)
        return None


def answer(talk: Talk, prompt: str) -> None:
    """Stream one answer to stdout and its figures to stderr."""
    with closing(talk.say(prompt)) as chunks:
        for chunk in chunks:
            click.echo(printable(chunk.text), nl=False)
    click.echo()
    tally = talk.tally
    if tally.finish_reasons[0] == "length" and talk.sampling.max_tokens != tally.usage.completion_tokens:
        click.echo("the context is full; --ctx makes room for more", err=True)
    click.echo(timing_line(tally.usage, tally.timings(talk.model.engine.load_s)), err=True)
