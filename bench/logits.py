"""The logits of chunks of tokens, a block of rows at a time."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np

from edge.engine import Engine
from edge.engine.binding import listen
from edge.memory import BATCH
from edge.planner import Plan

from .perplexity import Array

LOGITS_BYTES = 64 << 20  # of logits that llama.cpp keeps for one model


class Logits(Engine):
    """An engine whose context is one chunk long and gives logits of many rows. Raises what `Engine` raises."""

    def _context_params(self, plan: Plan) -> Any:
        size = self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(self._model))
        self.rows = max(1, min(BATCH, LOGITS_BYTES // (4 * size)))
        params = self._lib.llama_context_default_params()
        params.n_ctx = plan.context
        params.n_batch = params.n_ubatch = BATCH
        params.n_outputs_max = self.rows
        params.n_threads = params.n_threads_batch = plan.threads.prefill
        params.no_perf = True
        return params

    def __enter__(self) -> Logits:
        return self

    def of(self, chunk: Array) -> Iterator[Array]:
        """Logits of the scored half of a chunk, (tokens, vocabulary) f32, in blocks.

        A block is llama.cpp's own buffer: read it before the next one is asked for.
        """
        listen()
        self._lib.llama_memory_clear(self._memory, True)
        for start, stop, scored in blocks(len(chunk), self.rows):
            for row, position in enumerate(range(start, stop)):
                self._put(row, int(chunk[position]), position, 0, position in scored)
            self._decode(stop - start)
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
