"""A conversation with a loaded model, saved as it happens."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field

from edge.chat.sessions import Session, Sessions
from edge.chat.template import Message
from edge.engine import Chunk, Sampling, Tally
from edge.chat.loaded import LoadedModel


@dataclass
class Saved:
    """Where a conversation is written to."""

    file: Sessions
    session: Session


@dataclass
class Talk:
    """The turns so far, what answers them, and where they are kept (nowhere when `saved` is None)."""

    model: LoadedModel
    sampling: Sampling
    system: str = ""
    turns: list[Message] = field(default_factory=list)
    saved: Saved | None = None
    tally: Tally = field(default_factory=Tally)

    def say(self, text: str) -> Generator[Chunk, None, None]:
        """Add a user's message and stream the answer.

        An answer that is cut short, by Ctrl-C or by closing the stream, is kept as far as it got. A message
        that is refused (too long, not text) is taken back. Raises what `LoadedModel.chat` raises.
        """
        question = Message("user", text)
        self.tally = Tally()
        try:
            with closing(self.model.chat([*self.opening(), *self.turns, question], self.sampling)) as chunks:
                for chunk in chunks:
                    self.tally.add(chunk)
                    yield chunk
        finally:
            if self.tally.usage.completion_tokens:
                self._keep(question, Message("assistant", self.tally.texts[0]))

    def opening(self) -> list[Message]:
        """The system prompt as a message, where there is one."""
        return [Message("system", self.system)] if self.system else []

    def _keep(self, question: Message, answer: Message) -> None:
        self.turns += [question, answer]
        if self.saved:
            usage, reason = self.tally.usage, self.tally.finish_reasons[0] or "interrupted"
            append = self.saved.file.append
            append(self.saved.session, "user", question.content, tokens=usage.prompt_tokens)
            append(
                self.saved.session,
                "assistant",
                answer.content,
                tokens=usage.completion_tokens,
                finish_reason=reason,
            )
