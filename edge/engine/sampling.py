"""How the next token is chosen: settings, their limits, and llama.cpp's native chain for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edge.engine.binding import llama
from edge.errors import RequestError

# llama.cpp's own default window for the repeat penalty (common_params_sampling.penalty_last_n)
PENALTY_WINDOW = 64
SEEDS = 2**32 - 1  # the next number, LLAMA_DEFAULT_SEED in llama.h, means: draw one


@dataclass(frozen=True)
class Sampling:
    """Settings of one request; the defaults are llama.cpp's.

    temperature     0 picks the most likely token every time
    top_k           keep the k most likely tokens; 0 keeps all
    top_p           keep the smallest set whose probabilities sum to top_p; 1 keeps all
    min_p           drop tokens less likely than min_p times the likeliest; 0 drops none
    repeat_penalty  divide the logits of the last 64 tokens, the prompt's among them, by this; 1 is off
    seed            0 to 4,294,967,294; equal seeds give equal texts; None draws one
    max_tokens      the longest answer, in tokens; None means until the context is full
    stop            texts that end the answer; they are not part of it

    Raises RequestError for a value outside its range.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        within("temperature", self.temperature, 0, 100)
        within("top-k", self.top_k, 0, 2**31 - 1)
        within("top-p", self.top_p, 0, 1)
        within("min-p", self.min_p, 0, 1)
        within("repeat-penalty", self.repeat_penalty, 0.01, 100)
        if self.seed is not None:
            within("seed", self.seed, 0, SEEDS - 1)
        if self.max_tokens is not None:
            within("max-tokens", self.max_tokens, 1, 2**31 - 1)
        if isinstance(self.stop, str):
            raise RequestError(
                "stop is one text", hint="give a tuple of texts: its letters would be taken singly"
            )
        for stop in self.stop:
            if not stop:
                raise RequestError("an empty stop text would end every answer at once", hint="leave it out")
            if any("\ud800" <= character <= "\udfff" for character in stop):
                raise RequestError(
                    f"the stop text {stop!r} is not valid Unicode", hint="no answer can hold it"
                )


def within(name: str, value: float, low: float, high: float) -> None:
    """Raise RequestError unless low ≤ value ≤ high; NaN is never within."""
    if not (low <= value <= high):
        raise RequestError(
            f"{name} is {written(value)}", hint=f"give a value from {written(low)} to {written(high)}"
        )


def written(value: float) -> str:
    """A number for people. One with hundreds of digits, which no float can hold, is not written out."""
    if isinstance(value, float):
        return "not a number" if math.isnan(value) else f"{value:g}"
    return str(value) if abs(value) < 10**18 else "far out of range"


def open_chain(sampling: Sampling, vocab_size: int, seed: int, prompt: Sequence[int]) -> Any:
    """A native sampler chain that has seen the prompt's end; free it with `llama_sampler_free`.

    The order is llama.cpp's: penalties, top-k, top-p, min-p, temperature, then the draw.
    """
    lib = llama()
    params = lib.llama_sampler_chain_default_params()
    params.no_perf = True
    chain = lib.llama_sampler_chain_init(params)

    def add(sampler: Any) -> None:
        lib.llama_sampler_chain_add(chain, sampler)

    if sampling.repeat_penalty != 1:
        add(lib.llama_sampler_init_penalties(vocab_size, PENALTY_WINDOW, sampling.repeat_penalty, 0.0, 0.0))
        for token in prompt[-PENALTY_WINDOW:]:
            lib.llama_sampler_accept(chain, token)
    if sampling.temperature == 0:
        add(lib.llama_sampler_init_greedy())
        return chain
    if sampling.top_k:
        add(lib.llama_sampler_init_top_k(sampling.top_k))
    if sampling.top_p < 1:
        add(lib.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0:
        add(lib.llama_sampler_init_min_p(sampling.min_p, 1))
    add(lib.llama_sampler_init_temp(sampling.temperature))
    add(lib.llama_sampler_init_dist(seed))
    return chain
