"""A conversation with a loaded model, saved as it happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from typing import Any

from edge.chat.loaded import LoadedModel
from edge.chat.policy import Fitted, Policy, Summary, fit, flat, known, split
from edge.chat.sessions import Conversation, SavedMessage, Session, Sessions
from edge.chat.template import Message
from edge.engine import Chunk, Sampling, Tally
from edge.home import sessions_file


@dataclass
class Saved:
    """The name a conversation is saved under; its session begins with the first answer, so no empty ones gather."""

    name: str
    session: Session | None = None


def unnamed() -> Saved:
    """The name of a conversation that nobody named: when it began, to the millisecond, as two may begin at once."""
    return Saved(f"{datetime.now():%Y-%m-%d %H.%M.%S.%f}"[:-3])


def settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """A session's options as `Sampling` takes them; what another version wrote there is left out."""
    known = {each.name for each in fields(Sampling)}
    values = {name: value for name, value in options.items() if name in known}
    return {**values, "stop": tuple(values["stop"])} if "stop" in values else values  # JSON has no tuples


def earlier_summary(options: Mapping[str, Any]) -> Summary | None:
    """The summary among a session's options, or None where there is none that can be used."""
    match options.get("summary"):
        case {"text": str(text), "messages": int(messages)}:
            return Summary(text, messages)
    return None


@dataclass
class Talk:
    """The turns so far, what answers them, and where they are kept (nowhere when `saved` is None).

    `ref` finds the model again from any folder. `given` are the sampling settings of the caller, `policy` what he
    wants done once the context is full (`edge.chat.policy`); they override `begun`, a saved conversation's options,
    and these what the model's authors advise. `turns` are all there are, and all are saved: `fitted` says what of
    them the model saw last, and `tell` hears when that becomes less.
    """

    model: LoadedModel
    ref: str
    given: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    turns: list[Message] = field(default_factory=list)
    saved: Saved | None = None
    begun: Mapping[str, Any] = field(default_factory=dict)
    policy: Policy | None = None
    tell: Callable[[str], object] = lambda note: None
    tally: Tally = field(default_factory=Tally)
    summary: Summary | None = None
    fitted: Fitted = field(default_factory=lambda: Fitted(()))

    def say(self, text: str) -> Generator[Chunk, None, None]:
        """Add a user's message and stream the answer.

        An answer that is cut short, by Ctrl-C or by closing the stream, is kept as far as it got. A message
        that is refused (too long, not text) is taken back. Raises what `fit` and `LoadedModel.chat` raise, and at
        the end SessionError or StoreError where it cannot be saved; it is part of the conversation all the same.
        """
        question = Message("user", text)
        self.tally = Tally()
        self._fit([*self.opening(), *self.turns, question])
        try:
            with closing(self.model.chat(self.fitted.messages, self.sampling)) as chunks:
                for chunk in chunks:
                    self.tally.add(chunk)
                    yield chunk
        finally:
            if self.tally.usage.completion_tokens:
                self._keep(question, Message("assistant", self.tally.texts[0]))

    @property
    def sampling(self) -> Sampling:
        """How the answers are drawn."""
        return replace(self.model.sampling, **{**settings(self.begun), **self.given})

    @property
    def full(self) -> Policy:
        """What is done once the context is full: as asked for, else as this conversation was begun, else an error."""
        return self.policy or known(self.begun.get("context_policy")) or "error"

    def seen(self) -> list[Message]:
        """What of the conversation so far the model sees, unless the next message makes it less."""
        opening, turns = split([*self.opening(), *self.turns])
        kept = turns[self.fitted.dropped_turns :]
        summary = self.fitted.summary if len(kept) < len(turns) else None
        return [*opening, *(summary.turn() if summary else ()), *flat(kept)]

    def opening(self) -> list[Message]:
        """The system prompt as a message, where there is one."""
        return [Message("system", self.system)] if self.system else []

    def instruct(self, system: str) -> None:
        """Change the system prompt, in the saved conversation too. Raises SessionError or StoreError."""
        changed, self.system = system != self.system, system
        if changed and self.saved and self.saved.session:
            with Sessions(sessions_file()) as file:
                file.instruct(self.saved.session, system)

    def take_up(self, past: Conversation) -> None:
        """Go on with a saved conversation instead of this one."""
        self.saved, self.system = Saved(past.session.name, past.session), past.session.system
        self.begun = past.session.options
        self.summary, self.fitted = earlier_summary(self.begun), Fitted(())
        self.turns = [Message(message.role, message.content) for message in past.messages]
        if self.turns and self.turns[-1].role == "user":
            self.turns.pop()  # the process ended between a question and its answer

    def begin_anew(self) -> None:
        """Forget the turns; what is said from now on is a conversation of its own, kept where this one was."""
        self.turns, self.summary, self.fitted = [], None, Fitted(())
        self.saved = unnamed() if self.saved else None

    def save_as(self, name: str) -> None:
        """Name the saved conversation, or begin to save this one, all of it.

        Raises RequestError for a name that is taken or cannot be one, SessionError or StoreError.
        """
        with Sessions(sessions_file()) as file:
            if self.saved and self.saved.session:
                file.rename(self.saved.session.name, name)
                self.saved = Saved(name, file.get(name))
            else:
                session = self._begin(file, name)
                now = time.time()
                file.extend(session, [SavedMessage(turn.role, turn.content, now) for turn in self.turns])
                self.saved = Saved(name, session)

    def _fit(self, messages: list[Message]) -> None:
        before = self.fitted.note
        self.fitted = fit(
            self.model, messages, self.full, self.sampling, summary=self.summary, tell=self.tell
        )
        self.summary = self.fitted.summary
        if self.fitted.note not in ("", before):
            self.tell(self.fitted.note)

    def _options(self) -> dict[str, Any]:
        """What the conversation is held with, to go on with it in the same way."""
        # Not the advised settings: these are the model's, and /model may bring another.
        options = {**settings(self.begun), **self.given}
        options.pop("grammar", None)  # what one answer had to look like
        if self.full != "error":
            options["context_policy"] = self.full
        if self.summary:
            options["summary"] = asdict(self.summary)
        if self.model.adapters:
            options["lora"] = [f"{each.path.resolve()}:{each.scale}" for each in self.model.adapters]
        return options

    def _begin(self, file: Sessions, name: str) -> Session:
        return file.create(name, self.ref, system=self.system, options=self._options())

    def _keep(self, question: Message, answer: Message) -> None:
        self.turns += [question, answer]
        if self.saved:
            # Opened for each turn: a conversation may rest for hours, and holds no file meanwhile.
            with Sessions(sessions_file()) as file:
                session = self.saved.session or self._begin(file, self.saved.name)
                session = self.saved.session = file.settle(session, self.ref, self._options())
                usage, reason = self.tally.usage, self.tally.finish_reasons[0] or "interrupted"
                now = time.time()
                asked = SavedMessage("user", question.content, now, usage.prompt_tokens)
                said = SavedMessage("assistant", answer.content, now, usage.completion_tokens, reason)
                file.extend(session, [asked, said])
