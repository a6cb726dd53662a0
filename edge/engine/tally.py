"""What a stream of chunks adds up to: texts, token counts, rates."""

from __future__ import annotations

from dataclasses import dataclass

from edge.engine.request import Chunk


@dataclass(frozen=True)
class Usage:
    """Tokens read, tokens written, all answers together, and those of the prompt that were not computed again."""

    prompt_tokens: int
    completion_tokens: int
    reused_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """Seconds and tokens a second.

    ttft_s is from the request to the first token; prefill_tps counts only tokens that were really computed
    (None when the prefix was kept whole); decode_tps counts all answers' tokens after the first of each (None
    for answers of one token).
    """

    load_s: float
    ttft_s: float
    prefill_tps: float | None
    decode_tps: float | None


class Tally:
    """Add every chunk of a stream, then read the sums."""

    def __init__(self, n: int = 1) -> None:
        self._parts: list[list[str]] = [[] for _ in range(n)]
        self._counts = [0] * n
        self.finish_reasons: list[str | None] = [None] * n
        self._first: Chunk | None = None
        self._last: Chunk | None = None

    def add(self, chunk: Chunk) -> None:
        """Count one chunk."""
        self._first = self._first or chunk
        self._last = chunk
        self._parts[chunk.index].append(chunk.text)
        self._counts[chunk.index] = chunk.completion_tokens
        self.finish_reasons[chunk.index] = chunk.finish_reason

    @property
    def texts(self) -> list[str]:
        """The answers so far."""
        return ["".join(parts) for parts in self._parts]

    @property
    def usage(self) -> Usage:
        """Tokens so far; zeros before the first chunk."""
        if self._first is None:
            return Usage(0, 0)
        return Usage(self._first.prompt_tokens, sum(self._counts), self._first.reused_tokens)

    def timings(self, load_s: float = 0.0) -> Timings:
        """Rates so far; `load_s` is the caller's."""
        if self._first is None or self._last is None:
            return Timings(load_s, 0.0, None, None)
        computed = self._first.prompt_tokens - self._first.reused_tokens
        decoding = self._last.elapsed_s - self._first.elapsed_s
        decoded = sum(self._counts) - sum(count > 0 for count in self._counts)
        return Timings(
            load_s=load_s,
            ttft_s=self._first.elapsed_s,
            prefill_tps=computed / self._first.prefill_s if self._first.prefill_s else None,
            decode_tps=decoded / decoding if decoded and decoding else None,
        )
