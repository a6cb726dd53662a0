"""The logits of chunks of tokens, a block of rows at a time."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np

from edge.engine.backend import Row
from edge.engine.llama import LlamaBackend
from edge.memory import BATCH
from edge.planner import Plan

from .perplexity import Array

LOGITS_BYTES = 64 << 20  # of logits that llama.cpp keeps for one model


class Logits(LlamaBackend):
    """A model whose context is one chunk long and gives logits of many rows. Raises what `LlamaBackend` raises."""

    def _context_params(self, plan: Plan) -> Any:
        size = self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(self._model))
        self.rows, self.plan = max(1, min(BATCH, LOGITS_BYTES // (4 * size))), plan
        params = super()._context_params(plan)
        params.n_outputs_max = self.rows
        params.n_threads = params.n_threads_batch = plan.threads.prefill
        return params

    def __enter__(self) -> Logits:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def of(self, chunk: Array) -> Iterator[Array]:
        """Logits of the scored half of a chunk, (tokens, vocabulary) f32, in blocks.

        A block is llama.cpp's own buffer: read it before the next one is asked for.
        """
        self.keep(0, 0)
        for start, stop, scored in blocks(len(chunk), self.rows):
            self.decode(
                [Row(int(chunk[at]), at, (0,), at in scored) for at in range(start, stop)],
            )
            if scored:
                data = ctypes.cast(self._lib.llama_get_logits(self._context), ctypes.POINTER(ctypes.c_float))
                yield np.ctypeslib.as_array(data, shape=(len(scored), self.vocab.size))


def blocks(ctx: int, rows: int) -> Iterator[tuple[int, int, range]]:
    """How a chunk is decoded: (start, stop) of each batch and its positions with logits, at most `rows`."""
    first, start = ctx // 2, 0
    while start < ctx:
        stop = min(ctx, start + BATCH, max(start, first) + rows)
        yield start, stop, range(max(start, first), min(stop, ctx - 1))
        start = stop
