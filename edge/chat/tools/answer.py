"""An answer that may hold tool calls, while it streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace

from edge.chat.tools import Reply, Tool
from edge.chat.tools.forms import ToolForm
from edge.chat.tools.stream import ToolStream
from edge.engine import Chunk, Stream
from edge.engine.backend import Vocabulary
from edge.errors import BadToolCall


class ToolAnswer:
    """The chunks of a Stream with the text that may be shown; `reply` is the whole, calls read.

    Iterate it as the stream, in a thread or with `async for`. Raises BadToolCall where a call in the answer is cut,
    broken, unknown or does not fit, as soon as that is certain, and cancels the rest.
    """

    def __init__(
        self,
        stream: Stream,
        form: ToolForm,
        tools: Sequence[Tool],
        marks: Mapping[int, str],
        *,
        required: bool = False,
    ) -> None:
        """`marks` are the texts of control tokens that begin calls: by themselves these show nothing.

        An answer that calls nothing is an error, too, where a call is `required`.
        """
        self._stream = stream
        self._marks, self._required = marks, required
        self._reading = ToolStream(form, tools)

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        return self._shown(next(self._stream))

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        return self._shown(await self._stream.__anext__())

    @property
    def reply(self) -> Reply:
        """The whole answer; waits for what was not iterated. Raises what iterating does."""
        for _ in self:
            pass
        return self._reading.reply

    @property
    def done(self) -> bool:
        """Whether the last chunk, an error or a cancellation has come."""
        return self._stream.done

    def cancel(self) -> None:
        """End the answer; safe from any thread and twice. `reply` is then what came before."""
        self._stream.cancel()

    def close(self) -> None:
        """`cancel`, by the name that `contextlib.closing` calls."""
        self._stream.close()

    async def aclose(self) -> None:
        """`cancel`, by the name that `contextlib.aclosing` calls."""
        await self._stream.aclose()

    def _shown(self, chunk: Chunk) -> Chunk:
        try:
            text = self._reading.feed(chunk.text + self._marks.get(chunk.token, ""))
            if chunk.finish_reason is not None:
                text += self._reading.finish(chunk.finish_reason)
                if self._required and not self._reading.reply.calls:
                    cut = chunk.finish_reason == "length"
                    raise BadToolCall(
                        "the answer ends before a tool call", self._reading.reply.content, cut=cut
                    )
        except BaseException:
            self._stream.cancel()
            raise
        return replace(chunk, text=text)


def marks(form: ToolForm, vocab: Vocabulary) -> dict[int, str]:
    """Ids and texts of the control tokens that the form is written with, such as Mistral's [TOOL_CALLS]."""
    controls = [sign for sign in form.spells if vocab.has(sign)]
    return {vocab.tokens(sign, add_special=False, parse_special=True)[0]: sign for sign in controls}
