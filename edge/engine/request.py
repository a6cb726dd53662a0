"""A request from its submission to its last chunk: what is asked, and the mailbox its answers arrive in."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Condition
from time import perf_counter
from typing import TYPE_CHECKING

from edge.engine.adapters import Adapter
from edge.engine.sampling import Sampling
from edge.errors import EngineError

if TYPE_CHECKING:
    import asyncio


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token, its text and ln p as the model gave it, before any sampling setting."""

    token: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Chunk:
    """One step of one answer.

    index              which of the n answers this belongs to
    text               what the step made showable; may be empty, may end a held-back piece
    token              the id that was chosen
    finish_reason      None, or in the last chunk of an answer: "stop" (the model ended it or a stop text
                       appeared) or "length" (max_tokens reached or the context is full)
    prompt_tokens      length of the prompt
    reused_tokens      how many of those were taken from a kept prefix
    completion_tokens  tokens of this answer so far
    prefill_s          seconds it took to process the prompt, from when it was begun
    elapsed_s          seconds since the request; in the first chunk this is the time to first token
    logprobs           where asked for: the chosen token first, then the likeliest ones
    guessed            whether the token was speculated before it was drawn
    """

    index: int
    text: str
    token: int
    finish_reason: str | None
    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int
    prefill_s: float
    elapsed_s: float
    logprobs: tuple[Logprob, ...] | None = None
    guessed: bool = False


@dataclass(eq=False)
class Request:
    """What is asked, and the mailbox between the decode thread and whoever reads.

    `adapters` are those it is decoded with. The decode thread puts chunks in and ends it, a reader takes them out;
    any thread cancels.
    """

    prompt: list[int]
    sampling: Sampling
    seed: int
    n: int
    adapters: tuple[Adapter, ...]
    on_chunk: Callable[[Chunk], None] | None = None
    best_of: int | None = None  # give only so many of the n, the likeliest
    process: int = field(default_factory=os.getpid)
    submitted: float = field(default_factory=perf_counter)
    cancelled: bool = False
    ended: bool = False
    error: BaseException | None = None
    chunks: deque[Chunk] = field(default_factory=deque)
    changed: Condition = field(default_factory=Condition)
    waiting: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    def put(self, chunk: Chunk) -> None:
        """Hand a chunk to the reader, unless they have cancelled. Raises what the user's callback raises."""
        if self.cancelled:
            return
        if self.on_chunk is not None:
            try:
                self.on_chunk(chunk)
            except (
                StopIteration,
                StopAsyncIteration,
            ) as error:  # the reader would take it for the answer's end
                raise RuntimeError("the callback raised StopIteration") from error
        with self.changed:
            self.chunks.append(chunk)
            self._wake()

    def end(self, error: BaseException | None = None) -> None:
        """No chunk follows; the reader gets `error` after those there are. The first end counts."""
        with self.changed:
            if not self.ended:
                self.ended, self.error = True, error
                self._wake()

    def cancel(self) -> None:
        """Ask the decode thread to leave the request, and end it for its reader at once."""
        self.cancelled = True
        if (
            os.getpid() == self.process
        ):  # a thread that had the lock when this one was forked never gives it back
            self.end()

    def check_process(self) -> None:
        """Raise EngineError in a process forked since: the thread that answers is not there."""
        if os.getpid() != self.process:
            raise EngineError("the request was made before this process was forked", hint="ask again")

    def take(self) -> Chunk | None:
        """The next chunk, or None where there is none yet. Raises the error, or StopIteration at the end."""
        if self.chunks:
            return self.chunks.popleft()
        if not self.ended:
            return None
        if self.error is not None:
            raise self.error
        raise StopIteration

    def _wake(self) -> None:
        self.changed.notify_all()
        if self.waiting is not None:
            loop, future = self.waiting
            self.waiting = None
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(settle, future)


class Stream:
    """The chunks of one request: iterate it, in a thread or with `async for`, from one reader.

    Raises the request's error after the chunks that came before it. Cancelled or dropped, it ends, and the engine
    leaves the request at its next step.
    """

    def __init__(self, request: Request) -> None:
        self._request = request

    def __del__(self) -> None:
        self._request.cancel()

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        request = self._request
        request.check_process()
        with request.changed:
            while (chunk := request.take()) is None:
                request.changed.wait()
        return chunk

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        import asyncio  # 6 MiB that a thread does without

        request = self._request
        request.check_process()
        while True:
            with request.changed:
                try:
                    if (chunk := request.take()) is not None:
                        return chunk
                except StopIteration:
                    raise StopAsyncIteration from None
                loop = asyncio.get_running_loop()
                future: asyncio.Future[None] = loop.create_future()
                request.waiting = (loop, future)
            try:
                await future
            except asyncio.CancelledError:
                request.cancel()
                raise

    def cancel(self) -> None:
        """End the request; safe from any thread and twice. What came before can still be read."""
        self._request.cancel()

    def close(self) -> None:
        """`cancel`, by the name that `contextlib.closing` calls."""
        self._request.cancel()

    async def aclose(self) -> None:
        """`cancel`, by the name that `contextlib.aclosing` calls."""
        self._request.cancel()

    @property
    def done(self) -> bool:
        """Whether the last chunk, an error or a cancellation has come."""
        return self._request.ended


def settle(future: asyncio.Future[None]) -> None:
    """Wake who awaits the future, if they still do."""
    if not future.done():
        future.set_result(None)


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return length
