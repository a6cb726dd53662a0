"""`best_of`: more answers than are asked for, of which the likeliest are given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from edge.engine.request import Chunk, Request


class Best:
    """Holds the answers of a request back until all are there, as only then the best are known."""

    def __init__(self, request: Request) -> None:
        self._wanted = request.best_of
        self._logprobs = request.sampling.logprobs is not None
        self._answers: list[list[Chunk]] = [[] for _ in range(request.n)]

    def add(self, chunk: Chunk) -> None:
        """Keep a chunk, which has the logprob of its token."""
        self._answers[chunk.index].append(chunk)

    def chunks(self) -> Iterator[Chunk]:
        """The wanted answers one after the other, the one with the highest mean logprob a token first."""
        ranked = sorted(self._answers, key=mean_logprob, reverse=True)
        for index, answer in enumerate(ranked[: self._wanted]):
            for chunk in answer:
                kept = chunk.logprobs if self._logprobs else None
                yield replace(chunk, index=index, logprobs=kept)


def mean_logprob(answer: list[Chunk]) -> float:
    """ln p a token, as chat completions rank their best_of; -inf for an answer without tokens."""
    values = [chunk.logprobs[0].logprob for chunk in answer if chunk.logprobs]
    return sum(values) / len(values) if values else float("-inf")
