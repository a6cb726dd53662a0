"""llama.cpp's native sampler chain for one answer: from logits to the next token."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge.engine.binding import llama
from edge.engine.sampling import PENALTY_WINDOW, Sampling
from edge.errors import EngineError

CANDIDATE = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])  # llama.h, llama_token_data


class Vocabulary(Protocol):
    """What a chain asks of `edge.engine.vocab.Vocab` or `edge.onnx.vocab.OnnxVocab`."""

    size: int


class Chain:
    """The samplers of one answer, which have seen its prompt's end. One thread at a time; `close` frees it."""

    def __init__(self, sampling: Sampling, vocab: Vocabulary, seed: int, prompt: Sequence[int]) -> None:
        self._lib = llama()
        params = self._lib.llama_sampler_chain_default_params()
        params.no_perf = True
        self._chain = self._lib.llama_sampler_chain_init(params)
        for sampler in samplers(sampling, vocab, seed):
            self._lib.llama_sampler_chain_add(self._chain, sampler)
        if sampling.repeat_penalty != 1:
            for token in prompt[-PENALTY_WINDOW:]:
                self._lib.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        """Free the samplers; safe to call twice."""
        if self._chain is not None:
            self._lib.llama_sampler_free(self._chain)
        self._chain = None

    def draw(self, context: Any, row: int) -> int:
        """The next token by a row of a llama.cpp context's last logits; the chain then has seen it."""
        token: int = self._lib.llama_sampler_sample(self._chain, context, row)
        return token

    def draw_from(self, logits: NDArray[np.float32]) -> int:
        """The next token by logits (vocabulary,), which are not changed. Raises EngineError for NaN."""
        candidates = candidates_of(len(logits))
        token = candidates.chosen(self._chain, logits)
        self._lib.llama_sampler_accept(self._chain, token)
        return token


class Candidates:
    """llama.cpp's array of candidates over memory that is used again from token to token."""

    def __init__(self, vocabulary: int) -> None:
        self._lib = llama()
        self._entries = np.zeros(vocabulary, CANDIDATE)
        self._ids = np.arange(vocabulary, dtype=np.int32)
        pointer = self._entries.ctypes.data_as(ctypes.POINTER(self._lib.llama_token_data))
        self._array = self._lib.llama_token_data_array(pointer, vocabulary, -1, False)

    def chosen(self, chain: Any, logits: NDArray[np.float32]) -> int:
        """The token a chain chooses by logits (vocabulary,). Raises EngineError where it cannot."""
        self._entries["id"] = self._ids  # samplers sort them, and drop some
        self._entries["logit"] = logits
        self._entries["p"] = 0
        array = self._array
        array.size, array.selected, array.sorted = len(logits), -1, False
        self._lib.llama_sampler_apply(chain, ctypes.byref(array))
        if array.selected < 0:
            raise EngineError(
                "no token could be drawn", hint="the model computes no numbers; get another file"
            )
        return int(self._entries["id"][array.selected])


_mine = threading.local()


def candidates_of(vocabulary: int) -> Candidates:
    """This thread's candidates: answers of one engine take turns on them."""
    kept: Candidates | None = getattr(_mine, "kept", None)
    if kept is None or len(kept._ids) != vocabulary:
        kept = _mine.kept = Candidates(vocabulary)
    return kept


def samplers(sampling: Sampling, vocab: Vocabulary, seed: int) -> list[Any]:
    """The native samplers in llama.cpp's order: penalties, top-k, top-p, min-p, temperature, then the draw."""
    lib = llama()
    made = []
    if sampling.repeat_penalty != 1:
        made.append(
            lib.llama_sampler_init_penalties(vocab.size, PENALTY_WINDOW, sampling.repeat_penalty, 0.0, 0.0)
        )
    if sampling.temperature == 0:
        return [*made, lib.llama_sampler_init_greedy()]
    if sampling.top_k:
        made.append(lib.llama_sampler_init_top_k(sampling.top_k))
    if sampling.top_p < 1:
        made.append(lib.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0:
        made.append(lib.llama_sampler_init_min_p(sampling.min_p, 1))
    return [
        *made,
        lib.llama_sampler_init_temp(sampling.temperature),
        lib.llama_sampler_init_dist(seed),
    ]
