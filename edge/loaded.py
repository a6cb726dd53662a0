"""A model in memory, ready to continue a text or to hold a conversation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edge import gguf_header
from edge.chat import template as templates
from edge.chat.template import Message, Template
from edge.engine import Chunk, Engine, Sampling
from edge.planner import Plan, plan

DEFAULT_SAMPLING = Sampling()


class LoadedModel:
    """What `edge.load` returns. Close it, or use it as a context manager; one request runs at a time."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan.require_fit()
        self.engine = Engine(plan)
        self._template: Template | None = None

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the memory; safe to call twice."""
        self.engine.close()

    @property
    def template(self) -> Template:
        """The chat template in use: the file's own, or a known form chosen by name (`template.reason` says why).

        Raises the error of `edge.chat.template.choose` where there is neither.
        """
        if self._template is None:
            vocab = self.engine.vocab
            header = gguf_header.read(self.plan.path)
            self._template = templates.choose(
                header.chat_template,
                header.architecture,
                header.get("general.name", str, self.plan.artifact),
                bos_token=vocab.special_text("bos"),
                eos_token=vocab.special_text("eos"),
                has_token=vocab.has,
            )
        return self._template

    def generate(self, prompt: str, sampling: Sampling = DEFAULT_SAMPLING, *, n: int = 1) -> Iterator[Chunk]:
        """Continue `prompt` n times from one prefill; chunks stream as they are decoded.

        Raises RequestError, PromptTooLong or EngineError as `Engine.stream` does.
        """
        return self.engine.stream(self.engine.vocab.tokens(prompt), sampling, n)

    def chat(self, messages: str | Sequence[Message], sampling: Sampling = DEFAULT_SAMPLING) -> Iterator[Chunk]:
        """Answer a conversation; a plain text is a conversation of one user message.

        What a conversation shares with the one before it is not computed again. Raises UnsafeTemplate or
        RequestError where the template refuses, and what `generate` raises.
        """
        if isinstance(messages, str):
            messages = [Message("user", messages)]
        return self.engine.stream(self.tokens(messages), sampling)

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        """The prompt of a conversation, in token ids.

        Control tokens that the template writes count as such; the same characters inside a message stay text,
        so nobody's words can end their own turn.
        """
        vocab = self.engine.vocab
        whole = templates.render(self.template, messages)
        add_bos = not (self.template.bos_token and whole.startswith(self.template.bos_token))
        if not any(
            vocab.tokens(message.content, parse_special=True) != vocab.tokens(message.content) for message in messages
        ):
            return vocab.tokens(whole, add_special=add_bos, parse_special=True)
        ids: list[int] = []
        for segment in templates.render_segments(self.template, messages):
            ids += vocab.tokens(segment.text, add_special=add_bos and not ids, parse_special=segment.trusted)
        return ids


def load(ref: str, *, ctx: int | None = None, threads: int | None = None, sequences: int = 1) -> LoadedModel:
    """Plan `ref` for this machine, refuse it if it does not fit, else load it.

    ctx, threads and sequences are those of `edge.plan`. Raises what `plan` raises, DoesNotFit, EngineError.
    """
    return LoadedModel(plan(ref, ctx=ctx, threads=threads, sequences=sequences))
