"""`edge chat`: one answer, or a conversation."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from edge import store
from edge.chat.policy import POLICIES
from edge.cli.models import DashesCommand, here, split_words
from edge.cli.options import context_options, guess_options, lora_option, sampling_given, sampling_options
from edge.cli.output import is_terminal, model_line, printable, timing_line
from edge.cli.references import complete_ref
from edge.cli.structure import Structure, structure_given, structure_options, tell_of_cut
from edge.errors import EdgeError, RequestError

if TYPE_CHECKING:
    from edge.chat.loaded import LoadedModel
    from edge.chat.policy import Policy
    from edge.chat.sessions import Conversation
    from edge.chat.talk import Saved, Talk

MAX_STDIN = 64 << 20  # bytes; a larger text fits no context there is


@click.command(cls=DashesCommand)
@click.argument("words", nargs=-1, metavar="[REF] [PROMPT]", shell_complete=complete_ref)
@click.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@click.option(
    "--template", metavar="NAME", help="Chat form to use instead of the file's own: chatml, llama-3, …"
)
@click.option("--session", metavar="NAME", help="Keep the conversation under this name, or go on with it.")
@click.option("--continue", "latest", is_flag=True, help="Go on with the last conversation.")
@click.option(
    "--context-policy",
    type=click.Choice(POLICIES),
    help="What to do once the context is full: refuse, leave out the oldest turns, or summarise them."
    "  [the conversation's, else error]",
)
@sampling_options
@structure_options
@lora_option
@guess_options
@context_options
def command(
    words: tuple[str, ...],
    system: str | None,
    template: str | None,
    session: str | None,
    latest: bool,
    context_policy: Policy | None,
    ctx: int | str | None,
    threads: int | None,
    lora: tuple[str, ...],
    lookup: bool | None,
    draft: str | None,
    **options: Any,
) -> None:
    """Talk to a model, or ask it one thing.

    Without PROMPT a conversation opens; with one, or with text piped in, there is one answer. Piped text is put
    before the prompt. REF is a model (see `edge list`); without it the default model answers. What stands
    after `--` is always the prompt: edge chat -- "Why is the sky blue?"

    A conversation is saved; `edge sessions` lists them. One answer is saved only with --session or --continue.
    """
    ref, prompt = split_words(words)
    structure = structure_given(options)
    given = sampling_given({**options, **(structure.given() if structure else {})})
    prompt = with_stdin(prompt)
    if structure and prompt is None:
        raise RequestError(f"--{structure.kind} is for one answer", hint="give a prompt")
    past = earlier(session, latest)
    if past and not ref and not lora:  # with another model they would not go
        lora = tuple(past.session.options.get("lora", ()))
    from edge.chat.loaded import load

    ref = here(ref or (past.session.model if past else store.DEFAULT))
    # What is saved may be kept as the model's state, too; an answer that is not leaves nothing behind.
    saved = prompt is None or bool(session or past)
    with load(
        ref, ctx=ctx, threads=threads, template=template, lora=lora, draft=draft, lookup=lookup, cache=saved
    ) as model:
        talk = open_talk(model, ref, system, given, past)
        talk.policy = context_policy
        if prompt is not None:
            if session and not past:
                talk.saved = begin(session)
            answer(talk, prompt, structure)
        else:
            from edge.cli.repl import converse

            talk.saved = talk.saved or begin(session)
            converse(talk, ctx=ctx, threads=threads)


def with_stdin(prompt: str | None) -> str | None:
    """The prompt with piped text before it; None where a person is to type. Raises RequestError for no text."""
    if prompt is None and is_terminal(sys.stdin):
        return None
    both = "\n\n".join(part for part in (piped(), prompt) if part)
    if not both.strip():
        raise RequestError("the prompt is empty", hint='say something: edge chat -- "Hello"')
    from edge.engine.vocab import utf8

    utf8(both)  # refused before a model is loaded
    return both


def piped() -> str:
    """The text on stdin, without white space around it; empty where there is none to read."""
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    try:
        data = sys.stdin.buffer.read(MAX_STDIN + 1)
    except OSError as error:
        raise RequestError(
            f"what was piped in cannot be read: {error.strerror or error}", hint="pipe a text in"
        ) from None
    if len(data) > MAX_STDIN:
        raise RequestError(f"more than {MAX_STDIN >> 20} MiB were piped in", hint="send less")
    try:
        return data.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise RequestError(
            f"what was piped in is not UTF-8 text at byte {error.start}",
            hint="is it a binary file? send text",
        ) from None


def earlier(name: str | None, latest: bool) -> Conversation | None:
    """The saved conversation to go on with; None for a new one.

    Raises RequestError where there is none to continue or no session can have that name, and SessionError or
    StoreError where the file of sessions cannot be used: a conversation that somebody named is to be kept.
    """
    if not name and not latest:
        return None
    from edge.chat.sessions import Sessions, checked
    from edge.home import sessions_file

    if name and latest:
        raise RequestError("--session and --continue name two conversations", hint="give one of them")
    if name:
        checked(name)
    with Sessions(sessions_file()) as file:
        if name:
            known = any(session.name == name for session in file.all())
            return file.conversation(name) if known else None
        if last := file.latest():
            return file.conversation(last.name)
    raise RequestError("there is no conversation to continue", hint="begin one with `edge chat`")


def open_talk(
    model: LoadedModel, ref: str, system: str | None, given: dict[str, Any], past: Conversation | None
) -> Talk:
    """Say on stderr how the model runs, and take up the turns of `past`."""
    from edge.chat.talk import Talk

    click.echo(printable(model_line(model)), err=True)
    if model.template.reason:
        click.echo(printable(model.template.reason), err=True)
    talk = Talk(model, ref, given)
    if past:
        talk.take_up(past)
    if system is not None:
        talk.instruct(system)
    return talk


def begin(name: str | None) -> Saved | None:
    """Where a new conversation is to be kept. One nobody named is not worth failing for: it says so and goes on."""
    from edge.chat.sessions import Sessions
    from edge.chat.talk import Saved, unnamed
    from edge.home import sessions_file

    if name is not None:
        return Saved(name)
    try:
        with Sessions(sessions_file()):
            return unnamed()
    except EdgeError as error:
        click.echo(f"this conversation will not be saved: {error.line}", err=True)
        return None


def answer(talk: Talk, prompt: str, structure: Structure | None = None) -> None:
    """Stream one answer to stdout and its figures to stderr."""
    talk.tell = lambda note: click.echo(note, err=True)
    with closing(talk.say(prompt)) as chunks:
        for chunk in chunks:
            click.echo(printable(chunk.text), nl=False)
    click.echo()
    tally = talk.tally
    if tally.finish_reasons[0] == "length" and talk.sampling.max_tokens != tally.usage.completion_tokens:
        click.echo("the context is full; --ctx makes room for more", err=True)
    tell_of_cut(structure, tally.texts, tally.finish_reasons)
    click.echo(timing_line(tally.usage, tally.timings(talk.model.engine.load_s)), err=True)
