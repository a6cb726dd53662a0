"""An answer that may hold tool calls, while it streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace

from edge.chat.tools import Reply, Tool
from edge.chat.tools.forms import ToolForm
from edge.chat.tools.stream import ToolStream
from edge.engine import Chunk, Stream


class ToolAnswer:
    """The chunks of a Stream with the text that may be shown; `reply` is the whole, calls read.

    Iterate it as the stream, in a thread or with `async for`. Raises BadToolCall where a call in the answer is cut,
    broken, unknown or does not fit, as soon as that is certain, and cancels the rest.
    """

    def __init__(self, stream: Stream, form: ToolForm, tools: Sequence[Tool]) -> None:
        self._stream = stream
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
            text = self._reading.feed(chunk.text)
            if chunk.finish_reason is not None:
                text += self._reading.finish(chunk.finish_reason)
        except BaseException:
            self._stream.cancel()
            raise
        return replace(chunk, text=text)
